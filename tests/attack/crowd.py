"""Plays 10,000 peers that all initiate at once, each from an address of its own, and try again as WireGuard's do (line F7).

python -m tests.attack.crowd POOL TARGET ADDRESS PORT PEERS SECONDS        prints JSON when all have a session, or at the end

`tests.bench.handshake_load.write_pool` makes the initiations beforehand: TRIES for each peer.
"""

import heapq
import json
import random
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.bench.handshake_load import _BODY, _ENTRY, _INFO, _IP_PKTINFO, SOURCES

from stagewire.proto import constants as c
from stagewire.proto.cookie import MacSealer
from stagewire.proto.messages import BadMessage, CookieReply, Response, parse_handshake_untrusted

TRIES: Final = 8
_BUFFER: Final = 32 << 20


class Crowd:
    """Holds all peers' initiations, and who has an answer."""

    def __init__(self, pool: bytes, target: bytes, place: tuple[str, int], peers: int) -> None:
        self._bodies = [body for _, body in _ENTRY.iter_unpack(pool)]
        self._peers, self._place = peers, place
        self._macs = [MacSealer(target) for _ in range(peers)]
        self._tried = [0] * peers
        self.answered: dict[int, float] = {}
        """When each peer got its response, in s from the beginning."""
        self.sent = self.cookies = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.setblocking(False)
        self._socket.bind(("", 0))

    def run(self, seconds: float) -> float:
        """Sends until every peer is answered, or for `seconds`. Returns the time it needed."""
        luck = random.Random(7)
        begun = time.monotonic()
        due = [(begun + number / self._peers, number) for number in range(self._peers)]  # all within a second
        while len(self.answered) < self._peers and (now := time.monotonic()) < begun + seconds:
            self._receive(now, begun)
            while due and due[0][0] <= now:
                _, number = heapq.heappop(due)
                if number not in self.answered and self._tried[number] < TRIES:
                    self._send(number, now)
                    heapq.heappush(due, (now + c.REKEY_TIMEOUT + luck.random() * c.REKEY_TIMEOUT_JITTER_MAX, number))
                if not self.sent % 16:
                    break
            time.sleep(0.0002)
        return time.monotonic() - begun

    def _send(self, number: int, now: float) -> None:
        position = self._tried[number] * self._peers + number
        self._tried[number] += 1
        info = [(socket.IPPROTO_IP, _IP_PKTINFO, _INFO.pack(0, (SOURCES + number).packed, bytes(4)))]
        with suppress(BlockingIOError):
            self._socket.sendmsg([self._macs[number].seal(self._bodies[position], now)], info, 0, self._place)
        self.sent += 1

    def _receive(self, now: float, begun: float) -> None:
        with suppress(BlockingIOError):
            while True:
                self._take(self._socket.recv(256), now, begun)

    def _take(self, data: bytes, now: float, begun: float) -> None:
        try:
            message = parse_handshake_untrusted(data)
            # The pool numbers its initiations from 1, and puts the number into each as its sender's index.
            number = (message.receiver - 1) % self._peers if isinstance(message, (Response, CookieReply)) else None
            if isinstance(message, CookieReply) and number is not None:
                self.cookies += 1
                self._macs[number].accept_cookie_reply(message, now)
            elif number is not None:
                self.answered.setdefault(number, now - begun)
        except BadMessage:
            pass  # an initiation or a keepalive of the gateway's, or a cookie for an older try


def main(arguments: list[str]) -> None:
    pool, target, host, port, peers, seconds = arguments
    data = Path(pool).read_bytes()
    assert len(data) == int(peers) * TRIES * _ENTRY.size, f"{TRIES} initiations of {_BODY} bytes for each peer"
    crowd = Crowd(data, bytes.fromhex(target), (host, int(port)), int(peers))
    took = crowd.run(float(seconds))
    late = max(crowd.answered.values(), default=0.0)
    answer = {
        "answered": len(crowd.answered),
        "sent": crowd.sent,
        "cookies": crowd.cookies,
        "seconds": took,
        "last": late,
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
