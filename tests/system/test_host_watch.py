"""What others undo is put back within a second, counted and said; meanwhile nothing of the tunnel leaves in clear."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.system.host_lab import Tunnel, in_clear, reached

from lab.capture import Capture
from lab.namespaces import Namespace, Topology
from lab.traffic import NumberedStream
from lab.wait import until

pytestmark = pytest.mark.system

BEYOND, SPLIT, SPLIT6 = "203.0.113.1", "10.66.0.1", "fd66::1"
SOON = 3.0
"""s; on a machine that has nothing else to do it is one."""
FLUSH_RULES = "ip {0} rule flush; ip {0} rule add pref 32766 lookup main"


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("hw") as topology:
        yield topology


@pytest.fixture(scope="module")
def tunnel(network: Topology, shared_directory: Path) -> Iterator[Tunnel]:
    """All into the tunnel, and some prefixes by name."""
    prefixes = ["0.0.0.0/0", "::/0", "10.66.0.0/16", "fd66::/64"]
    made = Tunnel(network.b, shared_directory, prefixes, addresses=["10.9.0.1/24", "fd09::1/64"])
    inner = (f"{BEYOND}/32", f"{SPLIT}/32", f"{SPLIT6}/128")
    with made.other_end(network.a, *inner) as far:
        far.set("peer", made.keys.public, "allowed-ips", "10.9.0.1/32,fd09::1/128")
        network.a.run("ip", "route", "replace", "10.9.0.1", "dev", far.interface)
        network.a.run("ip", "-6", "route", "replace", "fd09::1", "dev", far.interface)
        with made.gateway:
            until(lambda: whole(network.b), 10, "the tunnel")
            yield made


@pytest.fixture
def wire(network: Topology, tunnel: Tunnel) -> Iterator[Capture]:
    """On which no inner address may be seen, whatever is done."""
    with Capture(network.b, network.link_b.a_interface) as capture:
        yield capture
    for address in (BEYOND, SPLIT, tunnel.ours, tunnel.theirs):
        assert in_clear(capture, address) == 0


def whole(namespace: Namespace) -> bool:
    """Whether each kind of address is reached."""
    return all(reached(namespace, address) for address in (BEYOND, SPLIT, SPLIT6))


def standing(namespace: Namespace) -> list[str]:
    """All of ours."""
    found = [namespace.run("ip", "-o", "address", "show", "wg0", check=False).stdout]
    for family in ("-4", "-6"):
        rules = namespace.run("ip", family, "rule").stdout.splitlines()
        found += [rule for rule in rules if "proto 87" in rule]
        found += sorted(namespace.run("ip", family, "route", "show", "table", "all", "proto", "87").stdout.splitlines())
    found.append(namespace.run("sysctl", "net.ipv4.conf.all.src_valid_mark").stdout)
    return [*found, namespace.run("nft", "list", "table", "inet", "stagewire-wg0", check=False).stdout]


KINDS: dict[str, tuple[str, str]] = {
    "rules, IPv4": (FLUSH_RULES.format("-4"), "put_back_rule"),
    "rules, IPv6": (FLUSH_RULES.format("-6"), "put_back_rule"),
    "one rule": ("ip rule del not fwmark 51820 lookup 51820", "put_back_rule"),
    "addresses": ("ip address flush dev wg0", "put_back_address"),
    "one address": ("ip address del 10.9.0.1/24 dev wg0", "put_back_address"),
    "a route": ("ip route del 10.66.0.0/16", "put_back_route"),
    "a route, IPv6": ("ip -6 route del fd66::/64", "put_back_route"),
    "the default route": ("ip route del default table 51820", "put_back_route"),
    "the whole table": ("ip route flush table 51820; ip -6 route flush table 51820", "put_back_route"),
    "all routes": ("ip route flush dev wg0; ip -6 route flush dev wg0 proto 87", "put_back_route"),
    "our firewall": ("nft delete table inet stagewire-wg0", "put_back_firewall"),
    "a rule before ours": ("nft insert rule inet stagewire-wg0 postmangle accept", "put_back_firewall"),
    "our firewall asleep": ("nft 'add table inet stagewire-wg0 { flags dormant; }'", "put_back_firewall"),
    "the sysctl": ("sysctl -qw net.ipv4.conf.all.src_valid_mark=0", "put_back_sysctl"),
    "all firewalls": ("nft flush ruleset", "put_back_firewall"),
    "down and up": ("ip link set wg0 down; ip link set wg0 up", "put_back_route"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_undo_is_put_back(network: Topology, tunnel: Tunnel, wire: Capture, kind: str) -> None:
    command, counter = KINDS[kind]
    before, counted = standing(network.b), tunnel.counted(counter)
    network.b.run("sh", "-c", command)
    until(lambda: standing(network.b) == before, SOON, "all to be back")
    assert whole(network.b)
    until(lambda: tunnel.counted(counter) > counted, 5, f"{counter} to be counted")
    host = tunnel.host()
    assert host["put_back"]
    assert host["warnings"] == []
    assert tunnel.gateway.status()["ready"]
    assert "put back what others undid" in "".join(tunnel.gateway.logs().values())


@pytest.mark.parametrize("verb", ["replace", "prepend"])
def test_a_route_that_goes_before_ours_is_said_and_ours_made_again_when_that_goes(
    network: Topology, tunnel: Tunnel, verb: str
) -> None:
    before = standing(network.b)
    route = ("10.66.0.0/16", "via", Topology.CB4)
    network.b.run("ip", "route", verb, *route, "proto", "static")
    until(lambda: tunnel.host()["warnings"], SOON, "the warning")
    assert tunnel.host()["warnings"][0].startswith(f"route 10.66.0.0/16 is taken: via {Topology.CB4} dev")
    assert f"via {Topology.CB4}" in network.b.run("ip", "route", "show", "10.66.0.0/16").stdout
    network.b.run("ip", "route", "del", *route)
    until(lambda: standing(network.b) == before, SOON, "ours to be back")
    until(lambda: not tunnel.host()["warnings"], SOON, "the warning to go")


def test_an_interface_that_is_deleted_is_made_again(network: Topology, tunnel: Tunnel, wire: Capture) -> None:
    before, counted = standing(network.b), tunnel.counted("put_back_link")
    network.b.run("ip", "link", "delete", "wg0")
    for address in (BEYOND, SPLIT, SPLIT6):
        reached(network.b, address, timeout=0.1)
    until(lambda: as_before(network.b, before), 10, "all to be back")
    until(lambda: whole(network.b), 15, "tun-service to be back")
    until(lambda: tunnel.counted("put_back_link") > counted, 5, "it to be counted")


def test_an_interface_that_is_renamed_and_gets_its_name_back(network: Topology, tunnel: Tunnel) -> None:
    before = standing(network.b)
    network.b.run("sh", "-c", "ip link set wg0 down; ip link set wg0 name other; ip link set other up")
    until(lambda: "was renamed to other" in fault(tunnel), 5, "that to be said")
    network.b.run("sh", "-c", "ip link set other down; ip link set other name wg0; ip link set wg0 up")
    until(lambda: as_before(network.b, before), 10, "all to be back")
    until(lambda: tunnel.gateway.status()["ready"], 5, "the gateway to be ready")


def test_a_manager_that_undoes_it_again_and_again_is_not_fought_at_full_speed(
    network: Topology, tunnel: Tunnel, wire: Capture
) -> None:
    before, counted = standing(network.b), tunnel.counted("put_back_route")
    for _ in range(40):
        network.b.run("ip", "route", "del", "10.66.0.0/16", check=False)
        reached(network.b, SPLIT, timeout=0.05)
    until(lambda: standing(network.b) == before, SOON, "it to be back")
    until(lambda: tunnel.counted("put_back_route") > counted, 5, "it to be counted")
    assert tunnel.counted("put_back_route") - counted < 30


def test_an_interface_that_is_set_down_is_left_so_and_said(network: Topology, tunnel: Tunnel, wire: Capture) -> None:
    before = standing(network.b)
    network.b.run("ip", "link", "set", "wg0", "down")
    until(lambda: tunnel.host()["warnings"], SOON, "the warning")
    assert tunnel.host()["warnings"] == ["wg0 is set down; `ip link set wg0 up` sets it up again"]
    for address in (BEYOND, SPLIT, SPLIT6, tunnel.theirs):
        assert not reached(network.b, address, timeout=0.2)  # and `wire` sees none of it
    assert "UP" not in network.b.run("ip", "-o", "link", "show", "wg0").stdout.split(">")[0].split("<")[1].split(",")
    network.b.run("ip", "link", "set", "wg0", "up")
    until(lambda: standing(network.b) == before, SOON, "all to be back")
    until(lambda: not tunnel.host()["warnings"], SOON, "the warning to go")
    assert whole(network.b)


def test_an_interface_that_goes_elsewhere_and_comes_back(network: Topology, tunnel: Tunnel, wire: Capture) -> None:
    before = standing(network.b)
    with Namespace("hwe") as elsewhere:
        network.b.run("ip", "link", "set", "wg0", "netns", elsewhere.name)
        until(lambda: "another network namespace" in fault(tunnel), 5, "that to be said")
        for address in (BEYOND, SPLIT, SPLIT6):
            assert not reached(network.b, address, timeout=0.2)
        kill_host(tunnel)  # the next one doesn't make another
        until(lambda: "another network namespace" in fault(tunnel), 10, "that to be said again")
        elsewhere.run("sh", "-c", f"ip link set wg0 netns {network.b.name}")
    until(lambda: as_before(network.b, before), SOON, "all to be back")
    until(lambda: tunnel.gateway.status()["ready"], 5, "the gateway to be ready")
    until(lambda: whole(network.b), 5, "the tunnel")


def as_before(namespace: Namespace, before: list[str]) -> bool:
    """Its number, and with it the metric of what stands behind its routes, may be another."""

    def plain(lines: list[str]) -> list[str]:
        words = (line.partition(" metric 42949")[0] for line in lines[1:])
        return [" ".join(each.split()) for each in words]

    return plain(standing(namespace)) == plain(before)


def fault(tunnel: Tunnel) -> str:
    """What host-service says that keeps it from its work."""
    found = [each["fault"] for each in tunnel.gateway.status()["services"] if each["service"] == "host-service"]
    return str(found[0])


def kill_host(tunnel: Tunnel) -> None:
    """supervisord starts another."""
    tunnel.gateway.supervisorctl("signal", "KILL", "host-service:host-service_00")


def test_a_killed_host_service_costs_no_packet_and_changes_nothing(
    network: Topology, tunnel: Tunnel, wire: Capture
) -> None:
    before, lives = standing(network.b), tunnel.gateway.pid("host")
    back: Callable[[], bool] = lambda: tunnel.gateway.held().get(("host", 0), lives) != lives  # noqa: E731
    with NumberedStream(network.b, network.a, BEYOND, rate=200) as stream:
        until(lambda: stream.sent > 50, 5, "packets to flow")
        kill_host(tunnel)
        until(back, 15, "another host-service")
        until(lambda: tunnel.gateway.status()["ready"], 10, "it to be ready")
        report = stream.finish()
    assert report.lost == 0
    assert standing(network.b) == before
    # What was undone while there was none is put back too.
    lives = tunnel.gateway.pid("host")
    kill_host(tunnel)
    network.b.run("sh", "-c", "ip route flush table 51820; ip rule flush; ip rule add pref 32766 lookup main")
    until(back, 15, "another host-service")
    until(lambda: standing(network.b) == before, 10, "all to be back")
