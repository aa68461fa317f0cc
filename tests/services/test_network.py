"""Addresses, routes and rules of an interface, set and set again in a namespace, and read back with `ip`."""

import os
import select
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest

from lab.namespaces import Namespace
from lab.wait import until
from stagewire import tun
from stagewire.ipc.loop import Handler, Loop, Source, boot_time
from tun_service import network, routes
from tun_service.link import Link, LinkWatch, parse
from tun_service.network import NetworkRefused, Wanted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network devices")

MARK = 51820


class Host:
    """A namespace with wg0 in it."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self._clone = namespace.call(tun.open_clone)
        namespace.call(lambda: tun.attach(self._clone, "wg0", 0))

    def close(self) -> None:
        os.close(self._clone)

    def apply(
        self,
        *prefixes: str,
        addresses: tuple[str, ...] = ("10.9.0.1/24", "fd09::1/64"),
        table: str = "auto",
        mtu: int = 1420,
        fwmark: int = 0,
        set_mtu: bool = True,
    ) -> None:
        wanted = Wanted(addresses, mtu, table, fwmark)
        self.namespace.call(lambda: _apply(wanted, prefixes, set_mtu=set_mtu))

    def lines(self, *arguments: str) -> list[str]:
        """What `ip` says, without the times it counts."""
        said = self.namespace.run("ip", *arguments).stdout
        return sorted(line.split(" valid_lft")[0].strip() for line in said.splitlines())

    def addresses(self) -> set[str]:
        lines = [line.split() for line in self.lines("-oneline", "address", "show", "dev", "wg0")]
        return {line[3] for line in lines}

    def routes(self, table: str = "main") -> set[str]:
        """Those that are ours."""
        return {
            line.split()[0]
            for family in ("-4", "-6")
            for line in self.lines(family, "route", "show", "table", table, "proto", str(routes.PROTOCOL))
        }

    def rules(self) -> list[str]:
        return [
            line for family in ("-4", "-6") for line in self.lines(family, "rule") if "proto 87" in line or "[" in line
        ]

    def everything(self) -> list[list[str]]:
        return [
            self.lines("-details", "address", "show", "dev", "wg0"),
            *(self.lines(family, "route", "show", "table", "all") for family in ("-4", "-6")),
            *(self.lines(family, "rule") for family in ("-4", "-6")),
        ]


def _apply(wanted: Wanted, prefixes: tuple[str, ...], *, set_mtu: bool) -> None:
    said: list[str] = []
    made = routes.Routes(network.open_netlink(), "wg0", said.append)
    try:
        made.begin(wanted, map(ip_network, prefixes), set_mtu=set_mtu)
        while made.next_deadline() is not None:
            made.act(0.0)
    finally:
        made.close()
    if said != [""]:
        raise NetworkRefused("; ".join(said))


@pytest.fixture
def host() -> Iterator[Host]:
    with Namespace("net") as namespace:
        made = Host(namespace)
        yield made
        made.close()


def test_addresses_mtu_and_routes_are_set(host: Host) -> None:
    host.apply("10.8.0.0/16", "10.7.7.7/32", "fd08::/48", mtu=1380)
    assert host.addresses() == {"10.9.0.1/24", "fd09::1/64"}
    assert host.routes() == {"10.8.0.0/16", "10.7.7.7", "fd08::/48"}
    assert "mtu 1380" in "".join(host.lines("link", "show", "dev", "wg0"))
    assert "UP" in "".join(host.lines("link", "show", "dev", "wg0"))


def test_many_routes_leave_packets_as_much_time_as_they_take(host: Host) -> None:
    prefixes = [ip_network(f"10.{number >> 8}.{number & 255}.0/24") for number in range(4000)]

    def brought_into_line() -> list[float]:
        said: list[str] = []
        made = routes.Routes(network.open_netlink(), "wg0", said.append)
        made.begin(Wanted((), 1420, "auto", 0), prefixes)
        rests, begun = [], boot_time()
        made.act(begun)
        while (due := made.next_deadline()) is not None:
            took = (now := boot_time()) - begun
            rests.append((due - now) / took)
            begun = boot_time()
            made.act(begun)
        made.close()
        assert said == [""]
        return rests

    for _ in range(2):  # all of them are missing, then none
        rests = host.namespace.call(brought_into_line)
        assert len(host.routes()) == len(prefixes)
        assert len(rests) > 3
        assert sorted(rests)[len(rests) // 2] > 0.8


def test_differences_count_only_upon_what_was_compared(host: Host) -> None:
    def differences() -> list[bool]:
        said: list[str] = []
        made = routes.Routes(network.open_netlink(), "wg0", said.append)
        wanted, more = Wanted((), 1420, "auto", 0), [ip_network("10.9.0.0/24")]

        def settle() -> None:
            while made.next_deadline() is not None:
                made.act(0.0)

        def busy_after(call: Callable[[], None]) -> bool:
            call()
            return made.busy

        try:
            found = [busy_after(lambda: made.add(more))]
            made.begin(wanted, [ip_network("10.8.0.0/24")])
            settle()
            found += [made.follows(wanted), busy_after(lambda: made.add([])), busy_after(lambda: made.add(more))]
            settle()
            made.distrust()
            found += [busy_after(lambda: made.remove(more)), made.follows(wanted)]
        finally:
            made.close()
        assert said == ["", ""]
        return found

    assert host.namespace.call(differences) == [False, True, False, True, False, False]
    assert host.routes() == {"10.8.0.0/24", "10.9.0.0/24"}


@pytest.mark.parametrize("table", ["auto", "off", "7"])
def test_once_more_changes_nothing(host: Host, table: str) -> None:
    for _ in range(3):
        host.apply("10.8.0.0/16", "0.0.0.0/0", "::/0", "fd08::/48", table=table, fwmark=MARK)
        first = host.everything()
        host.apply("10.8.0.0/16", "0.0.0.0/0", "::/0", "fd08::/48", table=table, fwmark=MARK)
        assert host.everything() == first


def test_what_is_no_longer_wanted_goes(host: Host) -> None:
    host.apply("10.8.0.0/16", "10.7.0.0/16", "fd08::/48", addresses=("10.9.0.1/24", "10.9.9.1/32", "fd09::1/64"))
    host.apply("10.8.0.0/16", "fd07::/48", addresses=("10.9.1.1/24",))
    assert host.addresses() == {"10.9.1.1/24"}
    assert host.routes() == {"10.8.0.0/16", "fd07::/48"}
    host.apply(addresses=())
    assert host.addresses() == set()
    assert host.routes() == set()


def test_an_address_may_change_its_length_and_one_of_a_network_may_go(host: Host) -> None:
    """Linux takes a network's other addresses away along with its first."""
    for addresses in (
        ("10.9.0.1/24", "10.9.0.2/24", "10.9.0.3/24"),
        ("10.9.0.3/24",),
        ("10.9.0.3/16",),
        ("10.9.0.1/24", "10.9.0.2/24"),
        ("10.8.0.1/24",),
        ("10.9.0.2/24", "10.9.0.1/24"),
        ("10.9.0.1/24",),
    ):
        host.apply(addresses=addresses)
        assert host.addresses() == set(addresses)


def test_routes_of_others_stay(host: Host) -> None:
    host.apply("10.8.0.0/16")
    host.namespace.run("ip", "route", "add", "10.66.0.0/16", "dev", "wg0")
    host.namespace.run("ip", "route", "add", "blackhole", "10.67.0.0/16", "proto", str(routes.PROTOCOL))
    host.apply("10.7.0.0/16")
    assert host.routes() == {"10.7.0.0/16", "blackhole"}
    assert host.lines("route", "show", "10.66.0.0/16") == ["10.66.0.0/16 dev wg0 scope link"]


def test_no_route_is_set_when_the_table_is_off(host: Host) -> None:
    host.apply("10.8.0.0/16", "0.0.0.0/0", table="off")
    assert host.routes("all") == set()
    assert host.rules() == []


def test_all_go_into_a_table_of_ones_own(host: Host) -> None:
    host.apply("10.8.0.0/16", "0.0.0.0/0", "fd08::/48", table="7")
    assert host.routes() == set()
    assert host.routes("7") == {"10.8.0.0/16", "default", "fd08::/48"}
    assert host.rules() == []  # who looks into it is the operator's to say
    host.apply("10.8.0.0/16", "fd08::/48", table="8")
    assert host.routes("all") == host.routes("8") == {"10.8.0.0/16", "fd08::/48"}


def test_a_default_route_leaves_the_marked_packets_the_real_one(host: Host) -> None:
    host.namespace.run("ip", "link", "add", "out", "type", "veth", "peer", "name", "far")
    host.namespace.run("ip", "address", "add", "192.0.2.1/24", "dev", "out")
    for name in ("out", "far"):
        host.namespace.run("ip", "link", "set", name, "up")
    host.namespace.run("ip", "route", "add", "default", "via", "192.0.2.2")
    host.apply("0.0.0.0/0", "::/0", "10.8.0.0/16", fwmark=MARK)
    assert host.routes(str(MARK)) == {"default"}
    assert host.routes() == {"10.8.0.0/16"}

    def way(*arguments: str) -> str:
        return host.namespace.run("ip", "route", "get", *arguments).stdout

    assert "dev wg0" in way("203.0.113.9")
    assert "dev out" in way("203.0.113.9", "mark", str(MARK))
    assert "dev out" in way("192.0.2.77")  # more specific than a default
    assert "dev wg0" in way("2001:db8::1")
    host.apply("10.8.0.0/16")
    assert "dev out" in way("203.0.113.9")


def test_a_network_of_our_own_address_is_the_kernels_to_route(host: Host) -> None:
    host.apply("10.9.0.0/24", "fd09::/64", "10.8.0.0/16")
    assert host.routes() == {"10.8.0.0/16"}


def test_there_is_no_link_local_address(host: Host) -> None:
    host.apply()
    assert not any(address.startswith("fe80") for address in host.addresses())


def test_what_the_kernel_refuses_is_named(host: Host) -> None:
    for arguments, words in (
        ({"mtu": 70000}, "MTU 70000"),
        ({"addresses": ("fd09::1/64",), "mtu": 1000}, "fd09::1"),  # IPv6 needs 1,280
    ):
        with pytest.raises(NetworkRefused) as refused:
            host.apply(**arguments)
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)


def test_an_interface_that_is_gone_is_named(host: Host) -> None:
    host.namespace.run("ip", "link", "delete", "wg0")
    with pytest.raises(NetworkRefused, match="interface wg0 is gone"):
        host.apply()


def test_a_default_route_without_a_mark_leaves_the_host_its_own(host: Host) -> None:
    host.namespace.run("ip", "link", "add", "out", "type", "veth", "peer", "name", "far")
    host.namespace.run("ip", "address", "add", "192.0.2.1/24", "dev", "out")
    host.namespace.run("ip", "link", "set", "out", "up")
    host.namespace.run("ip", "route", "add", "default", "via", "192.0.2.2")
    before = host.lines("route", "show", "default")
    assert "via 192.0.2.2" in before[0]
    host.apply("0.0.0.0/0", "::/0", "10.8.0.0/16")
    assert host.lines("route", "show", "default") == before
    assert host.routes("all") == {"10.8.0.0/16"}
    assert host.rules() == []
    host.apply("0.0.0.0/0", "::/0", "10.8.0.0/16", fwmark=MARK)
    assert host.lines("route", "show", "default") == before
    assert host.routes(str(MARK)) == {"default"}


def test_an_mtu_that_somebody_has_set_may_be_left(host: Host) -> None:
    host.apply(mtu=1380)
    host.namespace.run("ip", "link", "set", "wg0", "mtu", "1300")
    host.apply(addresses=("10.9.0.2/24",), mtu=1380, set_mtu=False)
    assert host.addresses() == {"10.9.0.2/24"}
    assert "mtu 1300" in "".join(host.lines("link", "show", "dev", "wg0"))


class Watched(Loop):
    """A loop that is turned by hand, for one source."""

    def add(self, source: Source, handler: Handler, *, pipe: bool = False, along: int | None = None) -> None:
        assert not pipe
        assert along is None
        assert isinstance(source, int)
        self._source, self._handler = source, handler

    def turn(self) -> None:
        """Serves what is there."""
        while select.select([self._source], [], [], 0)[0]:
            self._handler(0.0)


def test_changes_of_the_link_are_told_and_those_of_others_are_not(host: Host) -> None:
    loop, told = Watched(), list[Link]()
    host.apply(mtu=1380)
    watch = host.namespace.call(lambda: LinkWatch(loop, "wg0", told.append))

    def last_is(link: Link) -> bool:
        loop.turn()
        return told[-1:] == [link]

    until(lambda: last_is(Link("wg0", 1380, True, False)), 5, "the link as it is")
    host.namespace.run("ip", "link", "set", "wg0", "mtu", "65000")
    until(lambda: last_is(Link("wg0", 65000, True, False)), 5, "the MTU")
    host.namespace.run("ip", "link", "add", "other", "type", "veth", "peer", "name", "another")
    host.namespace.run("ip", "link", "set", "wg0", "down")
    until(lambda: last_is(Link("wg0", 65000, False, False)), 5, "the link to be down")
    # More changes than the socket holds: the last of them is not lost.
    host.namespace.run("sh", "-c", "for i in $(seq 700); do echo link set other mtu $((1000 + i)); done | ip -b -")
    host.namespace.run("ip", "link", "set", "wg0", "mtu", "1300")
    until(lambda: last_is(Link("wg0", 1300, False, False)), 5, "the last change")
    host.namespace.run("ip", "link", "delete", "wg0")
    until(lambda: told[-1].gone or last_is(told[-1]._replace(gone=True)), 5, "the end")
    assert {link.name for link in told} == {"wg0"}
    watch.close()


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_what_is_no_whole_message_tells_nothing(cut: int) -> None:
    header = (60).to_bytes(4, "little") + (16).to_bytes(2, "little") + bytes(10)
    assert parse((header + b"\xff" * 44)[:cut]) == []
