"""Debian's `wg` at both kinds of gateway: every form of `show`, and every command that changes something."""

import re
import time
from collections.abc import Iterator

import pytest

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.traffic import NumberedStream, ping
from lab.wait import until
from lab.wg import GATEWAY, INNER, WgHub, hexadecimal, say
from lab.wireguard_go import KeyPair, new_key_pair, new_preshared_key

pytestmark = pytest.mark.system

OTHER = {4: 6, 6: 4}
FIELDS = {
    "public-key", "private-key", "listen-port", "fwmark", "peers", "preshared-keys", "endpoints", "allowed-ips",
    "latest-handshakes", "transfer", "persistent-keepalive", "dump",
}  # fmt: skip


BOTH = {"psk": True, "keepalive": 25}


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("t") as topology:
        yield topology


@pytest.fixture(params=["up", "bare"])
def hub(request: pytest.FixtureRequest, both: dict[str, WgHub]) -> Iterator[WgHub]:
    """One of them, as it was configured, before and after."""
    hub = both[request.param]
    yield hub
    hub.wg("syncconf", hub.name, "/dev/stdin", data=hub.stripped() + "\n")
    hub.set("fwmark", "off")


def test_every_form_of_show(network: Topology, both: dict[str, WgHub], hub: WgHub) -> None:
    four, six = hub.spokes.values()
    assert {each.name for each in both.values()} <= set(hub.wg("show", "interfaces").stdout.split())
    shown = {field: hub.show(field) for field in FIELDS}
    assert shown["public-key"] == f"{hub.keys.public}\n"
    assert shown["listen-port"] == f"{hub.port}\n"
    assert shown["fwmark"] == "off\n"
    assert set(shown["peers"].split()) == {four.keys.public, six.keys.public}
    assert shown["preshared-keys"].splitlines() == [
        f"{four.keys.public}\t(none)",
        f"{six.keys.public}\t{six.preshared_key}",
    ]
    assert f"{four.keys.public}\t{Topology.A4}:{four.port}" in shown["endpoints"]
    assert f"{six.keys.public}\t[{Topology.A6}]:{six.port}" in shown["endpoints"]
    assert f"{four.keys.public}\t{' '.join(four.networks)}" in shown["allowed-ips"]
    assert f"{four.keys.public}\toff" in shown["persistent-keepalive"]
    assert f"{six.keys.public}\t25" in shown["persistent-keepalive"]
    text = hub.wg("show", hub.name).stdout
    assert f"interface: {hub.name}" in text
    assert f"endpoint: {Topology.A4}:{four.port}" in text
    everything = hub.wg("show", "all", "dump").stdout
    assert {line.split("\t")[0] for line in everything.splitlines()} >= {each.name for each in both.values()}
    assert hub.wg("show", hub.name, "rabbit", check=False).returncode != 0


def test_showconf_is_what_setconf_takes(hub: WgHub) -> None:
    before = hub.wg("showconf", hub.name).stdout
    assert f"ListenPort = {hub.port}" in before
    assert before.count("[Peer]") == 2
    hub.wg("setconf", hub.name, "/dev/stdin", data=before)
    assert hub.wg("showconf", hub.name).stdout == before


@pytest.mark.parametrize("family", [4, 6])
def test_counters_and_handshakes_are_as_wireguard_go_has_them(network: Topology, hub: WgHub, family: int) -> None:
    spoke = hub.over(family)
    before = hub.dump().peers[spoke.keys.public]
    with hub.wireguard_go(spoke, network.a, GATEWAY[family]) as peer:
        for size in (56, 1000, 1372):
            assert ping(network.a, spoke.gateway_inner[0], size=size).received == 1
        theirs = peer.dump().peers[hub.keys.public]
        assert theirs.received > 2000

        def agree() -> bool:
            ours, other = hub.dump().peers[spoke.keys.public], peer.dump().peers[hub.keys.public]
            sums = (ours.received - before.received, ours.sent - before.sent)
            return sums == (other.sent, other.received) and ours.latest_handshake > 0

        until(agree, 5, f"the counters to agree: {hub.dump()} {peer.dump()}, before {before}")
        ours = hub.dump().peers[spoke.keys.public]
        assert abs(ours.latest_handshake - time.time()) < 10
        assert abs(ours.latest_handshake - peer.dump().peers[hub.keys.public].latest_handshake) <= 1
        assert re.search(r"latest handshake: .*(second|minute)|latest handshake: Now", hub.wg("show", hub.name).stdout)


def test_allowed_ips_are_replaced_moved_and_removed(network: Topology, hub: WgHub) -> None:
    four, six = hub.spokes.values()
    with hub.wireguard_go(four, network.a, GATEWAY[4]), hub.wireguard_go(six, network.a, GATEWAY[6]):
        for spoke in (four, six):
            assert ping(network.a, spoke.gateway_inner[0]).received + ping(network.b, spoke.inner[1]).received == 2
        # Moved: the other peer's now, so that the one's packets are refused and ours go to the other.
        hub.set("peer", six.keys.public, "allowed-ips", ",".join([*six.networks, four.networks[0]]))
        peers = hub.dump().peers
        assert peers[four.keys.public].allowed_ips == (four.networks[1],)
        assert set(peers[six.keys.public].allowed_ips) == {*six.networks, four.networks[0]}
        assert ping(network.a, four.gateway_inner[0], timeout=0.4).received == 0
        assert ping(network.b, four.inner[1]).received == 1
        # Replaced: back again. One by one, as later tools send it: `-` takes only from its owner.
        hub.set("peer", four.keys.public, "allowed-ips", ",".join(four.networks))
        assert ping(network.a, four.gateway_inner[0]).received == 1
        section = f"set=1\npublic_key={hexadecimal(six.keys.public)}\nupdate_only=true\n"
        assert say(hub.name, f"{section}allowed_ip=-{four.networks[0]}\n\n") == b"errno=0\n\n"
        assert ping(network.a, four.gateway_inner[0]).received == 1
        assert (
            say(hub.name, f"{section}allowed_ip=-{six.networks[1]}\nallowed_ip=+10.66.200.0/24\n\n") == b"errno=0\n\n"
        )
        assert set(hub.dump().peers[six.keys.public].allowed_ips) == {six.networks[0], "10.66.200.0/24"}
        assert ping(network.a, six.gateway_inner[1], timeout=0.4).received == 0
        hub.set("peer", four.keys.public, "allowed-ips", "")
        assert hub.show("allowed-ips").splitlines()[0] == f"{four.keys.public}\t(none)"


def test_routes_follow_the_allowed_ips_where_up_manages_them(network: Topology, both: dict[str, WgHub]) -> None:
    hub = both["up"]
    [spoke, _] = hub.spokes.values()

    def routed() -> int:
        found = [network.b.run("ip", family, "route", "show", "dev", hub.name).stdout for family in ("-4", "-6")]
        return ("10.77.0.0/16" in found[0]) + ("fd77::/32" in found[1])

    hub.set("peer", spoke.keys.public, "allowed-ips", ",".join([*spoke.networks, "10.77.0.0/16", "fd77::/32"]))
    until(lambda: routed() == 2, 3, "the routes")
    hub.set("peer", spoke.keys.public, "allowed-ips", ",".join(spoke.networks))
    until(lambda: routed() == 0, 3, "the routes to go")


@pytest.mark.parametrize("family", [4, 6])
def test_setconf_addconf_and_syncconf(network: Topology, hub: WgHub, family: int) -> None:
    steady, leaving = hub.over(family), hub.over(OTHER[family])
    third, inner = Spoke(30 + steady.number), steady.gateway_inner[INNER[family]]
    with hub.wireguard_go(steady, network.a, GATEWAY[family]):
        assert ping(network.a, inner).received == 1
        with NumberedStream(network.a, network.b, inner, rate=200) as stream:
            until(lambda: stream.sent > 20, 5, "the stream")
            hub.wg("addconf", hub.name, "/dev/stdin", data=hub.section(third))
            assert set(hub.dump().peers) == {steady.keys.public, leaving.keys.public, third.keys.public}
            sent = stream.sent
            for _ in range(5):
                without = hub.stripped().replace(hub.section(leaving), "")
                hub.wg("syncconf", hub.name, "/dev/stdin", data=without)
                assert set(hub.dump().peers) == {steady.keys.public}
                hub.wg("syncconf", hub.name, "/dev/stdin", data=hub.stripped() + hub.section(third))
                assert len(hub.dump().peers) == 3
                hub.set("peer", third.keys.public, "remove")
            until(lambda: stream.sent > sent + 100, 5, "more of the stream")
            hub.expect_whole(stream.finish())
        hub.wg("setconf", hub.name, "/dev/stdin", data=hub.stripped())
        assert set(hub.dump().peers) == {steady.keys.public, leaving.keys.public}


def test_set_with_a_mistake_in_a_late_line_changes_nothing(hub: WgHub) -> None:
    # Not `dump`: what the traffic of the test before has been counted as is still on its way.
    before = hub.wg("showconf", hub.name).stdout
    lines = ["set=1", "fwmark=77", "replace_peers=true"]
    for number in range(200):
        lines += [f"public_key={number + 1:064x}", f"allowed_ip=10.99.{number}.0/24"]
    answer = say(hub.name, "\n".join([*lines, "persistent_keepalive_interval=65536", "", ""]))
    assert answer == b"errno=-22\n\n"
    assert hub.wg("showconf", hub.name).stdout == before
    until(
        lambda: f"line={len(lines) + 1} " in hub.gateway.logs()[f"{hub.name}/key-service_00.log"],
        3,
        "the line's number",
    )


def test_a_strangers_key_is_not_the_gateways(hub: WgHub) -> None:
    """What `wg` itself refuses, and what it passes on: a peer that is ourselves is never made."""
    own = KeyPair(hub.keys.private, hub.keys.public)
    hub.set("peer", own.public, "allowed-ips", "10.88.0.0/16")
    assert own.public not in hub.dump().peers
    fresh = new_key_pair()
    hub.set("peer", fresh.public, "preshared-key", "/dev/stdin", data=new_preshared_key())
    assert hub.dump().peers[fresh.public].preshared_key
    hub.set("peer", fresh.public, "preshared-key", "/dev/null")
    assert hub.dump().peers[fresh.public].preshared_key is None
