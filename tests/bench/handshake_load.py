"""Sends valid initiations of many peers, up to a window at once, each from its peer's own address.

python -m tests.bench.handshake_load run FILE TARGET PORT FIRST COUNT SECONDS   prints JSON

`write_pool` makes the initiations beforehand, so the run measures only the answers.
"""

import json
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2s
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from stagewire.proto import handshake, tai64n
from stagewire.proto.cookie import MacSealer
from stagewire.proto.handshake import Identity, Remote
from stagewire.proto.messages import BadMessage, CookieReply, parse_handshake_untrusted

WINDOW: Final = 96
"""Initiations that wait at a time: enough to keep the gateway busy, too few to make it ask for cookies."""
LOST_AFTER: Final = 0.5
SOURCES: Final = IPv4Address("10.128.0.0")
"""Peer number n speaks from this address plus n: under load a source may start only 20 handshakes a second."""
_BODY: Final = 116
_ENTRY: Final = struct.Struct(f"<H{_BODY}s")
_IP_PKTINFO: Final = 8
"""The socket module names it only since Python 3.14."""
_INFO: Final = struct.Struct("!I4s4s")


def private_key(seed: bytes, number: int) -> bytes:
    """Derives the private key of peer `number`."""
    return blake2s(number.to_bytes(4, "little"), key=seed).digest()


def pack_source(number: int) -> tuple[int, int, bytes]:
    """Returns what sendmsg(2) needs to send from the address of peer `number`."""
    return socket.IPPROTO_IP, _IP_PKTINFO, _INFO.pack(0, (SOURCES + number).packed, bytes(4))


def write_pool(path: Path, target: bytes, seed: bytes, peers: int, count: int) -> None:
    """Makes `count` initiations to the public key `target`, of each peer in turn, each newer than the one before."""
    identities = [Identity.from_private_bytes(private_key(seed, number)) for number in range(peers)]
    remotes = [Remote.of(identity, target) for identity in identities]
    entries, begun = [], time.time_ns()
    for position in range(count):
        number = position % peers
        ephemeral = blake2s(position.to_bytes(4, "little"), key=seed, person=b"once").digest()
        stamp = tai64n.encode(begun + position * tai64n.STEP_NS)
        body, _ = handshake.initiate(identities[number], remotes[number], position + 1, ephemeral, stamp)
        entries.append(_ENTRY.pack(number, body))
    path.write_bytes(b"".join(entries))


class Flood:
    """Keeps the window full of initiations."""

    def __init__(self, pool: Sequence[tuple[int, bytes]], first: int, target: bytes, place: tuple[str, int]) -> None:
        self._pool, self._next, self._place = deque(pool), first + 1, place
        self._macs: dict[int, MacSealer] = {}
        self._target = target
        self._waiting: dict[int, tuple[float, int]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(("", 0))
        self.answered = self.cookies = self.lost = self.sent = 0
        self.delays: list[float] = []

    def run(self, seconds: float) -> float:
        """Sends for `seconds`, or until the pool is empty. Returns the time it needed."""
        begun = time.monotonic()
        while (now := time.monotonic()) < begun + seconds and (self._pool or self._waiting):
            self._receive(now)
            self._forget(now)
            while self._pool and len(self._waiting) < WINDOW:
                self._send(now)
            if len(self._waiting) >= WINDOW or not self._pool:
                time.sleep(0.0002)
        return time.monotonic() - begun

    def _send(self, now: float) -> None:
        number, body = self._pool.popleft()
        index, self._next = self._next, self._next + 1
        macs = self._macs.get(number)
        if macs is None:
            macs = self._macs[number] = MacSealer(self._target)
        self._waiting[index] = (now, number)
        self._socket.sendmsg([macs.seal(body, now)], [pack_source(number)], 0, self._place)
        self.sent += 1

    def _receive(self, now: float) -> None:
        with suppress(BlockingIOError):
            while True:
                self._take(self._socket.recv(256), now)

    def _take(self, data: bytes, now: float) -> None:
        try:
            message = parse_handshake_untrusted(data)
        except BadMessage:
            return  # the gateway also sends keepalives and rekeying initiations
        if isinstance(message, CookieReply):
            waited = self._waiting.pop(message.receiver, None)
            if waited is not None:
                self.cookies += 1
                with suppress(BadMessage):
                    self._macs[waited[1]].accept_cookie_reply(message, now)
            return
        receiver = getattr(message, "receiver", 0)
        waited = self._waiting.pop(receiver, None)
        if waited is not None:
            self.answered += 1
            self.delays.append(now - waited[0])

    def _forget(self, now: float) -> None:
        while self._waiting:
            index, (at, _) = next(iter(self._waiting.items()))
            if now - at < LOST_AFTER:
                return
            del self._waiting[index]
            self.lost += 1


def main(arguments: list[str]) -> None:
    path, target, host, port, first, count, seconds = arguments
    start, end = int(first), int(first) + int(count)
    data = Path(path).read_bytes()[start * _ENTRY.size : end * _ENTRY.size]
    flood = Flood(list(_ENTRY.iter_unpack(data)), start, bytes.fromhex(target), (host, int(port)))
    took = flood.run(float(seconds))
    answer = {
        "answered": flood.answered,
        "sent": flood.sent,
        "cookies": flood.cookies,
        "lost": flood.lost,
        "seconds": took,
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
