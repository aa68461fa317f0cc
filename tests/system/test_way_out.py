"""What the kernel says of the way to an endpoint, and what ICMP says of our datagrams there."""

import contextlib
import errno
import struct
from ipaddress import ip_address

import pytest

from lab.namespaces import Namespace, add_addresses
from lab.wait import until
from stagewire_cli import way_out
from stagewire_cli.host_facts import Links
from stagewire_cli.probe import Probe
from stagewire_cli.way_out import WayOut

pytestmark = pytest.mark.system

PORTS = struct.pack("!HH", 51820, 5)


def v4(to: str, payload: bytes) -> bytes:
    return struct.pack("!B15x4s", 0x45, ip_address(to).packed) + payload


def error(kind: int, code: int, quoted: bytes) -> bytes:
    return bytes([kind, code]) + bytes(6) + quoted


def _way(here: Namespace, place: str) -> WayOut:
    way = here.call(lambda: way_out.look(place, 0, Links()))
    assert way is not None
    return way


def test_what_a_message_says_of_our_datagrams() -> None:
    with contextlib.ExitStack() as stack, Namespace("heard") as here:
        probe = here.call(lambda: Probe("192.0.2.1:5", 51820))
        stack.enter_context(probe)
        head = bytes([0x45]) + bytes(19)
        for code, closed, prohibited in ((3, True, False), (1, False, False), (13, False, True)):
            said = probe._judged(head + error(3, code, v4("192.0.2.1", PORTS)), "203.0.113.1")
            assert said is not None
            assert (said.by, said.closed, said.prohibited) == ("203.0.113.1", closed, prohibited)
        said = probe._judged(head + error(11, 0, v4("192.0.2.1", PORTS)), "203.0.113.1")
        assert said is not None
        assert said.exceeded
        for odd in (
            error(3, 3, v4("192.0.2.2", PORTS)), error(3, 3, v4("192.0.2.1", PORTS[::-1])),
            error(11, 1, v4("192.0.2.1", PORTS)),
            error(3, 4, v4("192.0.2.1", PORTS)), error(3, 3, b""), b"",
        ):  # fmt: skip
            assert probe._judged(head + odd, "203.0.113.1") is None
        assert probe.refusal() is None
    with Probe("", 0) as none:
        assert none.refusal() is None


def test_what_the_kernel_says_of_each_way() -> None:
    with Namespace("ways") as here:
        here.run("ip", "link", "add", "eth9", "type", "veth", "peer", "name", "eth8")
        add_addresses(here, "eth9", ["192.0.2.1/24"])
        for place in ("192.0.2.9:5", "[2001:db8::1]:5"):
            assert _way(here, place).error == errno.ENETUNREACH
        assert _way(here, "192.0.2.9:5").down == ("eth9",)
        here.run("ip", "link", "set", "eth9", "up")
        until(lambda: not _way(here, "192.0.2.9:5").carrier, 5, "the link without its other end")
        here.run("ip", "link", "set", "eth8", "up")
        until(lambda: _way(here, "192.0.2.9:5").carrier, 5, "the link")
        for kind, expected in (
            ("unreachable", errno.EHOSTUNREACH), ("prohibit", errno.EACCES), ("blackhole", errno.EINVAL)
        ):  # fmt: skip
            here.run("ip", "route", "add", kind, "203.0.113.0/24")
            assert here.call(lambda: way_out.error_of("203.0.113.1:5", 0)) == expected
            here.run("ip", "route", "del", kind, "203.0.113.0/24")
        way = _way(here, "192.0.2.9:5")
        assert (way.error, way.device, way.carrier, way.kind) == (0, "eth9", True, "unicast")
        for host, kind in (("192.0.2.255", "broadcast"), ("192.0.2.1", "local")):
            assert _way(here, f"{host}:5").kind == kind
        assert here.call(lambda: way_out.is_ourselves("192.0.2.1:5", 5, Links()))
        assert here.call(lambda: way_out.is_ourselves("127.0.0.1:5", 5, Links()))
        assert here.call(lambda: way_out.is_ourselves("0.0.0.0:5", 5, Links()))
        assert not here.call(lambda: way_out.is_ourselves("192.0.2.1:6", 5, Links()))
        assert not here.call(lambda: way_out.is_ourselves("192.0.2.9:5", 5, Links()))
