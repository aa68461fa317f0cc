"""The two UDP sockets of an interface, IPv4 and IPv6 on one port, with the address of ours on every datagram.

The address that a datagram was sent to travels in its endpoint (`source`), so that the answer leaves from it: a gateway
with several addresses would otherwise answer from another than was asked, and the other side's firewall drop it.
IP_PKTINFO is ip(7), IPV6_PKTINFO is RFC 3542.

How long we stick to it:

- By which interface the answer leaves is the routing table's to say, given that source: rules by source address hold.
- When the interface is another than it was for the first answer to this endpoint (a better route came, or the old one
  went), the source goes with it, and the routing table chooses one that belongs to the new way. When the old way is back,
  so is the old source.
- When the kernel refuses to send from it (the address is gone), the packet leaves from another at once, and so do the next.
- When nobody answers, the worker or key-service takes it out of the endpoint (handshake retries, as the kernel does).

The kernel's WireGuard compares with the interface that the datagram came in by instead. With two uplinks and one default
route it so answers from the other uplink's address than was contacted, which the client's NAT drops; operators then have
to write rules by source. IPv6 it doesn't compare at all, and a better route keeps a source that may not be valid on it.
wireguard-go binds the answer to the interface that the datagram came in by, even when no route leads back that way. An
IPv6 link-local address is the one case in which the interface is part of the address, and binds.
"""

import errno
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, Protocol

from stagewire.proto.endpoint import Endpoint, unpack_untrusted
from stagewire.proto.offload.block import Block

RECEIVE_BUFFER: Final = 7 << 20
"""Bytes, as wireguard-go asks for; the kernel's queue is the one that may drop."""
_NAME4: Final = "udp4"
_NAME6: Final = "udp6"
_IP_PKTINFO: Final = 8
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_DONT: Final = 0
_SO_RCVBUFFORCE: Final = 33
_SO_SNDBUFFORCE: Final = 32
_INFO4: Final = struct.Struct("=I4s4s")  # interface, source address, header destination
_INFO6: Final = struct.Struct("=16sI")
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SEGMENT: Final = struct.Struct("=H")
_ANCILLARY: Final = 128

MAX_PLACES: Final = 4096
"""Endpoints whose two forms are kept at hand; with more peers than that the dictionary starts anew."""

STALE_SOURCE: Final = (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV)
"""What the kernel says when the address of ours that was asked for is gone."""

_Ancillary = list[tuple[int, int, bytes]]
_Address = Any
"""What the socket module takes and gives: (host, port) or (host, port, flow, scope)."""


class Ways(Protocol):
    """`egress.Egress`."""

    def interface(self, endpoint: Endpoint, mark: int, port: int) -> int | None:
        """By which the kernel would send. Raises OSError when that would be our own tunnel."""


class Sockets:
    """The IPv4 and the IPv6 socket of one port; on a host without IPv6, the first alone. Endpoints are packed."""

    def __init__(
        self,
        port: int,
        fwmark: int,
        ways: Ways,
        inherited: Mapping[str, int] = MappingProxyType({}),
        *,
        offload: bool = True,
    ) -> None:
        """Port 0 picks one that is free in both families, or takes what is `inherited`: descriptors by name, which are
        ours from here on, and are closed when they are for another port. `offload`: runs are sent and received whole,
        as far as the kernel can. Raises OSError.
        """
        four, six = _adopt(port, inherited) or _bind(port, fwmark)
        self._ways = ways
        self._fwmark = fwmark
        self.port: int = four.getsockname()[1]
        self.all = [four] if six is None else [four, six]
        self._six = six
        self._four = four
        self._from: dict[tuple[_Address, bytes], bytes] = {}
        self._to: dict[bytes, tuple[socket.socket, _Ancillary, _Address]] = {}
        self._first_way: dict[bytes, int] = {}
        """The interface by which the first answer to an endpoint with a source left."""
        self._whole = offload
        self._in_pieces: dict[bytes, int] = {}
        """The size of datagrams from which on the kernel sends none to an endpoint by the run."""
        for opened in self.all:
            with suppress(OSError):  # Linux 5.0
                opened.setsockopt(_SOL_UDP, _UDP_GRO, int(offload))
        if inherited:
            self.set_mark(fwmark)

    @property
    def descriptors(self) -> dict[str, int]:
        """By name, for whoever comes after us."""
        return {name: opened.fileno() for name, opened in ((_NAME4, self._four), (_NAME6, self._six)) if opened}

    def close(self) -> None:
        """Closes both."""
        for opened in self.all:
            opened.close()

    def set_mark(self, fwmark: int) -> None:
        """Changes the mark of what is sent from now on; 0 for none. Raises OSError."""
        for opened in self.all:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
        self._fwmark = fwmark
        self.routes_changed()

    def routes_changed(self) -> None:
        """Looks anew, when it is next sent to, how each place is reached."""
        self._to.clear()
        self._in_pieces.clear()

    def receive(self, opened: socket.socket, room: memoryview) -> tuple[int, int, bytes]:
        """(bytes, size of each datagram but the last, endpoint they are from) of one datagram, or of a run that the kernel
        put together. Raises OSError (BlockingIOError when there is none).

        Hot: 3.5 us on loopback, of which 2.3 us are the system call; 14 us for a run of 62 KB.
        """
        length, ancillary, _, address = opened.recvmsg_into([room], _ANCILLARY)
        size, info = length, b""
        for level, _, data in ancillary:
            if level == _SOL_UDP:
                size = int.from_bytes(data, sys.byteorder)
            else:
                info = data
        key = (address, info)
        endpoint = self._from.get(key)
        if endpoint is None:
            if len(self._from) >= MAX_PLACES:
                self._from.clear()
            endpoint = self._from[key] = _endpoint(opened.family, *key).pack()
        return length, size, endpoint

    def send(self, data: bytes, endpoint: bytes) -> None:
        """Sends one datagram, from the address of ours that the endpoint names, if any. Raises OSError.

        Hot: 5.5 us on loopback, nearly all of it the system call.
        """
        opened, ancillary, address = self._to.get(endpoint) or self._known(endpoint)
        opened.sendmsg([data], ancillary, 0, address)

    def goes_whole(self, size: int, endpoint: bytes) -> bool:
        """Whether it makes sense to send datagrams of `size` bytes by the run."""
        return self._whole and size < self._in_pieces.get(endpoint, size + 1)

    def send_run(self, run: Block, endpoint: bytes) -> None:
        """Sends a run in one call (UDP GSO). Raises OSError, and then has sent none of it.

        Hot: 30 us for 62 KB over a veth pair, which is what two lone datagrams take.
        """
        opened, ancillary, address = self._to.get(endpoint) or self._known(endpoint)
        segment = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(run.size))
        opened.sendmsg([run.data], [*ancillary, segment], 0, address)

    def send_in_pieces(self, size: int, endpoint: bytes) -> None:
        """The kernel won't send datagrams of this size there by the run: the link has a smaller MTU, or can't at all."""
        if len(self._in_pieces) >= MAX_PLACES:
            self._in_pieces.clear()
        self._in_pieces[endpoint] = min(size, self._in_pieces.get(endpoint, size))

    def _known(self, endpoint: bytes) -> tuple[socket.socket, _Ancillary, _Address]:
        if len(self._to) >= MAX_PLACES:
            self._to.clear()
        known = self._to[endpoint] = self._way(endpoint)
        return known

    def answer(self, data: bytes, endpoint: bytes) -> None:
        """Sends one datagram to somebody of whom nothing is to be remembered. Raises OSError."""
        opened, ancillary, address = self._to.get(endpoint) or self._destination(endpoint)
        opened.sendmsg([data], ancillary, 0, address)

    def forget_source(self, endpoint: bytes) -> None:
        """The address of ours that it names is gone: the routing table chooses another, until routes change."""
        opened, _, address = self._destination(endpoint)
        self._to[endpoint] = opened, [], address

    def socket_of(self, endpoint: bytes) -> socket.socket:
        """The one that reaches an endpoint. Raises OSError when there is none."""
        return self._destination(endpoint)[0]

    def _way(self, packed: bytes) -> tuple[socket.socket, _Ancillary, _Address]:
        """How a place is reached now, without the source when that belongs to another way. Raises OSError."""
        opened, ancillary, address = self._destination(packed)
        endpoint = unpack_untrusted(packed)
        # An endpoint in the tunnel itself would wrap each packet again and again, until there are fragments of fragments.
        now = self._ways.interface(endpoint, self._fwmark, self.port)
        if not ancillary or endpoint.source_interface or now is None:  # None: sending will tell why
            return opened, ancillary, address
        if len(self._first_way) >= MAX_PLACES:
            self._first_way.clear()
        stays = self._first_way.setdefault(packed, now) == now
        return opened, ancillary if stays else [], address

    def _destination(self, packed: bytes) -> tuple[socket.socket, _Ancillary, _Address]:
        try:
            endpoint = unpack_untrusted(packed)
        except ValueError:
            raise OSError(errno.EINVAL, "no endpoint") from None
        interface = endpoint.source_interface
        if len(endpoint.address) == 4:
            info = (socket.IPPROTO_IP, _IP_PKTINFO, _INFO4.pack(interface, endpoint.source, b""))
            return self._four, [info] if endpoint.source else [], (str(endpoint.host), endpoint.port)
        if self._six is None:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6 here")
        info = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _INFO6.pack(endpoint.source, interface))
        address = (str(endpoint.host), endpoint.port, 0, endpoint.scope)
        return self._six, [info] if endpoint.source else [], address


def _endpoint(family: int, address: _Address, info: bytes) -> Endpoint:
    if family == socket.AF_INET:
        # Any interface will do for the answer, so that it takes a better route when there is one.
        source = _INFO4.unpack(info)[1] if info else b""
        return Endpoint(socket.inet_aton(address[0]), address[1], 0, source)
    source, interface = _INFO6.unpack(info) if info else (b"", 0)
    scope = address[3]
    packed = socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
    return Endpoint(packed, address[1], scope, source, interface if scope else 0)


def _adopt(port: int, inherited: Mapping[str, int]) -> tuple[socket.socket, socket.socket | None] | None:
    opened = {name: socket.socket(fileno=descriptor) for name, descriptor in inherited.items()}
    four, six = opened.get(_NAME4), opened.get(_NAME6)
    if four is not None and port in {0, four.getsockname()[1]}:
        return four, six
    for each in opened.values():
        each.close()
    return None


def _bind(port: int, fwmark: int) -> tuple[socket.socket, socket.socket | None]:
    for _ in range(10):
        four = _open(socket.AF_INET, fwmark)
        try:
            four.bind(("", port))
            six = _bind_six(four.getsockname()[1], fwmark)
        except OSError as error:
            four.close()
            if port == 0 and error.errno == errno.EADDRINUSE:
                continue  # free for IPv4, taken for IPv6: pick another
            raise
        return four, six
    raise OSError(errno.EADDRINUSE, "no port is free in both families")


def _bind_six(port: int, fwmark: int) -> socket.socket | None:
    try:
        six = _open(socket.AF_INET6, fwmark)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        six.bind(("", port))
    except OSError:
        six.close()
        raise
    return six


def _open(family: int, fwmark: int) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        # The outer packet may be cut in pieces on its way, as the kernel's WireGuard allows: the inner sender hears no ICMP.
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
    for forced, polite in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, RECEIVE_BUFFER)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, polite, RECEIVE_BUFFER)
    if fwmark:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
    return opened
