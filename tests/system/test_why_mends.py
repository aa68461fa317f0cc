"""`stagewire why` on a host whose settings break a tunnel: its first answer names a command, and that command mends it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.system.whys import why

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import ping
from lab.wait import until

pytestmark = pytest.mark.system

UP, WG = "to-whmc", "wg0"
ROUTER = Topology.CB4


@dataclass(frozen=True)
class Case:
    """Breaks the tunnel to the peer of the case's own number: its addresses stand for PEER and PEER6."""

    id: str
    commands: str
    undo: str = ""
    peer6: bool = False


LINK = "ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up"
RULE = "iptables -t mangle -A OUTPUT -p udp --sport 51820 -j MARK --set-mark 0x77"
CASES = {
    "an address of another link": Case("own_address", f"{LINK}; ip addr add PEER/32 dev d0", "ip link del d0"),
    "a bridge with a part of the network": Case(
        "route_elsewhere", "ip link add br0 type bridge; ip link set br0 up; ip addr add NET1/25 dev br0", "ip link del br0"
    ),
    "a route in another table": Case(
        "route_elsewhere", "ip route add blackhole PEER/32 table 100; ip rule add pref 50 lookup 100", "ip rule del pref 50"
    ),
    "a rule that leads elsewhere": Case(
        "route_elsewhere",
        f"ip route add default via {ROUTER} table 101; ip rule add pref 60 to PEER/31 lookup 101",
        "ip route flush table 101",
    ),
    "a rule that refuses": Case("route_elsewhere", "ip -6 rule add pref 60 to PEER6 prohibit", peer6=True),
    "IPv6 switched off": Case("ipv6_off", f"sysctl -qw net.ipv6.conf.{WG}.disable_ipv6=1", peer6=True),
    "another source": Case(
        "tunnel_blocked_here", f"iptables -t nat -A POSTROUTING -o {WG} -d PEER -j SNAT --to-source 203.0.113.7"
    ),
    "a policy for the tunnel": Case("ipsec_drops", "ip xfrm policy add src PEER/32 dir in action block"),
    "a policy for the datagrams": Case("ipsec_drops", f"ip xfrm policy add dst {Topology.A4}/24 dir out action block"),
    "a mark that is refused": Case(
        "blocked_out", f"{RULE}; ip rule add pref 70 fwmark 0x77 blackhole", "iptables -t mangle -F OUTPUT"
    ),
    "connections refused": Case("blocked_out", "iptables -A OUTPUT -p udp -m conntrack ! --ctstate INVALID -j DROP"),
    "too few hops": Case("out_of_hops", "sysctl -qw net.ipv4.ip_default_ttl=1"),
    "the endpoint on this host": Case("endpoint_on_this_host", f"ip addr add {Topology.A4}/32 dev lo"),
    "a route into the tunnel": Case("endpoint_in_own_tunnel", f"ip route add {Topology.A4}/32 dev {WG}"),
    "a wrong neighbour": Case("neighbour_fixed", f"ip neigh replace {ROUTER} lladdr 02:00:00:00:00:99 dev {UP}"),
    "another name": Case(
        "renamed",
        f"ip link set {WG} down; ip link set {WG} name office; ip link set office up",
        f"ip link show office && ip link set office down && ip link set office name {WG} && ip link set {WG} up || true",
    ),
}  # fmt: skip
SPOKES = {
    name: Spoke(number, Topology.A4, allowed_ips=[f"10.66.{number}.2/32", f"fd66:{number}::2/128"])
    for number, name in enumerate(CASES, 1)
}


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("whm") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with Hub(network.b, shared_directory, {str(spoke.number): spoke for spoke in SPOKES.values()}) as gateway:
        yield gateway


def works(network: Topology, address: str) -> bool:
    try:
        return ping(network.b, address, count=2, timeout=1).received > 0
    except RuntimeError:  # there is no way
        return False


def doctor_finds(hub: Hub, trouble: str) -> bool:
    return trouble in hub.gateway.command("doctor", hub.name, "--json", check=False).stdout


@pytest.mark.parametrize("name", CASES)
def test_the_first_answer_mends_it(network: Topology, hub: Hub, name: str) -> None:
    case, spoke = CASES[name], SPOKES[name]
    address = spoke.inner[case.peer6]
    words = {"PEER6": spoke.inner[1], "PEER": spoke.inner[0], "NET1": spoke.inner[0][:-1] + "3"}
    commands = re.sub("PEER6|PEER|NET1", lambda found: words[found[0]], case.commands)
    with hub.wireguard_go(spoke, network.a, Topology.B4, keepalive=1):
        until(lambda: works(network, address), 15, "the tunnel to work")
        try:
            network.b.run("sh", "-ec", commands)
            assert case.id in ("own_address", "renamed") or not works(network, address)
            # The link was down on the way to another name, and the gateway tells of both a moment later.
            if case.id == "renamed":
                until(lambda: doctor_finds(hub, case.id), 10, "the gateway to notice")
            found = why(hub, spoke)["findings"][0]
            assert found["id"] == case.id, found
            mend = re.search("`(.*?)`", found["mend"])
            assert mend is not None
            network.b.run("sh", "-ec", mend[1])
            until(lambda: works(network, address), 15, "the mend to help")
        finally:
            network.b.run("sh", "-c", case.undo)


@pytest.mark.parametrize("name", ["IPv6 switched off", "another name"])
def test_doctor_mends_it(network: Topology, hub: Hub, name: str) -> None:
    network.b.run("sh", "-ec", CASES[name].commands)
    until(lambda: doctor_finds(hub, CASES[name].id), 10, "it")
    fixed = hub.gateway.command("doctor", "--fix", hub.name, check=False).stdout
    assert ("failed" in fixed, fixed.count("wrong: ")) == (False, 0)
    until(lambda: hub.gateway.status()["healthy"], 10, "all to work")


def test_a_host_that_answers_tcp_and_no_pings_of_one_family_is_well(network: Topology, hub: Hub) -> None:
    spoke = next(iter(SPOKES.values()))
    with hub.wireguard_go(spoke, network.a, Topology.B4, keepalive=1):
        until(lambda: works(network, spoke.inner[1]), 15, "the tunnel to work")
        network.a.sysctl("net.ipv4.icmp_echo_ignore_all", 1)
        try:
            assert not works(network, spoke.inner[0])
            assert [each["id"] for each in why(hub, spoke)["findings"]][:2] == ["well", "no_ping"]
        finally:
            network.a.sysctl("net.ipv4.icmp_echo_ignore_all", 0)
