"""Floods a gateway with one kind of datagram, from a process of its own: the network's side of lines F1 to F3.

    with Flood(namespace, "initiations", (address, port), public_key, rate=20_000) as flood:
        …
    print(flood.sent, "datagrams at", flood.rate, "a second")

All datagrams are made before the flood begins, and leave many in a call (sendmmsg(2)). So a flood of 20,000 a second costs
little beyond what its datagrams cost the kernel. `rate` None sends as fast as the machine can.

python -m tests.attack.floods KIND ADDRESS PORT PUBLIC_KEY RATE       floods until SIGTERM, then prints JSON
"""

import base64
import ctypes
import json
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import blake2s
from ipaddress import ip_address
from types import TracebackType
from typing import Final, Self

from lab.namespaces import Namespace, stop
from stagewire.proto import constants as c
from stagewire.proto.cookie import mac1, mac1_key

POOL: Final = 1 << 16
"""Different datagrams of a flood; then it repeats them, under other sources if it has many."""
TICK: Final = 0.001
"""s between two calls."""
MOST: Final = 1024
"""Datagrams of one call, as the kernel allows."""
_MESSAGE: Final = struct.Struct("@PIPNPNi0PI0P")
_PIECE: Final = struct.Struct("@PN")
_libc: Final = ctypes.CDLL(None, use_errno=True)

Maker = Callable[[random.Random, bytes], bytes]


def _sealed(key: bytes, message: bytes) -> bytes:
    return message + mac1(mac1_key(key), message) + bytes(c.MAC_LENGTH)


def _initiation(luck: random.Random, key: bytes) -> bytes:
    return _sealed(key, b"\1\0\0\0" + luck.randbytes(112))


def _bad_mac1(luck: random.Random, _key: bytes) -> bytes:
    return b"\1\0\0\0" + luck.randbytes(128) + bytes(16)


def _claimed_cookie(luck: random.Random, key: bytes) -> bytes:
    return _initiation(luck, key)[:-16] + luck.randbytes(16)


def _response(luck: random.Random, key: bytes) -> bytes:
    return _sealed(key, b"\2\0\0\0" + luck.randbytes(56))


def _cookie_reply(luck: random.Random, _key: bytes) -> bytes:
    return b"\3\0\0\0" + luck.randbytes(60)


def _transport(luck: random.Random, _key: bytes) -> bytes:
    """Names worker 0 by its receiver index."""
    return b"\4\0\0\0\0" + luck.randbytes(3) + luck.randbytes(124)


def _garbage(luck: random.Random, _key: bytes) -> bytes:
    return luck.randbytes(luck.randrange(1, 1400))


KINDS: Final[dict[str, Maker]] = {
    "initiations": _initiation,
    "spoofed initiations": _initiation,
    "bad mac1": _bad_mac1,
    "claimed cookies": _claimed_cookie,
    "responses": _response,
    "cookie replies": _cookie_reply,
    "transport messages": _transport,
    "garbage": _garbage,
}
"""What each datagram is. All have random contents, and all but "bad mac1" a good mac1 where their type has any."""
SPOOFED: Final = frozenset({"spoofed initiations"})
"""Kinds whose sources are random addresses of IPv4."""


class Flood:
    """Floods a destination from a namespace while its context lasts."""

    def __init__(
        self,
        namespace: Namespace,
        kind: str,
        destination: tuple[str, int],
        public_key: bytes,
        rate: float | None = 20_000,
    ) -> None:
        self._namespace = namespace
        self._arguments = (kind, destination[0], str(destination[1]), base64.b64encode(public_key).decode())
        self._wanted = rate
        self.sent = 0
        self.rate = 0.0
        """Datagrams a second, once the flood is over."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.attack.floods", *self._arguments, str(self._wanted or 0)]
        self._process = subprocess.Popen(self._namespace.entering(command), stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        assert self._process.stdout is not None
        self._process.terminate()
        said = self._process.stdout.read()
        stop(self._process)
        self._process.stdout.close()
        if kind is None:
            self.sent, seconds = json.loads(said)
            self.rate = self.sent / seconds


class Datagrams:
    """Lies ready for sendmmsg: each with its own bytes, all to one destination."""

    def __init__(self, datagrams: Sequence[bytes], destination: tuple[str, int]) -> None:
        self._address = struct.pack("=HH", socket.AF_INET, socket.htons(destination[1])) + bytes(12)
        if ":" in destination[0]:
            packed = ip_address(destination[0]).packed
            self._address = struct.pack("=HHI", socket.AF_INET6, socket.htons(destination[1]), 0) + packed + bytes(4)
        else:
            self._address = self._address[:4] + ip_address(destination[0]).packed + bytes(8)
        self._data = b"".join(datagrams)
        self._count = len(datagrams)
        where = ctypes.addressof(ctypes.c_char.from_buffer(self._keep(self._data)))
        name = ctypes.addressof(ctypes.c_char.from_buffer(self._keep(self._address)))
        pieces, headers = bytearray(_PIECE.size * self._count), bytearray(_MESSAGE.size * self._count)
        first = ctypes.addressof(ctypes.c_char.from_buffer(pieces))
        for number, datagram in enumerate(datagrams):
            _PIECE.pack_into(pieces, number * _PIECE.size, where, len(datagram))
            piece = first + number * _PIECE.size
            _MESSAGE.pack_into(headers, number * _MESSAGE.size, name, len(self._address), piece, 1, 0, 0, 0, 0)
            where += len(datagram)
        self._pieces, self._headers = pieces, headers
        self._first = ctypes.addressof(ctypes.c_char.from_buffer(headers))
        self._next = 0

    def _keep(self, data: bytes) -> bytearray:
        kept = bytearray(data)
        self._kept = [*getattr(self, "_kept", []), kept]
        return kept

    def send(self, opened: socket.socket, count: int) -> int:
        """Sends so many of the next ones, fewer at the end. Returns how many."""
        count = min(count, MOST, self._count - self._next)
        at = ctypes.c_void_p(self._first + self._next * _MESSAGE.size)
        sent = int(_libc.sendmmsg(opened.fileno(), at, count, 0))
        self._next = (self._next + count) % self._count
        return max(sent, 0)


def spoofed(datagram: bytes, destination: tuple[str, int], luck: random.Random) -> bytes:
    """Returns a datagram with IP and UDP headers of a random source."""
    source = struct.pack("!BBH", luck.randrange(11, 120), luck.randrange(256), luck.randrange(1 << 16))
    udp = struct.pack("!HHHH", luck.randrange(1024, 1 << 16), destination[1], 8 + len(datagram), 0)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(datagram), 0, 0, 64, socket.IPPROTO_UDP, 0)
    return header + source + ip_address(destination[0]).packed + udp + datagram


def flood(kind: str, destination: tuple[str, int], public_key: bytes, rate: float) -> tuple[int, float]:
    """Sends until SIGTERM. Returns how many datagrams in how many seconds."""
    luck = random.Random(blake2s(kind.encode()).digest())
    made = [KINDS[kind](luck, public_key) for _ in range(POOL)]
    family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    if kind in SPOOFED:
        made = [spoofed(datagram, destination, luck) for datagram in made]
        opened = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    else:
        opened = socket.socket(family, socket.SOCK_DGRAM)
    datagrams = Datagrams(made, destination)
    ended = False

    def end(_number: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    begun, sent, clock = time.monotonic(), 0, time.monotonic
    while not ended:
        if not rate:
            sent += datagrams.send(opened, MOST)
            continue
        owed = int((clock() - begun) * rate) - sent
        if owed > rate * 0.1:  # it got no CPU for long: skip what it owes
            begun += owed / rate
        elif owed:
            sent += datagrams.send(opened, owed)
        time.sleep(TICK)
    return sent, time.monotonic() - begun


def main(arguments: list[str]) -> None:
    kind, address, port, key, rate = arguments
    print(json.dumps(flood(kind, (address, int(port)), base64.b64decode(key), float(rate))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
