"""Links, addresses and policy rules of the kernel (rtnetlink(7), linux/if_link.h, if_addr.h, fib_rules.h).

The few requests that are needed, written by hand: a library that has them all is another 20 MB in a process whose memory
the kernel takes apart before its place is free.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Final, Self

_HEADER: Final = struct.Struct("=IHHII")
"""length, type, flags, sequence, port"""
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_RULE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NUMBER: Final = struct.Struct("=I")
_ERROR: Final = struct.Struct("=i")

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_RTM_NEWLINK, _RTM_GETLINK = 16, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWRULE = 32
_IFF_UP: Final = 1
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC, _IFLA_GSO_MAX_SIZE = 3, 4, 18, 26, 41
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_TUN_OWNER = 1, 2, 1
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_GEN_MODE_NONE: Final = b"\1"
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_FRA_PRIORITY, _FRA_FWMARK, _FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE, _FRA_PROTOCOL = 6, 10, 14, 15, 21
_FR_ACT_TO_TABLE: Final = 1
_FIB_RULE_INVERT: Final = 0x2
_RT_TABLE_COMPAT: Final = 252
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_CHUNK: Final = 65536


class Netlink:
    """A line to the kernel, for one request after another. All methods raise OSError as the kernel refuses."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(1.0)  # the kernel answers at once; this is for the case that it never does
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What was set stays."""
        self._socket.close()

    # --- links ---------------------------------------------------------------------------------------------

    def index_of(self, name: str) -> int | None:
        """An interface's number; None when there is none of that name."""
        found = self._link(name)
        return None if found is None else found[0]

    def tun_owner(self, name: str) -> tuple[str, int | None]:
        """What kind of link an interface is (empty: one of no kind, or there is none) and, of a TUN device, whose."""
        found = self._link(name)
        if found is None:
            return "", None
        facts = dict(_attributes(found[1].get(_IFLA_LINKINFO, b"")))
        kind = facts.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
        owner = dict(_attributes(facts.get(_IFLA_INFO_DATA, b""))).get(_IFLA_TUN_OWNER) if kind == "tun" else None
        return kind, None if owner is None else int.from_bytes(owner, sys.byteorder)

    def _link(self, name: str) -> tuple[int, dict[int, bytes]] | None:
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        try:
            answers = list(self._ask(_RTM_GETLINK, _ACK, body))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        for kind, answer in answers:
            if kind == _RTM_NEWLINK:
                return _LINK.unpack_from(answer)[2], dict(_attributes(answer[_LINK.size :]))
        return None

    def set_mtu(self, index: int, mtu: int) -> None:
        """In bytes."""
        self._set_link(index, _attribute(_IFLA_MTU, _NUMBER.pack(mtu)))

    def limit_super_packets(self, index: int, size: int) -> None:
        """In bytes."""
        self._set_link(index, _attribute(_IFLA_GSO_MAX_SIZE, _NUMBER.pack(size)))

    def make_no_link_local(self, index: int) -> None:
        """No IPv6 address comes of itself from now on."""
        mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, _GEN_MODE_NONE)
        self._set_link(index, _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode)))

    def bring_up(self, index: int) -> None:
        """If it isn't."""
        self._set_link(index, b"", _IFF_UP)

    def _set_link(self, index: int, attributes: bytes, flags: int = 0) -> None:
        self._do(_RTM_NEWLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags) + attributes)

    # --- addresses -----------------------------------------------------------------------------------------

    def addresses(self, index: int) -> set[IPv4Interface | IPv6Interface]:
        """Those of an interface."""
        found = set()
        for kind, answer in self._ask(_RTM_GETADDR, _DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            _, length, _, _, owner = _ADDRESS.unpack_from(answer)
            address = dict(_attributes(answer[_ADDRESS.size :])).get(_IFA_ADDRESS)
            if kind == _RTM_NEWADDR and owner == index and address is not None:
                found.add(ip_interface((address, length)))
        return found

    def set_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """One more, unless it is there."""
        self._do(_RTM_NEWADDR, _CREATE | _REPLACE, _address(index, address))

    def remove_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        """One less."""
        self._do(_RTM_DELADDR, 0, _address(index, address))

    # --- rules ---------------------------------------------------------------------------------------------

    def add_rule(
        self,
        family: int,
        *,
        table: int,
        priority: int,
        protocol: int,
        without_mark: int | None = None,
        suppress_prefixlen: int | None = None,
    ) -> None:
        """All that doesn't carry the mark looks into the table, where routes of so few bits don't count."""
        flags = 0 if without_mark is None else _FIB_RULE_INVERT
        body = _RULE.pack(family, 0, 0, 0, table if table < 256 else _RT_TABLE_COMPAT, 0, 0, _FR_ACT_TO_TABLE, flags)
        body += _attribute(_FRA_TABLE, _NUMBER.pack(table)) + _attribute(_FRA_PRIORITY, _NUMBER.pack(priority))
        body += _attribute(_FRA_PROTOCOL, bytes([protocol]))
        if without_mark is not None:
            body += _attribute(_FRA_FWMARK, _NUMBER.pack(without_mark))
        if suppress_prefixlen is not None:
            body += _attribute(_FRA_SUPPRESS_PREFIXLEN, _NUMBER.pack(suppress_prefixlen))
        self._do(_RTM_NEWRULE, _CREATE | _EXCLUSIVE, body)

    # --- messages ------------------------------------------------------------------------------------------

    def _do(self, kind: int, flags: int, body: bytes) -> None:
        for _ in self._ask(kind, flags | _ACK, body):
            pass

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """What the kernel answers, until it says that this was all."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0) + body)
        while True:
            data = self._socket.recv(_CHUNK)
            while len(data) >= _HEADER.size:
                length, answer, _, sequence, _ = _HEADER.unpack_from(data)
                if sequence == self._sequence:  # others answer what we had given up
                    if answer == _NLMSG_DONE:
                        return
                    if answer == _NLMSG_ERROR:
                        [code] = _ERROR.unpack_from(data, _HEADER.size)
                        if code:
                            raise OSError(-code, os.strerror(-code))
                        return
                    yield answer, data[_HEADER.size : length]
                data = data[max(_HEADER.size, (length + 3) & ~3) :]


def _address(index: int, address: IPv4Interface | IPv6Interface) -> bytes:
    body = _ADDRESS.pack(_FAMILIES[address.version], address.network.prefixlen, 0, 0, index)
    local = address.ip.packed
    return body + _attribute(_IFA_LOCAL, local) + _attribute(_IFA_ADDRESS, local)


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[max(_ATTRIBUTE.size, (length + 3) & ~3) :]
