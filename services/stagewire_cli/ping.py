"""Pings an address through the tunnel, with packets that no router may cut into fragments, and hears ICMP errors as well."""

import os
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal

from stagewire.limits import MIN_MTU_IPV6
from stagewire.proto.packets.fields import V6_HEADER

_PROBE: Final = 3
"""IP_PMTUDISC_PROBE: don't fragment, whatever MTU the kernel has learnt."""
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_HEADERS: Final = {4: 28, 6: 48}
_ECHO: Final = struct.Struct("!BBHHH")
SMALL: Final = 84
LEAST: Final = {4: 576, 6: MIN_MTU_IPV6}
_HOPS: Final = 64
_UNUSED_PORT: Final = 1
"""tcpmux, which is long out of use."""
_LEAST_WAIT: Final = 0.01
_KINDS: Final = {4: {0: "echo", 3: "unreachable", 11: "exceeded"}, 6: {129: "echo", 1: "unreachable", 3: "exceeded"}}
"""Types of ICMP and ICMPv6."""
_CODES: Final = {
    4: {0: "no route", 1: "no such host", 2: "no such host", 9: "prohibited", 10: "prohibited", 13: "prohibited"},
    6: {0: "no route", 1: "prohibited", 3: "no such host", 5: "prohibited", 6: "prohibited"},
}
ERROR: Final = 8
"""Bytes of an ICMP error before the packet that it quotes."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Tells which address has answered an echo request, and how. `why` is an unreachable destination's reason."""

    kind: Literal["echo", "unreachable", "exceeded"]
    by: str
    why: str = ""


def answered(address: IPv4Address | IPv6Address, interface: str, size: int, timeout: float) -> bool:
    """Tells whether an echo request of `size` bytes, IP header included, gets its answer. Raises OSError."""
    heard = ask(address, interface, size, timeout)
    return heard is not None and heard.kind == "echo"


def ask(
    address: IPv4Address | IPv6Address, interface: str, size: int, timeout: float, hops: int = _HOPS
) -> Heard | None:
    """Sends an echo request through an interface, and returns what answers it; None for nothing in time. Raises OSError."""
    version = address.version
    identity, nonce = os.urandom(2), os.urandom(8)
    data = nonce + bytes(max(0, size - _HEADERS[version] - len(nonce)))
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    with socket.socket(family, socket.SOCK_RAW, protocol) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        level, option, limit = (
            (socket.IPPROTO_IP, _IP_MTU_DISCOVER, socket.IP_TTL)
            if version == 4
            else (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, socket.IPV6_UNICAST_HOPS)
        )
        opened.setsockopt(level, option, _PROBE)
        opened.setsockopt(level, limit, hops)
        request = _ECHO.pack(8 if version == 4 else 128, 0, 0, int.from_bytes(identity), 1) + data
        if version == 4:  # the kernel fills in ICMPv6's checksum
            request = request[:2] + _checksum(request).to_bytes(2) + request[4:]
        try:
            opened.sendto(request, (str(address), 0))
        except OSError:  # too large for the interface, or no route
            return None
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            opened.settimeout(left)
            with suppress(TimeoutError):
                answer, source = opened.recvfrom(0xFFFF)
                body = message_of(answer, version)
                heard = _heard(body, address, request)
                if heard is not None and (heard != "echo" or source[0] == str(address)):
                    return Heard(heard, source[0], _CODES[version].get(body[1], "") if heard == "unreachable" else "")
    return None


def answers_tcp(address: str, interface: str, timeout: float) -> bool:
    """Tells whether a host answers a TCP connection to a port that hardly any host opens. Raises OSError."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        opened.settimeout(timeout or _LEAST_WAIT)
        try:
            opened.connect((address, _UNUSED_PORT))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return True


def _heard(
    body: bytes, address: IPv4Address | IPv6Address, request: bytes
) -> Literal["echo", "unreachable", "exceeded"] | None:
    """Tells what an ICMP message says of our echo request; None if the message is about another packet."""
    kind = _KINDS[address.version].get(body[0]) if len(body) >= ERROR else None
    if kind == "echo":
        return "echo" if body[4:16] == request[4:16] else None
    if kind is None:
        return None
    to, payload = quoted(body, address.version)
    # An error quotes eight bytes of the payload at least: our type, code, checksum, identity and number.
    about_ours = to == address.packed and payload[4:8] == request[4:8]
    return ("unreachable" if kind == "unreachable" else "exceeded") if about_ours else None


def message_of(received: bytes, version: int) -> bytes:
    """Returns the ICMP message that a raw socket has received: with IPv4, a header precedes it."""
    return received[(received[0] & 15) * 4 :] if version == 4 and received else received


def quoted(error: bytes, version: int) -> tuple[bytes, bytes]:
    """Returns what an ICMP error quotes: the destination, and what lies behind the IP header."""
    packet = error[ERROR:]
    if version == 4:
        return packet[16:20], packet[(packet[0] & 15) * 4 :] if packet else b""
    return packet[24:40], packet[V6_HEADER:]


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
