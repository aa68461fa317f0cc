"""What a gateway does to its host: addresses, routes, rules, unreachables, names; and what other users can't do to it.

A: wg0 with Table = off, wg1 with Table = 1234, and wireguard-go in C, the router, as their peers.
"""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.hub import PORT, Hub, Spoke, together
from lab.namespaces import Namespace, Topology
from lab.traffic import ping
from lab.wait import until
from stagewire.stages import STAGES

pytestmark = pytest.mark.system

NAMED = Spoke(1, "c.example", allowed_ips=["10.77.0.0/16", "fd77::/64"])
UNRESOLVABLE = Spoke(2, "nowhere.invalid")
NEVER_SEEN = Spoke(3)
LATE = Spoke(6, "late.example")
NUMBERED = Spoke(4, Topology.CA4, allowed_ips=["10.78.0.0/16", "0.0.0.0/0", "::/0"])
TABLE = 1234
NOBODY = 65534


class Hubs(NamedTuple):
    off: Hub
    numbered: Hub
    etc: Path
    """The /etc of both."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("n") as topology:
        yield topology


@pytest.fixture(scope="module")
def hubs(network: Topology, shared_directory: Path) -> Iterator[Hubs]:
    spokes = {"named": NAMED, "unresolvable": UNRESOLVABLE, "never seen": NEVER_SEEN, "late": LATE}
    off = Hub(network.a, shared_directory, spokes, "Table = off", "MTU = 1380", name="wg0")
    numbered = Hub(network.a, shared_directory, {"n": NUMBERED}, f"Table = {TABLE}", name="wg1", port=PORT + 1000)
    names = network.a.etc(hosts=f"{Topology.CA4} c.example\n", resolv_conf="nameserver 127.0.0.1\n")
    with names as etc, together(off, numbered):
        yield Hubs(off, numbered, etc)


def routes(namespace: Namespace, family: int, *selector: str) -> set[str]:
    """The prefixes, `default` among them."""
    shown = json.loads(namespace.run("ip", "-j", f"-{family}", "route", "show", *selector).stdout or "[]")
    return {route["dst"] for route in shown}


def link(namespace: Namespace, name: str) -> dict[str, Any]:
    """MTU, state, addresses."""
    return dict(json.loads(namespace.run("ip", "-j", "address", "show", "dev", name).stdout)[0])


def addresses(namespace: Namespace, name: str) -> set[str]:
    """With their prefix lengths; not the link-local one, which is the kernel's."""
    found = link(namespace, name)["addr_info"]
    return {f"{each['local']}/{each['prefixlen']}" for each in found if each["scope"] != "link"}


def test_addresses_and_mtu_are_the_configured_ones(network: Topology, hubs: Hubs) -> None:
    wanted = {f"10.66.{n}.1/24" for n in (1, 2, 3, 6)} | {f"fd66:{n}::1/64" for n in (1, 2, 3, 6)}
    assert addresses(network.a, "wg0") == wanted
    assert addresses(network.a, "wg1") == {"10.66.4.1/24", "fd66:4::1/64"}
    assert (link(network.a, "wg0")["mtu"], link(network.a, "wg1")["mtu"]) == (1380, 1420)
    assert {"UP", "LOWER_UP", "POINTOPOINT"} <= set(link(network.a, "wg0")["flags"])


def test_table_off_sets_no_routes(network: Topology, hubs: Hubs) -> None:
    # What remains is the kernel's: the networks of the addresses.
    assert routes(network.a, 4, "dev", "wg0") == {f"10.66.{n}.0/24" for n in (1, 2, 3, 6)}
    assert not {"fd77::/64", "10.77.0.0/16"} & (routes(network.a, 4) | routes(network.a, 6))


def test_a_numbered_table_gets_all_routes_and_no_rule(network: Topology, hubs: Hubs) -> None:
    selector = ("table", str(TABLE))
    assert routes(network.a, 4, *selector) == {"10.66.4.0/24", "10.78.0.0/16", "default"}
    assert routes(network.a, 6, *selector) == {"fd66:4::/64", "default"}
    for family in ("-4", "-6"):
        assert str(TABLE) not in network.a.run("ip", family, "rule").stdout
    with hubs.numbered.wireguard_go(NUMBERED, network.c):
        assert ping(network.a, NUMBERED.inner[0]).received == 1
        assert ping(network.a, NUMBERED.inner[1]).received == 1


def test_a_peer_is_found_by_its_name(network: Topology, hubs: Hubs) -> None:
    until(lambda: hubs.off.peer(NAMED)["endpoint"] == f"{Topology.CA4}:{NAMED.port}", 5, "the name to be resolved")
    with hubs.off.wireguard_go(NAMED, network.c):
        for address in NAMED.inner:
            assert ping(network.a, address, count=2).received == 2


def test_a_name_that_nobody_knows_is_complained_about_and_holds_nobody_up(network: Topology, hubs: Hubs) -> None:
    assert hubs.off.peer(UNRESOLVABLE)["endpoint"] is None
    complaint = until(
        lambda: [line for text in hubs.off.gateway.logs().values() for line in text.splitlines() if "invalid" in line],
        5,
        "the complaint in the log",
    )
    assert "level=warning" in complaint[0]
    assert UNRESOLVABLE.keys.public[:10] in complaint[0]


def test_a_name_that_becomes_known_later_is_found(network: Topology, hubs: Hubs) -> None:
    assert hubs.off.peer(LATE)["endpoint"] is None
    hosts = hubs.etc / "hosts"
    hosts.write_text(hosts.read_text() + f"{Topology.CA6} late.example\n")
    until(lambda: hubs.off.peer(LATE)["endpoint"] == f"[{Topology.CA6}]:{LATE.port}", 10, "the name to be resolved")


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("10.99.0.1", "Destination Host Unreachable"),
        ("fd99::1", "Address unreachable"),
        (NEVER_SEEN.inner[0], "Destination Host Unreachable"),
        (NEVER_SEEN.inner[1], "Address unreachable"),
        (UNRESOLVABLE.inner[0], "Destination Host Unreachable"),
    ],
)
def test_the_sender_hears_that_nobody_is_there(network: Topology, hubs: Hubs, destination: str, expected: str) -> None:
    """Two destinations that no peer owns, routed to the device by hand; peers of which nobody knows where they are."""
    prefix = "fd99::/64" if ":" in destination else "10.99.0.0/24"
    network.a.run("ip", "route", "replace", prefix, "dev", "wg0")
    try:
        report = ping(network.a, destination, count=2)
    finally:
        network.a.run("ip", "route", "delete", prefix, "dev", "wg0")
    assert report.received == 0
    assert report.output.count(expected) == 2
    reason = "no_peer" if destination.startswith(("10.99", "fd99")) else "no_endpoint"
    until(lambda: hubs.off.counters()[reason] >= 2, 5, f"{reason} to be counted")


def test_every_service_has_an_unprivileged_uid_of_its_own(network: Topology, hubs: Hubs) -> None:
    uids: dict[int, set[str]] = {}
    for service in hubs.off.gateway.status()["services"]:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{service['pid']}/status").read_text().splitlines())
        real, *others = map(int, fields["Uid"].split())
        assert set(others) == {real}
        assert not fields["Groups"].split()
        uids.setdefault(real, set()).add(service["service"])
        # CAP_NET_BIND_SERVICE is bit 10, CAP_NET_ADMIN bit 12.
        outside = 1 << 12 | 1 << 10
        allowed = {"host-service": outside}.get(service["service"], 0)
        assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == allowed
        assert fields["NoNewPrivs"].strip() == "1"
    assert 0 not in uids
    assert sorted(map(len, uids.values())) == [1] * (len(STAGES) + 1)  # there are two workers


def test_other_users_cannot_enter_the_run_directory(network: Topology, hubs: Hubs) -> None:
    directory = hubs.off.gateway.run_directory / "wg0"
    assert stat.S_IMODE(directory.stat().st_mode) & stat.S_IRWXO == 0
    sockets = [path for path in directory.rglob("*") if path.is_socket()]
    assert sockets
    reach = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).connect(sys.argv[1])"
    for uid, refused in ((NOBODY, True), (0, False)):
        user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
        assert (network.a.run(*user, "ls", directory, check=False).returncode != 0) == refused
        tried = network.a.run(*user, "/usr/bin/python3", "-c", reach, sockets[0], check=False)
        assert ("PermissionError" in tried.stderr) == refused


def snapshot(namespace: Namespace) -> dict[str, str]:
    """All that a gateway may change in the network."""
    commands = [("link",), *((f, what, *more) for f in ("-4", "-6") for what, *more in (["address"], ["rule"]))]
    commands += [(family, "route", "show", "table", "all") for family in ("-4", "-6")]
    return {" ".join(command): namespace.run("ip", "-o", *command).stdout for command in commands}


INTERNET = ("203.0.113.1", "2001:db8:ffff::1")
"""Somewhere beyond the tunnel's other end."""
DEFAULT = Spoke(5, Topology.A4, allowed_ips=["0.0.0.0/0", "::/0", "10.88.0.0/16", "fd88::/64"])


def test_a_default_route_leads_through_the_tunnel_and_spares_its_own_packets(
    network: Topology, lab_directory: Path
) -> None:
    before = snapshot(network.b)
    hub = Hub(network.b, lab_directory, {"default": DEFAULT})
    with hub, hub.wireguard_go(DEFAULT, network.a) as peer:
        for address in INTERNET:
            network.a.run("ip", "address", "add", address, "dev", peer.interface)
        assert {"10.88.0.0/16"} <= routes(network.b, 4, "dev", "wg0")
        assert {"fd88::/64"} <= routes(network.b, 6, "dev", "wg0")
        for reverse_path_filter in (0, 2):  # 2 is what Debian sets
            network.b.sysctl("net.ipv4.conf.all.rp_filter", reverse_path_filter)
            for address in (*INTERNET, *DEFAULT.inner):
                assert ping(network.b, address, count=2).received == 2
        # The network at the next wire stays where it was, and so does the way to the peer.
        assert ping(network.b, Topology.CB4).received == 1
        assert hub.peer(DEFAULT)["endpoint"] == f"{Topology.A4}:{DEFAULT.port}"
        for address in INTERNET:
            assert "dev wg0" in network.b.run("ip", "route", "get", address).stdout
        hub.gateway.down()
        assert not hub.gateway.run_directory.joinpath("wg0").exists()
        assert network.b.pids() == []
        assert snapshot(network.b) == before
    assert list(hub.gateway.run_directory.iterdir()) == []
