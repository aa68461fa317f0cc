"""Receives and sends by an interface's two UDP sockets, and keeps track of our own address for each endpoint.

host-service opens and marks the sockets, IPv4 and IPv6 on one port (`control.socket_door`). Where the kernel can sort,
further sockets take the handshakes; `handshakes` reads those.

An endpoint carries the address of ours that a datagram reached (`source`). The answer leaves from that address.
Otherwise a gateway with several addresses might answer from another, and the peer's firewall would drop the answer.
IP_PKTINFO is in ip(7), IPV6_PKTINFO in RFC 3542.

How long a source stays:

- The routing table chooses the interface, given that source; so rules by source address hold.
- The first answer to an endpoint fixes the interface that the source goes with. While routes lead to another interface, the
  routing table chooses the source. When they lead back, the old source is used again.
- If the kernel refuses a source, because the address is gone, this datagram and the next leave from another.
- If no peer answers, the worker or key-service takes the source out of the endpoint, as the kernel's WireGuard does.

The kernel's WireGuard instead compares with the interface that the datagram came in by. With two uplinks and one default
route, it answers from the wrong uplink's address, and the client's NAT drops the answer. Operators then need rules by
source. For IPv6 it compares nothing, and keeps a source that may be invalid on a better route. wireguard-go binds the answer
to the interface that the datagram came in by, even without a route back. Here only an IPv6 link-local address binds, as the
interface is part of it.
"""

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from stagewire.control.socket_door import UDP4, UDP6
from stagewire.limits import MAX_PACKET
from stagewire.loop import boot_time
from stagewire.proto.endpoint import Endpoint, place_of, unpack_untrusted, with_limit, without_source
from stagewire.proto.packets.block import Block
from stagewire.proto.packets.carried import CUT
from stagewire.proto.packets.fields import UDP_HEADER, V4_HEADER, V6_HEADER

if TYPE_CHECKING:  # it may not be built
    from stagewire.linux.udp_trains import Way as ReadyWay

_IP_PKTINFO: Final = 8
_INFO4: Final = struct.Struct("=I4s4s")  # interface, source address, header destination
_INFO6: Final = struct.Struct("=16sI")
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_SO_TIMESTAMPNS: Final = 35
_ARRIVED: Final = struct.Struct("@qq")
"""s and ns of the wall clock at which a datagram came, as ancillary data of SO_TIMESTAMPNS (socket(7))."""
JUMP: Final = 0.2
"""s by which the wall clock leaves the boot-time clock at once, and so has jumped. An age of less counts as young."""
_SEGMENT: Final = struct.Struct("=H")
_HOPS: Final = struct.Struct("=i")
_ANCILLARY: Final = 128
_CONTROL: Final = struct.Struct("@Nii")
_ALIGNED: Final = struct.calcsize("@N")
_ADDRESS4: Final = struct.Struct("=H2s4s8x")
_ADDRESS6: Final = struct.Struct("=H2s4s16sI")

MAX_PLACES: Final = 4096
"""Entries of each cache; a full cache is emptied."""

STALE_SOURCE: Final = (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV)
"""The kernel's errors when the source address is gone."""

_Ancillary = list[tuple[int, int, bytes]]
_Address = Any
"""(host, port), or (host, port, flow, scope): addresses of the socket module."""


class Ways(Protocol):
    """Finds interfaces as `nesting.Nesting` does, with its errors."""

    def interface(self, endpoint: Endpoint, mark: int, port: int) -> int | None: ...

    def room(self, interface: int, limit: int, *, cut: bool) -> int | None: ...


class Way(NamedTuple):
    """Holds all that a send to an endpoint takes."""

    socket: socket.socket
    ancillary: _Ancillary
    address: _Address
    most: int = MAX_PACKET
    """Bytes; a longer datagram may be in a loop of tunnels."""


class Sockets:
    """Holds the IPv4 and the IPv6 socket of one port, and those for handshakes; on a host without IPv6, no IPv6 sockets.

    Endpoints are packed.
    """

    def __init__(
        self, descriptors: Mapping[str, int], ways: Ways, *, offload: bool = True, compiled: Any = None
    ) -> None:
        """Takes over `descriptors`, by name. Raises OSError.

        With `offload`, the kernel sends and receives whole runs, where it can. `compiled` is `linux.udp_trains` or None.
        """
        sockets = {name: socket.socket(fileno=descriptor) for name, descriptor in descriptors.items()}
        four, six = sockets.get(UDP4), sockets.get(UDP6)
        if four is None:
            raise OSError(errno.EBADF, "no IPv4 socket")
        self._ways = ways
        self._fwmark = _mark(four)
        self.port: int = four.getsockname()[1]
        self.all = [four] if six is None else [four, six]
        self._six = six
        self._four = four
        self._named = sockets
        self.queues = [opened for name, opened in sockets.items() if name not in {UDP4, UDP6}]
        """The sockets for handshakes."""
        self._places: set[bytes] = set()
        self._from: dict[tuple[_Address, bytes], bytes] = {}
        self._to: dict[bytes, Way] = {}
        self._compiled = compiled
        self.ready: dict[bytes, ReadyWay] = {}
        """The same ways for `UdpWriter`; empty without compiled modules."""
        self._first_way: dict[bytes, int] = {}
        """Number of the interface by which the first answer to an endpoint with a source left."""
        self.whole = offload
        """The kernel may send runs."""
        self.in_pieces: dict[bytes, int] = {}
        """Least size in bytes of the datagrams that the kernel refused as a run, by endpoint."""
        self._arrived = b""
        self.begun = time.time()
        """s of the wall clock; what came before has waited for a take-over, or a jump of the clock, and counts as fresh."""
        self._ahead = self.begun - boot_time()
        for opened in sockets.values():  # the kernel merges for any socket of a port, or for none
            with suppress(OSError):  # Linux 5.0
                opened.setsockopt(_SOL_UDP, _UDP_GRO, int(offload))
        for opened in self.all:
            with suppress(OSError):  # then no datagram counts as old
                opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    @property
    def descriptors(self) -> dict[str, int]:
        """Returns the descriptors by name, to be handed down."""
        return {name: opened.fileno() for name, opened in self._named.items()}

    def are(self, descriptors: Mapping[str, int]) -> bool:
        """Tells whether these are copies of the same sockets."""
        return _inodes(descriptors) == _inodes(self.descriptors)

    def close(self) -> None:
        for opened in self._named.values():
            opened.close()

    def mark_changed(self) -> None:
        """Reads the mark that host-service has set, and finds each way anew, since routes may depend on it."""
        self._fwmark = _mark(self._four)
        self.routes_changed()

    def routes_changed(self) -> None:
        """Finds the way to each endpoint anew, at the next datagram there."""
        self._forget_ways()
        self.in_pieces.clear()

    def receive(self, opened: socket.socket, room: memoryview) -> tuple[int, int, bytes]:
        """Receives one datagram, or a run that the kernel put together.

        Returns (bytes, size of each datagram but the last, endpoint). Raises BlockingIOError when there is none, and other
        OSErrors. Hot.
        """
        length, ancillary, _, address = opened.recvmsg_into([room], _ANCILLARY)
        size, info = length, b""
        for level, _, data in ancillary:
            if level == _SOL_UDP:
                size = int.from_bytes(data, sys.byteorder)
            elif level == socket.SOL_SOCKET:
                self._arrived = data
            else:
                info = data
        key = (address, info)
        endpoint = self._from.get(key)
        if endpoint is None:
            if len(self._from) >= MAX_PLACES:
                self._from.clear()
            endpoint = self._from[key] = _endpoint(opened.family, *key).pack()
        return length, size, endpoint

    def wall_clock(self) -> float:
        """Reads the wall clock (s). After a jump, what came before counts as fresh: its stamp tells no age."""
        unix_time = time.time()
        ahead = unix_time - boot_time()
        if abs(ahead - self._ahead) > JUMP:
            self.begun = unix_time
        self._ahead = ahead
        return unix_time

    def waited(self, unix_time: float) -> float:
        """Returns how long (s) the datagram received last, or the first of its run, has waited for this process.

        What came before this process began has waited for it to take over, and counts as fresh.
        """
        if len(self._arrived) != _ARRIVED.size:
            return 0.0
        seconds, nanoseconds = _ARRIVED.unpack(self._arrived)
        arrived = seconds + nanoseconds * 1e-9
        return unix_time - arrived if arrived > self.begun else 0.0

    def send(self, data: bytes, endpoint: bytes) -> None:
        """Sends one datagram, from the source that the endpoint names, if any. Raises OSError. Hot."""
        opened, ancillary, address, most = self._to.get(endpoint) or self._known(endpoint)
        if len(data) > most:
            raise OSError(errno.ELOOP, "a tunnel's datagram leads from another tunnel into a third, and doesn't fit")
        opened.sendmsg([data], ancillary, 0, address)

    def goes_whole(self, size: int, endpoint: bytes) -> bool:
        """Tells whether the kernel may send datagrams of `size` bytes as a run."""
        return self.whole and size < self.in_pieces.get(endpoint, size + 1)

    def send_run(self, run: Block, endpoint: bytes) -> None:
        """Sends a run in one call (UDP GSO). Raises OSError, and then has sent nothing of the run. Hot."""
        opened, ancillary, address, most = self._to.get(endpoint) or self._known(endpoint)
        if run.size > most:
            raise OSError(errno.ELOOP, "tunnels' datagrams lead from another tunnel into a third, and don't fit")
        segment = (_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(run.size))
        opened.sendmsg([run.data], [*ancillary, segment], 0, address)

    def send_in_pieces(self, size: int, endpoint: bytes) -> None:
        """Notes that the kernel refuses such a run: the link's MTU is smaller, or the link can't segment."""
        if len(self.in_pieces) >= MAX_PLACES:
            self.in_pieces.clear()
        self.in_pieces[endpoint] = min(size, self.in_pieces.get(endpoint, size))

    def _known(self, endpoint: bytes) -> Way:
        if len(self._to) >= MAX_PLACES:
            self._forget_ways()
        known = self._keep(endpoint, self._way(endpoint))
        if len(self._places) >= MAX_PLACES:
            self._places.clear()
        self._places.add(place_of(endpoint))
        return known

    def reaches(self, place: bytes) -> bool:
        """Tells whether a worker or key-service has sent to this address and port, so to a peer of ours."""
        return place in self._places

    def answer(self, data: bytes, endpoint: bytes) -> None:
        """Sends one datagram and caches nothing, since any sender may ask for such an answer. Raises OSError."""
        opened, ancillary, address, _ = self._to.get(endpoint) or self._destination(endpoint)
        opened.sendmsg([data], ancillary, 0, address)

    def forget_source(self, endpoint: bytes) -> None:
        """Notes that the endpoint's source is gone: the routing table chooses another, until routes change."""
        most = self._to[endpoint].most if endpoint in self._to else MAX_PACKET
        self._keep(endpoint, self._destination(without_source(endpoint))._replace(most=most))

    def _keep(self, endpoint: bytes, way: Way) -> Way:
        self._to[endpoint] = way
        if self._compiled is not None:
            address, control = _packed_address(way), _packed_control(way.ancillary)
            self.ready[endpoint] = self._compiled.Way(way.socket.fileno(), way.most, address, control)
        return way

    def _forget_ways(self) -> None:
        self._to.clear()
        self.ready.clear()

    def socket_of(self, endpoint: bytes) -> socket.socket:
        """Returns the socket that reaches an endpoint. Raises OSError without one."""
        return self._destination(endpoint)[0]

    def _way(self, packed: bytes) -> Way:
        """Finds the way to an endpoint; leaves the source out if it belongs to another way. Raises OSError."""
        found = self._destination(packed)
        endpoint = unpack_untrusted(packed)
        now = self._ways.interface(endpoint, self._fwmark, self.port)
        if now is None:  # without a route, the send will say why
            return found
        if endpoint.limit:
            room = self._ways.room(now, endpoint.limit & ~CUT, cut=bool(endpoint.limit & CUT))
            headers = (V4_HEADER if len(endpoint.address) == 4 else V6_HEADER) + UDP_HEADER
            found = found if room is None else found._replace(most=room - headers)
        if not endpoint.source or endpoint.source_interface:
            return found
        if len(self._first_way) >= MAX_PLACES:
            self._first_way.clear()
        stays = self._first_way.setdefault(with_limit(packed, 0), now) == now
        return found if stays else self._destination(without_source(packed))._replace(most=found.most)

    def _destination(self, packed: bytes) -> Way:
        try:
            endpoint = unpack_untrusted(packed)
        except ValueError:
            raise OSError(errno.EINVAL, "no endpoint") from None
        opened: socket.socket
        address: _Address
        interface, hops = endpoint.source_interface, endpoint.limit & ~CUT
        if len(endpoint.address) == 4:
            info = (socket.IPPROTO_IP, _IP_PKTINFO, _INFO4.pack(interface, endpoint.source, b""))
            limit = (socket.IPPROTO_IP, socket.IP_TTL, _HOPS.pack(hops))
            opened, address = self._four, (str(endpoint.host), endpoint.port)
        else:
            if self._six is None:
                raise OSError(errno.EAFNOSUPPORT, "no IPv6 here")
            info = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _INFO6.pack(endpoint.source, interface))
            limit = (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, _HOPS.pack(hops))
            opened, address = self._six, (str(endpoint.host), endpoint.port, 0, endpoint.scope)
        return Way(opened, [*([info] if endpoint.source else []), *([limit] if hops else [])], address)


def _packed_address(way: Way) -> bytes:
    """Returns the `struct sockaddr` of a way's address."""
    host, port, *rest = way.address
    family = way.socket.family
    packed = socket.inet_pton(family, host)
    if family == socket.AF_INET:
        return _ADDRESS4.pack(family, port.to_bytes(2, "big"), packed)
    flow, scope = rest
    return _ADDRESS6.pack(family, port.to_bytes(2, "big"), flow.to_bytes(4, "big"), packed, scope)


def _packed_control(ancillary: _Ancillary) -> bytes:
    """Returns the `struct cmsghdr` of each, padded as the kernel wants them."""
    heads = [_CONTROL.pack(_CONTROL.size + len(data), level, kind) + data for level, kind, data in ancillary]
    return b"".join(head + bytes(-len(head) % _ALIGNED) for head in heads)


def _endpoint(family: int, address: _Address, info: bytes) -> Endpoint:
    if family == socket.AF_INET:
        # No interface is named, so the answer may take a better route.
        source = _INFO4.unpack(info)[1] if info else b""
        return Endpoint(socket.inet_aton(address[0]), address[1], 0, source)
    source, interface = _INFO6.unpack(info) if info else (b"", 0)
    scope = address[3]
    packed = socket.inet_pton(socket.AF_INET6, address[0].partition("%")[0])
    return Endpoint(packed, address[1], scope, source, interface if scope else 0)


def _mark(opened: socket.socket) -> int:
    return opened.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)


def _inodes(descriptors: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    found = ((name, os.fstat(descriptor)) for name, descriptor in descriptors.items())
    return {name: (each.st_dev, each.st_ino) for name, each in found}
