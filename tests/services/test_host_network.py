"""Addresses, routes and rules of an interface, set and set again in a namespace, and read back with `ip`."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from host_service import undo
from host_service.ground import Ground, NetworkRefused, Wanted
from host_service.ledger import Ledger
from host_service.network import HostNetwork
from lab.namespaces import Namespace
from lab.wait import until
from stagewire.limits import ROUTE_PROTOCOL
from stagewire.linux import tun
from stagewire.loop import boot_time

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network devices")

MARK = 51820


class Host:
    """A namespace with wg0 in it."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self.namespace = namespace
        self._ledger = directory / "ledger"
        self._clone = namespace.call(tun.open_clone)
        namespace.call(lambda: tun.attach(self._clone, "wg0", 0))

    def close(self) -> None:
        os.close(self._clone)

    def made(self, prefixes: tuple[str, ...], said: list[str], name: str = "wg0") -> HostNetwork:
        """To be called in the namespace."""
        ground = Ground(name, 0, False, Ledger(self._ledger.with_name(f"{name}.ledger")))
        wanted = dict.fromkeys(map(ip_network, prefixes))
        return HostNetwork(ground, [], wanted, said.append, lambda: None, lambda _link: None, lambda: None)

    def apply(
        self,
        *prefixes: str,
        addresses: tuple[str, ...] = ("10.9.0.1/24", "fd09::1/64"),
        table: str = "auto",
        mtu: int = 1420,
        fwmark: int = 0,
    ) -> None:
        def brought_into_line() -> list[str]:
            said: list[str] = []
            network = self.made(prefixes, said)
            network.begin(Wanted(addresses, mtu, table, fwmark))
            settle(network)
            network._ground.close()
            return said

        said = self.namespace.call(brought_into_line)
        if said != [""]:
            raise NetworkRefused("; ".join(said))

    def lines(self, *arguments: str) -> list[str]:
        """What `ip` says, without the times it counts."""
        said = self.namespace.run("ip", *arguments).stdout
        # The kernel finds out by and by that a link has a carrier, and that nobody else has an address.
        changing = re.compile(r" state \w+| tentative")
        return sorted(changing.sub("", line.split(" valid_lft")[0]).strip() for line in said.splitlines())

    def addresses(self) -> set[str]:
        lines = [line.split() for line in self.lines("-oneline", "address", "show", "dev", "wg0")]
        return {line[3] for line in lines}

    def routes(self, table: str = "main", via: str = "dev wg0") -> set[str]:
        """Those that are ours."""
        return {
            line.split()[0]
            for family in ("-4", "-6")
            for line in self.lines(family, "route", "show", "table", table, "proto", str(ROUTE_PROTOCOL))
            if via in line and not line.startswith("unreachable")
        }

    def guards(self, table: str = "main") -> set[str]:
        """Returns the guard routes behind them."""
        return {
            line.split()[1]
            for family in ("-4", "-6")
            for line in self.lines(family, "route", "show", "table", table, "proto", str(ROUTE_PROTOCOL))
            if line.startswith("unreachable")
        }

    def rules(self) -> list[str]:
        return [
            line for family in ("-4", "-6") for line in self.lines(family, "rule") if "proto 87" in line or "[" in line
        ]

    def everything(self) -> list[list[str]]:
        def addresses() -> list[str]:
            return self.lines("-details", "address", "show", "dev", "wg0")

        # The kernel gives an IPv6 address its routes a little later, on a busy machine.
        until(lambda: not any("tentative" in line for line in addresses()), 5, "the addresses to be whole")
        return [
            addresses(),
            *(self.lines(family, "route", "show", "table", "all") for family in ("-4", "-6")),
            *(self.lines(family, "rule") for family in ("-4", "-6")),
        ]


def settle(network: HostNetwork) -> None:
    """Until there is nothing to do."""
    while network.busy:
        network.act(boot_time())


@pytest.fixture
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory() as directory, Namespace("net") as namespace:
        made = Host(namespace, Path(directory))
        yield made
        made.close()


def test_two_that_start_at_the_same_moment_take_different_numbers(host: Host) -> None:
    def numbers() -> list[int]:
        said: list[str] = []
        both = [host.made(("0.0.0.0/0", "::/0"), said, name) for name in ("wg0", "wg1")]
        for network in both:
            network.begin(Wanted((), 1420, "auto", 0))
        while any(network.busy for network in both):
            for network in both:
                if network.busy:
                    network.act(boot_time())
        for network in both:
            network._ground.close()
        assert said == ["", ""]
        return [network.policy.number for network in both]

    assert sorted(host.namespace.call(numbers)) == [MARK, MARK + 1]
    assert not [line for line in host.rules() if line.startswith("32766") and "proto 87" in line], "no claim is left"


def test_a_mark_of_another_tunnel_is_refused_and_its_rules_stay(host: Host) -> None:
    host.apply("0.0.0.0/0", "::/0")
    before = host.everything()

    def refused() -> list[str]:
        said: list[str] = []
        network = host.made(("0.0.0.0/0",), said, "wg1")
        network.begin(Wanted((), 1420, "auto", MARK))
        settle(network)
        operations = network._ground.ledger.operations()
        network._ground.close()
        undo.undo("wg1", 0, operations, said.append)
        return said

    assert host.namespace.call(refused) == ["FwMark 0xca6c is another tunnel's mark; choose another"]
    assert host.everything() == before


def test_without_room_for_its_rules_a_default_route_is_refused(host: Host) -> None:
    host.namespace.run("ip", "rule", "add", "pref", "4", "lookup", "main", "suppress_prefixlength", "0")
    with pytest.raises(NetworkRefused, match="give the policy rule of priority 4 a greater priority"):
        host.apply("0.0.0.0/0")


def test_an_address_that_the_operator_adds_stays(host: Host) -> None:
    host.apply("10.8.0.0/16")
    host.namespace.run("ip", "address", "add", "10.99.0.1/32", "dev", "wg0")
    host.apply("10.8.0.0/16", addresses=("10.9.0.1/24",))
    assert host.addresses() == {"10.9.0.1/24", "10.99.0.1/32"}
    host.apply("10.8.0.0/16", addresses=())
    assert host.addresses() == {"10.99.0.1/32"}


def test_addresses_mtu_and_routes_are_set(host: Host) -> None:
    host.apply("10.8.0.0/16", "10.7.7.7/32", "fd08::/48", mtu=1380)
    assert host.addresses() == {"10.9.0.1/24", "fd09::1/64"}
    assert host.routes() == {"10.8.0.0/16", "10.7.7.7", "fd08::/48"}
    assert "mtu 1380" in "".join(host.lines("link", "show", "dev", "wg0"))
    assert "UP" in "".join(host.lines("link", "show", "dev", "wg0"))


def test_many_routes_leave_packets_as_much_time_as_they_take(host: Host) -> None:
    prefixes = tuple(f"10.{number >> 8}.{number & 255}.0/24" for number in range(4000))

    def brought_into_line() -> list[float]:
        said: list[str] = []
        network = host.made(prefixes, said)
        network.begin(Wanted((), 1420, "auto", 0))
        rests, begun = [], boot_time()
        network.act(begun)
        while network.busy:
            due = network.next_deadline()
            assert due is not None
            took = (now := boot_time()) - begun
            rests.append((due - now) / took)
            begun = boot_time()
            network.act(begun)
        network._ground.close()
        assert said == [""]
        return rests

    for _ in range(2):  # all of them are missing, then none
        rests = host.namespace.call(brought_into_line)
        assert len(host.routes("main", via="dev wg0")) == len(prefixes)
        assert len(rests) > 3
        assert sorted(rests)[len(rests) // 2] > 0.8


def test_differences_count_only_upon_what_was_compared(host: Host) -> None:
    def differences() -> list[bool]:
        said: list[str] = []
        network = host.made(("10.8.0.0/24",), said)
        wanted, more = Wanted((), 1420, "auto", 0), [ip_network("10.9.0.0/24")]

        def busy_after(call: Callable[[], None]) -> bool:
            call()
            return network.busy

        found = [busy_after(lambda: network.add(more))]
        network.begin(wanted)
        settle(network)
        network._prefixes[more[0]] = None
        found += [network.follows(wanted), busy_after(lambda: network.add([])), busy_after(lambda: network.add(more))]
        settle(network)
        network.distrust()
        found += [busy_after(lambda: network.remove(more)), network.follows(wanted)]
        network._ground.close()
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
    assert host.routes() == host.guards() == {"10.8.0.0/16", "fd07::/48"}
    host.apply(addresses=())
    assert host.addresses() == set()
    assert host.routes() == host.guards() == set()


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
    host.namespace.run("ip", "route", "add", "blackhole", "10.67.0.0/16", "proto", str(ROUTE_PROTOCOL))
    host.apply("10.7.0.0/16")
    assert host.routes() == {"10.7.0.0/16"}
    assert host.lines("route", "show", "10.66.0.0/16") == ["10.66.0.0/16 dev wg0 scope link"]
    assert host.lines("route", "show", "type", "blackhole") == ["blackhole 10.67.0.0/16 proto 87"]


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
    with pytest.raises(NetworkRefused, match="MTU 70000: Invalid argument"):
        host.apply(mtu=70000)


def test_an_mtu_too_small_for_ipv6_leaves_that_out(host: Host) -> None:
    host.apply("10.8.0.0/16", "fd08::/48", mtu=1000)
    assert host.addresses() == {"10.9.0.1/24"}
    assert host.routes() == {"10.8.0.0/16"}
    assert host.guards() == {"10.8.0.0/16", "fd08::/48"}
    host.apply("10.8.0.0/16", "fd08::/48", mtu=1280)
    assert host.addresses() >= {"10.9.0.1/24", "fd09::1/64"}
    assert host.routes() == {"10.8.0.0/16", "fd08::/48"}


def test_an_interface_of_another_kind_is_named(host: Host) -> None:
    host.namespace.run("ip", "link", "delete", "wg0")
    host.namespace.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "far")
    with pytest.raises(NetworkRefused, match="interface wg0 exists and is no TUN device"):
        host.apply()


def test_without_a_fwmark_a_table_and_mark_are_found_that_nobody_uses(host: Host) -> None:
    host.namespace.run("ip", "route", "add", "blackhole", "10.66.0.0/16", "table", "51820")
    host.namespace.run("ip", "-6", "rule", "add", "fwmark", "51821", "lookup", "77")
    host.apply("0.0.0.0/0", "::/0", "10.8.0.0/16")
    assert host.routes("51822") == host.guards("51822") == {"default"}
    assert any("not from all fwmark 0xca6e lookup 51822" in rule for rule in host.rules())
    host.apply("10.8.0.0/16")
    assert host.rules() == []
    assert host.routes("all") == host.guards("all") == {"10.8.0.0/16"}


def test_an_mtu_that_somebody_has_set_may_be_left(host: Host) -> None:
    host.apply(mtu=1380)
    host.namespace.run("ip", "link", "set", "wg0", "mtu", "1300")
    host.apply(addresses=("10.9.0.2/24",), mtu=1380)
    assert host.addresses() == {"10.9.0.2/24"}
    assert "mtu 1300" in "".join(host.lines("link", "show", "dev", "wg0"))
    host.apply(addresses=("10.9.0.2/24",), mtu=1390)
    assert "mtu 1390" in "".join(host.lines("link", "show", "dev", "wg0"))


def test_where_the_mtu_leaves_no_room_for_ipv6_its_packets_go_nowhere_else(host: Host) -> None:
    """The rest works; what a full tunnel has of IPv6 is kept from the host's own default route."""
    host.apply("0.0.0.0/0", "::/0", "fd08::/48", mtu=1200)
    assert host.addresses() == {"10.9.0.1/24"}
    assert host.routes(str(MARK)) == {"default"}
    assert host.guards(str(MARK)) == {"default"}
    assert host.guards() == {"fd08::/48"}
    families = [[line for line in host.lines(family, "rule") if "proto 87" in line] for family in ("-4", "-6")]
    assert [len(rules) for rules in families] == [3, 2]
    namespace = host.namespace
    namespace.run("ip", "link", "add", "out", "type", "veth", "peer", "name", "far")
    for link in ("out", "far"):
        namespace.run("ip", "link", "set", link, "up")
    namespace.run("ip", "address", "add", "2001:db8::1/64", "dev", "out")
    namespace.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2", "dev", "out")
    assert "No route to host" in namespace.run("ip", "-6", "route", "get", "2001:db8:7::7", check=False).stderr
    host.apply("0.0.0.0/0", "::/0", "fd08::/48", mtu=1400)
    assert host.addresses() >= {"10.9.0.1/24", "fd09::1/64"}
    assert "dev wg0" in namespace.run("ip", "-6", "route", "get", "2001:db8:7::7").stdout


@pytest.mark.parametrize("table", ["auto", "254"])
def test_a_network_that_an_address_has_a_route_to_is_left_to_it(host: Host, table: str) -> None:
    host.apply("10.9.0.0/24", "fd09::/64", "10.8.0.0/16", table=table)
    assert host.routes() == {"10.8.0.0/16"}
    assert {"10.9.0.0/24", "10.8.0.0/16"} <= host.guards()
