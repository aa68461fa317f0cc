"""Opens the UDP sockets of an interface, IPv4 and IPv6 on one port, and marked sockets for look-ups.

Beside each of the two, more sockets on the same port take the handshakes (`queues`).

conn-service only reads and sends. This module does what needs a capability or happens once. It sets the port (below 1,024
too), the mark (SO_MARK), and buffers beyond the host's limit. It lets routers fragment outer packets, and asks for ancillary
data that names the contacted address of ours (ip(7) IP_PKTINFO, RFC 3542 IPV6_PKTINFO).
"""

import errno
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from host_service import queues
from stagewire.control.socket_door import TCP4, TCP6, UDP4, UDP4_QUEUES, UDP6, UDP6_QUEUES

RECEIVE_BUFFER: Final = 7 << 20
"""Bytes, as wireguard-go asks for. Only the kernel's queue may drop datagrams."""
_ATTEMPTS: Final = 10
_IP_PKTINFO: Final = 8
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_DONT: Final = 0
_SO_RCVBUFFORCE: Final = 33
_SO_SNDBUFFORCE: Final = 32
_KINDS: Final = {
    UDP4: (socket.AF_INET, socket.SOCK_DGRAM),
    UDP6: (socket.AF_INET6, socket.SOCK_DGRAM),
    TCP4: (socket.AF_INET, socket.SOCK_STREAM),
    TCP6: (socket.AF_INET6, socket.SOCK_STREAM),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Holds the sockets of one port; on a host without IPv6, only `four` and its queues."""

    four: socket.socket
    six: socket.socket | None
    queues: Mapping[str, socket.socket] = field(default_factory=dict)
    """Sockets for handshakes, by name; none where the kernel can't sort datagrams."""

    @classmethod
    def open(cls, port: int, mark: int) -> Self:
        """Opens both sockets. Port 0 picks a port that is free in both families. Raises OSError."""
        for _ in range(_ATTEMPTS):
            four = _open(socket.AF_INET, mark)
            try:
                four.bind(("", port))
                six = _open_six(four.getsockname()[1], mark)
            except OSError as error:
                four.close()
                if port == 0 and error.errno == errno.EADDRINUSE:
                    continue  # free for IPv4, taken for IPv6: pick another port
                raise
            return cls(four, six, _open_queues(four, six, mark))
        raise OSError(errno.EADDRINUSE, "no port is free in both families")

    @classmethod
    def adopt(cls, descriptors: Mapping[str, int]) -> Self | None:
        """Takes the sockets of another process if they are a pair. Otherwise closes them and returns None."""
        opened: dict[str, socket.socket] = {}
        for name, descriptor in descriptors.items():
            with suppress(OSError):
                opened[name] = socket.socket(fileno=descriptor)
        four, six = opened.get(UDP4), opened.get(UDP6)
        queues = {name: each for name, each in opened.items() if name not in {UDP4, UDP6}}
        if four is not None and _are_pair(four, six) and _are_queues(four, six, queues):
            return cls(four, six, queues)
        for each in opened.values():
            each.close()
        return None

    @property
    def port(self) -> int:
        return int(self.four.getsockname()[1])

    @property
    def descriptors(self) -> dict[str, int]:
        """Returns the descriptors by name, UDP4 and UDP6."""
        return {name: each.fileno() for name, each in self._all()}

    def _all(self) -> Iterator[tuple[str, socket.socket]]:
        yield UDP4, self.four
        if self.six is not None:
            yield UDP6, self.six
        yield from self.queues.items()

    @property
    def mark(self) -> int:
        return self.four.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)

    def set_mark(self, mark: int) -> None:
        """Marks later datagrams, whichever process sends them; 0 for no mark. Raises OSError."""
        for _, each in self._all():
            each.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)

    def close(self) -> None:
        """Closes our copies."""
        for _, each in self._all():
            each.close()


def fresh(kinds: Iterable[str], mark: int) -> dict[str, socket.socket]:
    """Opens a marked socket of each kind, neither bound nor connected.

    Leaves out a family that the host lacks, and what isn't for look-ups.
    """
    made: dict[str, socket.socket] = {}
    for kind in kinds:
        if kind not in _KINDS:
            continue
        family, of = _KINDS[kind]
        with suppress(OSError):
            opened = socket.socket(family, of)
            try:
                if mark:
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            except OSError:  # without the mark, its packets would enter the tunnel
                opened.close()
                raise
            made[kind] = opened
    return made


def _are_pair(four: socket.socket, six: socket.socket | None) -> bool:
    both = ((four, socket.AF_INET), (six, socket.AF_INET6))
    return all(_is_at(each, family, four) for each, family in both if each is not None)


def _are_queues(four: socket.socket, six: socket.socket | None, found: Mapping[str, socket.socket]) -> bool:
    """Tells whether these are all queues of both sockets, or none at all."""
    expected = dict.fromkeys(UDP4_QUEUES, socket.AF_INET)
    if six is not None:
        expected |= dict.fromkeys(UDP6_QUEUES, socket.AF_INET6)
    return not found or (
        found.keys() == expected.keys() and all(_is_at(each, expected[name], four) for name, each in found.items())
    )


def _is_at(opened: socket.socket, family: int, four: socket.socket) -> bool:
    """Tells whether this is a UDP socket on the same port as `four`."""
    try:
        kind = (opened.family, opened.type, opened.proto)
        return (
            kind == (family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
            and 0 != opened.getsockname()[1] == four.getsockname()[1]
        )
    except OSError:
        return False


def _open_queues(four: socket.socket, six: socket.socket | None, mark: int) -> dict[str, socket.socket]:
    """Opens the queues of both sockets. Returns none at all where the kernel can't sort: then the two take everything."""
    made: dict[str, socket.socket] = {}
    try:
        for first, names in ((four, UDP4_QUEUES), (six, UDP6_QUEUES)):
            if first is not None:
                queues.begin(first)
                for name in names:
                    made[name] = _open(first.family, mark, queues.RECEIVE_BUFFER)
                    queues.join(made[name], first)
                queues.sort(first)
    except OSError:
        for each in made.values():
            each.close()
        return {}
    return made


def _open_six(port: int, mark: int) -> socket.socket | None:
    try:
        six = _open(socket.AF_INET6, mark)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        six.bind(("", port))
    except OSError as error:
        six.close()
        if error.errno == errno.EADDRNOTAVAIL:  # every interface has IPv6 disabled
            return None
        raise
    return six


def _open(family: int, mark: int, room: int = RECEIVE_BUFFER) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        _set_options(opened, mark, room)
    except OSError:
        opened.close()
        raise
    return opened


def _set_options(opened: socket.socket, mark: int, room: int) -> None:
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        # As with the kernel's WireGuard, routers may fragment outer packets: no ICMP reaches the inner sender.
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
    for forced, polite in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, room)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, polite, room)
    if mark:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
