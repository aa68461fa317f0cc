"""Which servers are asked, what the hosts file says, and how answers are put together."""

import socket
from pathlib import Path

import pytest

from resolver_service import hosts
from resolver_service.answers import GRACE, Pending
from resolver_service.lookup import Outcome
from resolver_service.servers import MOST, Sources, choose, clean
from stagewire.proto.endpoint import Endpoint

HOSTS = """\
# comment
127.0.0.1 localhost
192.0.2.1\tVPN.example.net  vpn # more
2001:db8::1 vpn.example.net
192.0.2.2 vpn.example.net
fe80::1%eth0 near
nonsense vpn.example.net
192.0.2.3
"""


@pytest.mark.parametrize("name", ["vpn.example.net", "vpn.example.net.", "VPN.EXAMPLE.NET"])
def test_a_name_in_the_hosts_file(name: str) -> None:
    assert hosts.addresses(HOSTS, name) == ["192.0.2.1", "2001:db8::1", "192.0.2.2"]


def test_names_beside_it() -> None:
    assert hosts.addresses(HOSTS, "vpn") == ["192.0.2.1"]
    assert hosts.addresses(HOSTS, "near") == ["fe80::1%eth0"]
    assert hosts.addresses(HOSTS, "more") == hosts.addresses(HOSTS, "example.net") == []
    assert hosts.addresses("", "vpn") == []


@pytest.mark.parametrize(
    ("resolv_conf", "behind", "expected"),
    [
        ("nameserver 192.0.2.1\nnameserver 192.0.2.2\n", [], ("192.0.2.1", "192.0.2.2")),
        ("# nameserver 192.0.2.9\n; x\nnameserver\nnameserver x\nnameserver fe80::1%eth0\n", [], ("fe80::1%eth0",)),
        # A server in the tunnel is never asked, and what was there before it is.
        ("nameserver 10.9.0.1\n", ["nameserver 192.0.2.1\n"], ("192.0.2.1",)),
        ("nameserver 10.9.0.1\nnameserver 192.0.2.2\n", ["nameserver 192.0.2.1\n"], ("192.0.2.2",)),
        ("nameserver 10.9.0.1\n", ["nameserver 10.9.0.1\nnameserver 192.0.2.3\n"], ("192.0.2.3",)),
        ("nameserver 10.9.0.1\n", [], ()),
        # A local cache asks through the tunnel; what it asks is written down.
        ("nameserver 127.0.0.53\n", ["nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n"], ("192.0.2.1",)),
        ("nameserver ::1\n", [], ("::1",)),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", [], ("192.0.2.1",)),
        ("nameserver 10.9.0.1\n", ["nameserver 127.0.0.1\n"], ("127.0.0.1",)),
        ("", [], ("127.0.0.1",)),
        ("search example.net\n", ["nameserver 192.0.2.1\n"], ("192.0.2.1",)),
        ("".join(f"nameserver 192.0.2.{n}\n" for n in range(20)), [], tuple(f"192.0.2.{n}" for n in range(MOST))),
    ],
)
def test_the_servers_that_are_asked(resolv_conf: str, behind: list[str], expected: tuple[str, ...]) -> None:
    assert choose(resolv_conf, behind, ("10.9.0.1",)) == expected


def test_lines_that_nobody_can_read_count_for_nothing() -> None:
    options = "options timeout:3 timeout:x ndots:2 timeout:900 trust-ad rotate"
    assert (
        clean(f"search a.example ..b c.example\n{options}\nnonsense\n\nsortlist 1")
        == "search a.example c.example\noptions timeout:3 ndots:2 rotate"
    )


def test_search_list_of_before_where_the_tunnels_servers_replaced_it(tmp_path: Path) -> None:
    now, before = tmp_path / "now", tmp_path / "before"
    sources = Sources(before, now, ())
    assert sources.read(()) == (("127.0.0.1",), "")  # no file at all
    now.write_bytes(b"nameserver 10.9.0.1\nsearch inside\n\xff\xfe\n")
    assert sources.read(("10.9.0.1",)) == ((), "search inside")
    before.write_text("nameserver 192.0.2.1\nsearch outside\n")
    assert sources.read(("10.9.0.1",)) == (("192.0.2.1",), "search outside")
    now.write_text("nameserver 192.0.2.2\nsearch another.lan\n")  # the host has moved since
    assert sources.read(("10.9.0.1",)) == (("192.0.2.2",), "search another.lan")


def place(address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return Endpoint(socket.inet_pton(family, address), 0).pack()


def outcome(*addresses: str, error: str = "") -> Outcome:
    """Addresses behind an exclamation mark can't be reached."""
    return Outcome(tuple((place(each.strip("!")), not each.startswith("!")) for each in addresses), error)


def test_the_second_family_is_waited_for_a_short_while() -> None:
    pending = Pending("a")
    assert not pending.take(socket.AF_INET, outcome("192.0.2.1"), 5.0)
    assert pending.until == 5.0 + GRACE
    assert pending.answer() == ((place("192.0.2.1"),), "")
    assert pending.take(socket.AF_INET6, outcome("2001:db8::1"), 5.5)
    nothing = Pending("a")
    assert not nothing.take(socket.AF_INET6, outcome(error="a: x"), 5.0)
    assert nothing.until is None
    assert nothing.take(socket.AF_INET, outcome(error="a: y"), 9.0)
    assert nothing.answer() == ((), "a: x; a: y")
    empty = Pending("a")
    empty.take(socket.AF_INET, outcome(), 0.0)
    empty.take(socket.AF_INET6, outcome(), 0.0)
    assert empty.answer() == ((), "a: has no address")


@pytest.mark.parametrize(
    ("v4", "v6", "expected"),
    [
        (["192.0.2.1"], ["2600::1"], ["2600::1", "192.0.2.1"]),
        (["192.0.2.1"], ["!2600::1"], ["192.0.2.1", "2600::1"]),
        (["!192.0.2.1"], ["fd00::1"], ["fd00::1", "192.0.2.1"]),
        (["192.0.2.1"], ["fd00::1", "2002::1"], ["192.0.2.1", "2002::1", "fd00::1"]),
        (["192.0.2.9", "192.0.2.1"], [], ["192.0.2.9", "192.0.2.1"]),
        (["!192.0.2.9", "192.0.2.1"], [], ["192.0.2.1", "192.0.2.9"]),
    ],
)
def test_the_best_comes_first(v4: list[str], v6: list[str], expected: list[str]) -> None:
    pending = Pending("a")
    pending.take(socket.AF_INET, outcome(*v4), 0.0)
    pending.take(socket.AF_INET6, outcome(*v6), 0.0)
    assert pending.answer() == (tuple(map(place, expected)), "")
