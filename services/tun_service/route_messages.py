"""Many routes at a time: rtnetlink's messages, written by hand, a batch of them in one system call.

A library takes 380 us of CPU for each, so that 130,560 routes would be 50 s of a core that packets want as well; here it is
9 us. Source: rtnetlink(7), linux/rtnetlink.h.
"""

import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network
from typing import Final

Route = tuple[IPv4Network | IPv6Network, int]
"""(prefix, table)"""
Change = tuple[bool, Route]
"""Whether it is wanted or to go."""

_HEADER: Final = struct.Struct("=IHHII")
"""length, type, flags, sequence, port"""
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
"""family, bits of destination, of source, service, table, protocol, scope, type, flags"""
_NUMBER: Final = struct.Struct("=HHI")
"""An attribute of four bytes: length, type, value."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = struct.Struct("=i")

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_REQUEST_DUMP: Final = 0x1 | 0x300
_RTM_F_CLONED: Final = 0x200
_RT_TABLE_COMPAT: Final = 252
_REQUEST_ACK: Final = 0x1 | 0x4
_REPLACE_CREATE: Final = 0x100 | 0x400
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_RTN_UNICAST: Final = 1
_SCOPES: Final = {4: 253, 6: 0}
"""Of our routes, link and universe; the kernel finds no IPv4 route to remove under another scope than its own."""
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 12
_CHUNK: Final = 16 * 1024
"""Bytes of a dump that are read at a time: some 250 routes, 2 ms."""


class RouteSocket:
    """Sets and removes routes to one interface at a time."""

    def __init__(self, protocol: int) -> None:
        """`protocol` is what the routes are known by."""
        self._protocol = protocol
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(
            1.0
        )  # the kernel answers before `send` returns; this is for the case that it never does
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)

    def close(self) -> None:
        """The routes stay."""
        self._socket.close()

    def change(self, interface: int, changes: Sequence[Change]) -> list[tuple[Change, int]]:
        """Makes some dozens of changes, in order; returns those that the kernel refused, each with its errno.

        Raises OSError when it doesn't answer.
        """
        first = self._sequence + 1
        self._socket.send(b"".join([self._message(interface, change) for change in changes]))
        refused: list[tuple[Change, int]] = []
        answered = 0
        while answered < len(changes):
            data = self._socket.recv(65536)
            while len(data) >= _HEADER.size + _ERROR.size:
                length, kind, _, sequence, _ = _HEADER.unpack_from(data)
                if kind == _NLMSG_ERROR and first <= sequence <= self._sequence:
                    answered += 1
                    [code] = _ERROR.unpack_from(data, _HEADER.size)
                    if code:
                        refused.append((changes[sequence - first], -code))
                data = data[max(_HEADER.size, (length + 3) & ~3) :]
        return refused

    def standing(self, interface: int) -> Iterator[list[Route]]:
        """Our routes to an interface, as many at a time as the kernel hands over. Raises OSError."""
        for family in (socket.AF_INET, socket.AF_INET6):
            # Of its own: who gives up half-way leaves nothing behind that another answer would be mixed up with.
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as dump:
                dump.settimeout(1.0)
                with suppress(OSError):  # a kernel that can't filter sends all of them
                    dump.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
                body = _ROUTE.pack(family, 0, 0, 0, 0, self._protocol, 0, 0, 0) + _NUMBER.pack(8, _RTA_OIF, interface)
                dump.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _REQUEST_DUMP, 1, 0) + body)
                while (found := self._of_dump(dump.recv(_CHUNK), interface)) is not None:
                    yield found

    def _of_dump(self, data: bytes, interface: int) -> list[Route] | None:
        found: list[Route] = []
        while len(data) >= _HEADER.size:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            if kind == _NLMSG_DONE:
                return None
            if kind == _NLMSG_ERROR:
                raise OSError(-_ERROR.unpack_from(data, _HEADER.size)[0], "the kernel doesn't list its routes")
            if kind == _RTM_NEWROUTE and (route := self._route(data[_HEADER.size : length], interface)) is not None:
                found.append(route)
            data = data[max(_HEADER.size, (length + 3) & ~3) :]
        return found

    def _route(self, body: bytes, interface: int) -> Route | None:
        family, bits, _, _, table, protocol, _, _, flags = _ROUTE.unpack_from(body)
        if protocol != self._protocol or flags & _RTM_F_CLONED:
            return None
        network = IPv4Network if family == socket.AF_INET else IPv6Network
        address, by = bytes(4 if family == socket.AF_INET else 16), 0
        offset = _ROUTE.size
        while offset + _ATTRIBUTE.size <= len(body):
            length, kind = _ATTRIBUTE.unpack_from(body, offset)
            value = body[offset + _ATTRIBUTE.size : offset + length]
            if kind == _RTA_DST:
                address = value
            elif kind == _RTA_TABLE:
                table = int.from_bytes(value, sys.byteorder)
            elif kind == _RTA_OIF:
                by = int.from_bytes(value, sys.byteorder)
            offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
        return (network((address, bits)), table) if by == interface else None

    def _message(self, interface: int, change: Change) -> bytes:
        wanted, (prefix, table) = change
        address = prefix.network_address.packed
        family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
        self._sequence += 1
        body = (
            _ROUTE.pack(
                *(
                    family,
                    prefix.prefixlen,
                    0,
                    0,
                    table if table < 256 else _RT_TABLE_COMPAT,
                    self._protocol,
                    _SCOPES[prefix.version],
                ),
                *(_RTN_UNICAST, 0),
            )
            + _NUMBER.pack(8, _RTA_TABLE, table)
            + _NUMBER.pack(8, _RTA_OIF, interface)
            + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address), _RTA_DST)
            + address
        )
        kind, flags = (_RTM_NEWROUTE, _REQUEST_ACK | _REPLACE_CREATE) if wanted else (_RTM_DELROUTE, _REQUEST_ACK)
        return _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body
