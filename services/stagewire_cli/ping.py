"""Pings an address through the tunnel, with packets that no router may cut into fragments."""

import os
import socket
import struct
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from stagewire.limits import MIN_MTU_IPV6

_PROBE: Final = 3
"""IP_PMTUDISC_PROBE: don't fragment, whatever MTU the kernel has learnt."""
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_HEADERS: Final = {4: 28, 6: 48}
_ECHO: Final = struct.Struct("!BBHHH")
SMALL: Final = 84
LEAST: Final = {4: 576, 6: MIN_MTU_IPV6}


def answered(address: IPv4Address | IPv6Address, interface: str, size: int, timeout: float) -> bool:
    """Tells whether an echo request of `size` bytes, IP header included, gets its answer. Raises OSError."""
    v4 = address.version == 4
    identity, nonce = os.getpid() & 0xFFFF, os.urandom(8)
    data = nonce + bytes(max(0, size - _HEADERS[address.version] - len(nonce)))
    family, protocol = (socket.AF_INET, socket.IPPROTO_ICMP) if v4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    with socket.socket(family, socket.SOCK_RAW, protocol) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        level, option = (socket.IPPROTO_IP, _IP_MTU_DISCOVER) if v4 else (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER)
        opened.setsockopt(level, option, _PROBE)
        request = _ECHO.pack(8 if v4 else 128, 0, 0, identity, 1) + data
        if v4:  # the kernel fills in ICMPv6's checksum
            request = request[:2] + _checksum(request).to_bytes(2) + request[4:]
        try:
            opened.sendto(request, (str(address), 0))
        except OSError:  # too large for the interface, or no route
            return False
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            opened.settimeout(left)
            with suppress(TimeoutError):
                answer, source = opened.recvfrom(0xFFFF)
                body = answer[(answer[0] & 15) * 4 :] if v4 else answer
                if source[0] == str(address) and body[:1] == (b"\0" if v4 else b"\x81") and nonce in body[8:16]:
                    return True
    return False


def largest(address: IPv4Address | IPv6Address, interface: str, fails: int, timeout: float) -> int:
    """Finds the largest size that is answered, below one that isn't; 0 if none of the usual sizes is."""
    low = LEAST[address.version]
    if fails <= low or not answered(address, interface, low, timeout):
        return 0
    while fails - low > 4:
        middle = (low + fails) // 2
        if answered(address, interface, middle, timeout):
            low = middle
        else:
            fails = middle
    return low


def _checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
