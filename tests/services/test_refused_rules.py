"""A peer's end holds at once, also while nft refuses the host's part: that is said, and nobody gets more meanwhile."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from tests.services.host_kept import Kept
from tests.services.live import A, B, House, apply, peer

from host_service import firewall
from host_service.ground import Wanted
from key_service import live
from key_service.registry import Registry
from lab.namespaces import Namespace
from stagewire.config import encode_key
from stagewire.config.parser import parse
from stagewire.control import gateway, narrower
from stagewire.control.gateway import NO_RULES, AccessClass, Destination, GatewayRules, PortForward
from stagewire.control.messages import HostSettings, HostState, PeersGone, PeersSet
from stagewire.proto import prefix

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")


def packed(*texts: str) -> tuple[bytes, ...]:
    return tuple(prefix.pack(ip_network(text)) for text in texts)


def port(address: bytes) -> GatewayRules:
    return GatewayRules(ports=(PortForward(6, 80, address, 80, keeps_source=False),))


def restricted(*destinations: str, others: str = "10.66.0.3/32") -> GatewayRules:
    """10.66.0.2 may reach these alone, others everything."""
    to = tuple(Destination(each, 0, ()) for each in packed(*destinations))
    access = (AccessClass(packed("10.66.0.2/32"), False, to), AccessClass(packed(others), True, ()))
    return GatewayRules(access=access)


WIDE, NARROW = restricted("10.0.0.0/24", "10.1.0.0/24"), restricted("10.0.0.0/24")


@pytest.mark.parametrize(
    ("standing", "rules", "held"),
    [
        (WIDE, NARROW, packed("10.66.0.2/32")),
        (NARROW, WIDE, ()),
        (None, NARROW, packed("10.66.0.2/32")),
        (NO_RULES, NARROW, packed("10.66.0.2/32")),
        (NARROW, NO_RULES, ()),
        (restricted(others="10.66.0.0/24"), GatewayRules(access=(AccessClass(packed("10.66.0.9/32"), False, ()),)),
         packed("10.66.0.9/32")),
        (NARROW, GatewayRules(access=(AccessClass(packed("10.66.0.9/32"), False, ()),)), ()),
        (NO_RULES, GatewayRules(isolates=True), (gateway.EVERY_PEER,)),
        (port(address=ip_address("10.66.0.2").packed), NO_RULES, packed("10.66.0.2/32")),
    ],
)  # fmt: skip
def test_peers_that_standing_rules_let_do_more_are_named(
    standing: GatewayRules | None, rules: GatewayRules, held: tuple[bytes, ...]
) -> None:
    assert narrower.sources(standing, rules) == held


# --- the host --------------------------------------------------------------------------------------------------


def wanted(rules: GatewayRules) -> Wanted:
    return Wanted(("10.66.0.1/24",), 1420, "auto", 0, rules)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with Namespace("refused") as namespace:
        made = Kept(namespace, tmp_path, (), wanted(NO_RULES))
        yield made
        made.close()


@needs_root
def test_a_refusal_of_nft_leaves_the_rest_of_the_host_as_wanted(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.begin(wanted(WIDE))
    run = firewall.run
    monkeypatch.setattr(firewall, "run", lambda _text: "no")
    kept.begin(replace(wanted(NARROW), addresses=("10.66.0.1/24", "10.67.0.1/24")))
    assert "the rules for packets of peers are not set: nft says no" in kept.said[-1]
    assert kept.network.gateway.unheld == packed("10.66.0.2/32")
    assert "10.67.0.1/24" in kept.shows("address")
    kept.begin(wanted(WIDE))
    assert (kept.said[-1], kept.network.gateway.unheld) == ("", ()), "those rules stand"
    kept.namespace.run("nft", "flush", "ruleset")
    kept.until(lambda: kept.network.gateway.unheld == packed("10.66.0.2/32"), "the lost rules to be known")
    monkeypatch.setattr(firewall, "run", run)
    assert not kept.network.follows(wanted(WIDE))
    kept.begin(wanted(WIDE))
    assert (kept.said[-1], kept.network.gateway.unheld) == ("", ())


# --- key-service -----------------------------------------------------------------------------------------------

FILE = f"""[Interface]
Address = 10.0.0.1/24
# stagewire: Allow = staff: 10.0.0.0/24
[Peer]
PublicKey = {encode_key(A)}
# stagewire: Allow = 10.1.0.0/16
AllowedIPs = 10.0.0.2/32
[Peer]
PublicKey = {encode_key(B)}
AllowedIPs = 10.0.0.3/32
"""
SAYS = "nft says no"


class Refused(House):
    """A gateway whose host refuses each change of the rules from now on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Registry(parse(FILE, "wg0.conf")), managed=True)
        self.happened: list[str] = []
        self.live.withheld.happened = lambda event: self.happened.append(event.kind)
        self.live.withheld.tell = self._tell
        self.hub.said.clear()

    def _tell(self, keys: Iterable[bytes]) -> None:
        announcer = self.live._announcer
        for key in keys:
            worker = announcer.moves.home(key)
            self.hub.tell("device", worker, PeersSet((announcer._worker_peer(key, worker, home=True),)))

    def host_refuses(self, *held: str) -> None:
        settings: HostSettings = self.hub.take(HostSettings)[-1]
        self.live.on_host_state(HostState(0, (), (), 0, SAYS, settings.request, True, packed(*held)))

    def host_is_well(self) -> None:
        self.live.on_host_state(HostState(0, (), (), 0))

    def held_back(self) -> dict[bytes, bool]:
        return {peer.public_key: peer.held_back for told in self.hub.take(PeersSet) for peer in told.peers}

    def without(self, key: bytes, *, whole: bool) -> None:
        if whole:
            apply(self, "\n[Peer]".join(each for each in FILE.split("\n[Peer]") if encode_key(key) not in each))
        else:
            self.change(peer(key, remove=True))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    monkeypatch.setattr(live, "BUDGET", 60.0)
    return Refused(tmp_path)


@pytest.mark.parametrize("whole", [False, True])
def test_a_peer_that_goes_is_gone_whatever_nft_says(house: Refused, whole: bool) -> None:
    house.without(B, whole=whole)
    house.host_refuses()
    assert house.answers == [0]
    assert set(house.registry.peers) == {A}
    assert house.hub.take(PeersGone)[0].public_keys == (B,)
    assert house.happened == ["rules_refused"]
    house.host_is_well()
    assert house.happened == ["rules_refused", "rules_set"]


def test_the_operator_hears_that_the_host_lacks_its_part(house: Refused) -> None:
    said: list[str] = []
    apply(house, FILE.replace("10.1.0.0/16", "10.1.0.0/24"), said=said.append)
    house.host_refuses("10.0.0.2/32")
    assert house.answers == [0]
    assert SAYS in said[0]


def test_a_peer_that_may_reach_less_is_held_back_until_the_rules_stand(house: Refused) -> None:
    apply(house, FILE.replace("10.1.0.0/16", "10.1.0.0/24"))
    house.host_refuses("10.0.0.2/32")
    assert house.held_back() == {A: True}
    house.host_is_well()
    assert house.held_back() == {A: False}


def test_a_lost_table_holds_restricted_peers_back_alone(house: Refused) -> None:
    house.live.on_host_state(HostState(0, (), (), 0, SAYS, 0, True, (gateway.EVERY_PEER,)))
    assert house.held_back() == {A: True}


@pytest.mark.parametrize("fault_before", [False, True])
@pytest.mark.parametrize("more", ["10.1.0.0/15", "10.1.0.0/16\n# stagewire: Forward = tcp 80 80"])
def test_what_widens_waits_for_the_rules(house: Refused, fault_before: bool, more: str) -> None:
    if fault_before:
        house.live.on_host_state(HostState(0, (), (), 0, SAYS, 0, True))
    before, said = house.registry.snapshot(), list[str]()
    apply(house, FILE.replace("10.1.0.0/16", more), said=said.append)
    house.host_refuses()
    assert house.hub.take(HostSettings), "host-service goes back"
    house.live.act(house.live.next_deadline() or 0.0)
    assert house.answers != [0]
    assert SAYS in said[0]
    assert house.registry.snapshot() == before
