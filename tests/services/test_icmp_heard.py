"""What ICMP errors say of a ping through the tunnel."""

import struct
from ipaddress import ip_address

import pytest

from stagewire_cli import ping

REQUEST = struct.pack("!BBHHH", 8, 0, 0x1234, 77, 1) + b"nonce123" + bytes(40)
TO4, TO6 = ip_address("10.0.0.2"), ip_address("fd00::2")


def v4(to: str, payload: bytes) -> bytes:
    return struct.pack("!B15x4s", 0x45, ip_address(to).packed) + payload


def v6(to: str, payload: bytes) -> bytes:
    return bytes([0x60]) + bytes(23) + ip_address(to).packed + payload


def error(kind: int, code: int, quoted: bytes) -> bytes:
    return bytes([kind, code]) + bytes(6) + quoted


@pytest.mark.parametrize(
    ("body", "address", "heard"),
    [
        (b"\0\0\0\0" + REQUEST[4:], TO4, "echo"),
        (b"\x81\0\0\0" + REQUEST[4:], TO6, "echo"),
        (b"\0\0\0\0" + REQUEST[4:8] + b"anothers" + bytes(8), TO4, None),
        (error(11, 0, v4("10.0.0.2", REQUEST[:8])), TO4, "exceeded"),
        (error(3, 1, v4("10.0.0.2", REQUEST)), TO4, "unreachable"),
        (error(3, 0, v6("fd00::2", REQUEST)), TO6, "exceeded"),
        (error(1, 3, v6("fd00::2", REQUEST)), TO6, "unreachable"),
        (error(3, 1, v4("10.0.0.3", REQUEST)), TO4, None),
        (error(3, 1, v4("10.0.0.2", REQUEST[:4] + b"\0\0\0\0")), TO4, None),
        (error(3, 1, b""), TO4, None),
        (error(5, 0, v4("10.0.0.2", REQUEST)), TO4, None),
        (b"", TO4, None),
    ],
)
def test_what_a_message_says_of_our_ping(body: bytes, address: object, heard: str | None) -> None:
    assert ping._heard(body, address, REQUEST) == heard  # type: ignore[arg-type]
