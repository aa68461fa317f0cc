"""The two UDP sockets of an interface, IPv4 and IPv6 on one port, with the address of ours on every datagram.

The address that a datagram was sent to travels in its endpoint (`source`), so that the answer leaves from it: a gateway
with several addresses would otherwise answer from another than was asked, and the other side's firewall drop it.
IP_PKTINFO is ip(7), IPV6_PKTINFO is RFC 3542.
"""

import errno
import socket
import struct
from typing import Final

from stagewire.proto.endpoint import Endpoint

RECEIVE_BUFFER: Final = 7 << 20
"""Bytes, as wireguard-go asks for; the kernel's queue is the one that may drop."""
_IP_PKTINFO: Final = 8
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_DONT: Final = 0
_SO_RCVBUFFORCE: Final = 33
_SO_SNDBUFFORCE: Final = 32
_INFO4: Final = struct.Struct("=I4s4s")  # interface, source address, header destination
_INFO6: Final = struct.Struct("=16sI")
_ANCILLARY: Final = 64
_MAX_DATAGRAM: Final = 65535

STALE_SOURCE: Final = (errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENODEV)
"""What the kernel says when the address of ours that was asked for is gone."""


def bind(port: int, fwmark: int) -> tuple[socket.socket, socket.socket | None]:
    """The IPv4 and the IPv6 socket (None on a host without IPv6) on one port; 0 picks one. Raises OSError."""
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
        # The outer packet may be cut in pieces on its way, as the kernel's WireGuard allows: no ICMP tells the inner sender.
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


def receive(opened: socket.socket) -> tuple[bytes, Endpoint]:
    """One datagram and where it is from. Raises OSError (BlockingIOError when there is none). Hot: 4 us."""
    data, ancillary, _, address = opened.recvmsg(_MAX_DATAGRAM, _ANCILLARY)
    source, interface = b"", 0
    if opened.family == socket.AF_INET:
        for _, _, info in ancillary:
            # A wildcard interface lets the answer take a better route when there is one.
            _, source, _ = _INFO4.unpack(info)
        return data, Endpoint(socket.inet_aton(address[0]), address[1], 0, source)
    for _, _, info in ancillary:
        source, interface = _INFO6.unpack(info)
    scope = address[3]
    host = address[0].partition("%")[0]
    return data, Endpoint(socket.inet_pton(socket.AF_INET6, host), address[1], scope, source, interface if scope else 0)


def send(opened: socket.socket, data: bytes, endpoint: Endpoint) -> None:
    """Sends one datagram, from the address that the endpoint names if it names one. Raises OSError. Hot: 5 us."""
    address: tuple[str, int] | tuple[str, int, int, int]
    if len(endpoint.address) == 4:
        address = (socket.inet_ntoa(endpoint.address), endpoint.port)
        info = (socket.IPPROTO_IP, _IP_PKTINFO, _INFO4.pack(endpoint.source_interface, endpoint.source or b"", b""))
    else:
        host = socket.inet_ntop(socket.AF_INET6, endpoint.address)
        address = (host, endpoint.port, 0, endpoint.scope)
        info = (
            socket.IPPROTO_IPV6,
            socket.IPV6_PKTINFO,
            _INFO6.pack(endpoint.source or b"", endpoint.source_interface),
        )
    if endpoint.source:
        opened.sendmsg([data], [info], 0, address)
    else:
        opened.sendto(data, address)
