"""Plays many peers in one process: shakes hands as each of them, then counts the packets that come to all.

python -m tests.bench.crowd_load TARGET SEED COUNT HOST PORT SIZE   counts until SIGTERM, then prints JSON
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.bench.handshake_load import pack_source, private_key
from tests.bench.udp_load import BUFFER, SETTLE, Stopped, receive_within

from lab.namespaces import SO_RCVBUFFORCE
from stagewire.proto import constants as c
from stagewire.proto import handshake, tai64n
from stagewire.proto.cookie import MacSealer
from stagewire.proto.handshake import Identity, Remote, SentInitiation
from stagewire.proto.messages import (
    TRANSPORT_HEADER,
    BadMessage,
    CookieReply,
    Response,
    parse_handshake_untrusted,
)

WINDOW: Final = 32
"""Initiations that wait at a time: too few for the gateway to ask for cookies."""
AGAIN_AFTER: Final = 0.5
PATIENCE: Final = 20.0
_NONCE: Final = bytes(4)


class Crowd:
    """Holds the peers' ends of all sessions."""

    def __init__(self, target: bytes, seed: bytes, count: int, place: tuple[str, int]) -> None:
        self._identities = [Identity.from_private_bytes(private_key(seed, number)) for number in range(count)]
        self._remotes = [Remote.of(identity, target) for identity in self._identities]
        self._macs = [MacSealer(target) for _ in range(count)]
        self._place = place
        self._sent: list[tuple[SentInitiation, float] | None] = [None] * count
        self._left = set(range(count))
        self._ciphers: dict[int, ChaCha20Poly1305] = {}
        """What opens a session's packets, by our index, until one is opened."""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        receive_within(self.socket, 0.01)
        self.socket.bind(("", 0))

    def shake_hands(self) -> None:
        """Returns once every peer has a session that the gateway may use. Raises TimeoutError."""
        until = time.monotonic() + PATIENCE
        while self._left:
            if (now := time.monotonic()) > until:
                raise TimeoutError(f"{len(self._left)} peers got no session within {PATIENCE} s")
            for number in self._due(now):
                self._initiate(number, now)
            with suppress(BlockingIOError):
                while True:
                    self._take(self.socket.recv(256))

    def _due(self, now: float) -> Iterator[int]:
        for number in sorted(self._left)[:WINDOW]:
            sent = self._sent[number]
            if sent is None or now > sent[1] + AGAIN_AFTER:
                yield number

    def _initiate(self, number: int, now: float) -> None:
        stamp = tai64n.encode(time.time_ns())
        body, sent = handshake.initiate(
            self._identities[number], self._remotes[number], number + 1, os.urandom(32), stamp
        )
        self._sent[number] = sent, now
        self._send(number, self._macs[number].seal(body, now))

    def _send(self, number: int, message: bytes) -> None:
        self.socket.sendmsg([message], [pack_source(number)], 0, self._place)

    def _take(self, data: bytes) -> None:
        with suppress(BadMessage):  # such as a keepalive
            message = parse_handshake_untrusted(data)
            number = getattr(message, "receiver", 0) - 1
            sent = self._sent[number] if 0 <= number < len(self._sent) else None
            if sent is None or number not in self._left:
                return
            if isinstance(message, CookieReply):
                self._macs[number].accept_cookie_reply(message, time.monotonic())
                self._sent[number] = None
            elif isinstance(message, Response):
                keys, _ = handshake.read_response_untrusted(
                    self._identities[number], self._remotes[number], sent[0], message, stamped=False
                )
                self._ciphers[number + 1] = ChaCha20Poly1305(keys.receive)
                header = TRANSPORT_HEADER.pack(c.TYPE_TRANSPORT, message.sender, 0)
                self._send(number, header + ChaCha20Poly1305(keys.send).encrypt(_NONCE + bytes(8), b"", b""))
                self._left.discard(number)

    def count(self, size: int) -> dict[str, int]:
        """Counts packets of at least `size` bytes until SIGTERM has come and no more do. Opens each peer's first.

        Raises InvalidTag for a packet that isn't authentic.
        """
        stopped = Stopped()
        receive_within(self.socket, SETTLE)
        print("ready", flush=True)
        received, buffer, ciphers = 0, bytearray(2048), self._ciphers
        into, unpack = self.socket.recv_into, TRANSPORT_HEADER.unpack_from
        while True:
            try:
                while True:
                    length = into(buffer)
                    if length < size:
                        continue
                    received += 1
                    _, index, counter = unpack(buffer)
                    if index in ciphers:
                        sealed = bytes(buffer[c.TRANSPORT_HEADER_LENGTH : length])
                        ciphers.pop(index).decrypt(_NONCE + counter.to_bytes(8, "little"), sealed, b"")
            except BlockingIOError:
                if stopped.asked:
                    return {"received": received, "reordered": 0, "peers": len(self._sent) - len(ciphers)}


def main(arguments: list[str]) -> None:
    target, seed, count, host, port, size = arguments
    crowd = Crowd(bytes.fromhex(target), bytes.fromhex(seed), int(count), (host, int(port)))
    crowd.shake_hands()
    print(json.dumps(crowd.count(int(size))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
