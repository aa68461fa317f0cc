"""What `stagewire why` makes of its evidence: the most likely cause comes first, and consequences hide behind causes."""

import errno
import json
import time
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import schemas

from stagewire import stats
from stagewire.config import Network, decode_key, encode_key, public_key
from stagewire_cli import see_commands
from stagewire_cli.causes.tunnel import lies_in
from stagewire_cli.diagnosis import search
from stagewire_cli.evidence import RECENT, Away, Evidence, Finding, Path, Tried
from stagewire_cli.former import Former
from stagewire_cli.host_facts import Denied, Load
from stagewire_cli.ping import Heard
from stagewire_cli.probe import Refusal
from stagewire_cli.ruleset import BEGINNING, LENGTHS, OVER_RATE, RANDOM, Block
from stagewire_cli.way_out import WayOut, host_of
from stagewire_cli.why import _object, lines, which

NOW = 1_800_000_000.0
RULE = Block("a rule in chain o of table inet f", ("nft", "delete", "rule", "inet", "f", "o", "handle", "7"))
PLACE = "192.0.2.1:51820"
PEER = {
    "public_key": "P" * 43 + "=", "name": "Anna", "endpoint": PLACE, "endpoint_set": PLACE, "endpoint_name": None,
    "unresolved": "", "endpoint_fault": "", "last_handshake_unix_s": NOW - 5, "tx_bytes": 900, "rx_bytes": 900,
    "allowed_ips": ["10.0.0.2/32", "fd00::2/128"], "reasons": [],
}  # fmt: skip
HEALTHY = Evidence("wg0", PEER, NOW, forwards={4: True, 6: True}, masquerades=True, ours="O" * 43 + "=", port=51820)


def reason(name: str, place: str = PLACE, count: int = 3, ago: float = 1.0, key: str = "") -> dict[str, Any]:
    return {
        "reason": name, "count": count, "last_unix_s": NOW - ago, "example": {"address": place, "size": 148},
        "meaning": stats.COUNTERS[name].meaning, "mend": stats.mend_of(name), "public_key": key,
    }  # fmt: skip


def evidence(*reasons: dict[str, Any], strangers: tuple[dict[str, Any], ...] = (), **changes: Any) -> Evidence:
    own = {name: changes.pop(name) for name in list(changes) if name in PEER}
    return replace(HEALTHY, peer={**PEER, **own, "reasons": list(reasons)}, strangers=list(strangers), **changes)


def behind(**heard: Any) -> Evidence:
    """A tunnel that works, and a target behind the peer that doesn't answer."""
    return evidence(tried="answered", target="10.9.0.1", path=Path(small=False, mtu=1420, **heard))


def unknown(key: str = "X" * 43 + "=") -> dict[str, Any]:
    return reason("unknown_peer", key=key)


PRIVATE = encode_key(bytes([8, *[5] * 30, 64]))
PUBLIC = encode_key(public_key(decode_key(PRIVATE)))
DENIED = [Denied("10.0.0.2", "10.9.0.1", 1234)]
TO_BERT = [Denied("10.0.0.2", "10.0.0.3", 2)]
AWAY = Away("conn-service", "is down", "see its log")
BLOCK = Block("a rule in chain c", ("nft", "delete"))
NEVER: dict[str, Any] = {"last_handshake_unix_s": None, "endpoint": None, "allowed_ips": ["10.0.0.9/32"]}
SILENT: dict[str, Any] = {"last_handshake_unix_s": None, "tried": "unanswered"}


@pytest.mark.parametrize(
    ("found", "first"),
    [
        (evidence(), "well"),
        (evidence(tried="answered", path=Path(True, True, 1420, 1420)), "well"),
        (evidence(link_up=False, **SILENT), "interface_down"),
        (evidence(away=[AWAY], **SILENT), "service_away"),
        (
            evidence(unresolved="a.example: no such name", endpoint_name="a.example:5", endpoint=None),
            "name_not_resolved",
        ),
        (evidence(endpoint_fault="lies behind the peer itself"), "endpoint_in_own_tunnel"),
        (evidence(reason("response_not_authentic"), tried="refused", last_handshake_unix_s=None), "psk_differs"),
        (evidence(reason("initiation_replayed"), **SILENT), "clock_back"),
        (evidence(strangers=(reason("bad_mac1"),), **SILENT), "their_key_for_us"),
        (evidence(strangers=(reason("unknown_peer", key="X" * 43 + "="),), **SILENT), "our_key_for_them"),
        (
            evidence(
                strangers=(reason("unknown_peer", "198.51.100.9:1", key="X" * 43 + "="),),
                **{**SILENT, "endpoint": None, "endpoint_set": None},
            ),
            "our_key_for_them",
        ),
        # A stranger elsewhere says nothing of a peer whose place is known.
        (evidence(strangers=(reason("unknown_peer", "198.51.100.9:1"),), **SILENT), "no_answer"),
        (evidence(reason("response_unconfirmed"), **SILENT), "way_back_blocked"),
        (evidence(reason("response_unconfirmed"), last_handshake_unix_s=None), "response_unconfirmed"),
        (evidence(strangers=(reason("send_failed"),), **SILENT), "blocked_out"),
        (evidence(endpoint=None, endpoint_set=None, last_handshake_unix_s=None), "never_called"),
        (
            evidence(
                endpoint=None,
                endpoint_set=None,
                last_handshake_unix_s=None,
                port_blocked=[BLOCK],
            ),
            "port_blocked_here",
        ),
        (evidence(endpoint_set=None, tried="unanswered"), "nat_forgot"),
        (evidence(tried="unanswered"), "no_answer"),
        (evidence(reason("gave_up"), last_handshake_unix_s=NOW - 9999), "no_answer"),
        (evidence(last_handshake_unix_s=NOW - 9999), "idle"),
        (evidence(reason("inner_source_not_allowed", "10.9.9.9")), "source_not_allowed"),
        (evidence(reason("inner_source_not_allowed", "fe80::1")), "well"),
        (evidence(reason("inner_source_not_allowed", "fe80::1"), reason("quota_reached")), "quota_reached"),
        (evidence(reason("endpoint_contested", "198.51.100.9:1", 2)), "two_devices"),
        (evidence(reason("endpoint_contested", "198.51.100.9:1", 1)), "well"),
        (evidence(reason("transport_not_authentic")), "transport_not_authentic"),
        (evidence(others={"Bert": ["10.0.0.2/32"]}, allowed_ips=["10.0.0.0/24"]), "overlap"),
        (evidence(others={"Bert": ["10.0.0.0/16", "10.1.0.0/24"]}), "well"),
        (evidence(allowed_ips=[]), "no_allowed_ips"),
        (evidence(routes={"10.0.0.2/32": "eth0"}), "route_elsewhere"),
        (evidence(routes={"10.0.0.2/32": "wg0"}), "well"),
        (evidence(routes={"10.0.0.2/32": "eth0"}, strict_source=True, source_drops=4), "rp_filter"),
        (evidence(busy={"device-service 0": Load(0.99), "device-service 1": Load(0.1)}), "overloaded"),
        (evidence(busy={"device-service 0": Load(0.5, 0.45)}), "overloaded"),
        (evidence(busy={"device-service 0": Load(0.1, 0.85)}), "well"),
        (evidence(target="10.0.0.9", **NEVER, others={"Bert": ["10.0.0.0/24"]}), "overlap"),
        (evidence(target="10.0.0.9", **NEVER, others={"Bert": ["0.0.0.0/0"]}), "never_called"),
        (
            evidence(target="10.0.0.9", **NEVER, others={"Bert": ["10.0.0.0/24"]}, without_session=frozenset({"Bert"})),
            "never_called",
        ),
        (evidence(tried="answered", path=Path(True, False, 1320, 1420)), "mtu"),
        (evidence(tried="answered", path=Path(False, None, 0, 1420)), "no_inner_answer"),
        (evidence(tried="answered", path=Path(False, None, 0, 1420), arrives=True), "well"),
        (
            evidence(tried="answered", path=Path(False, None, 0, 1420), arrives=True, target="10.1.0.1"),
            "no_inner_answer",
        ),
        (evidence(tried="answered", path=Path(False, None, 0, 1420), tunnel_blocked=[RULE]), "tunnel_blocked_here"),
        (evidence(tried="answered", path=Path(True, True, 1420, 1420), tunnel_blocked=[RULE]), "well"),
        (evidence(tried="answered", path=Path(True, True, 1420, 1420), own_address="10.0.0.2"), "own_address"),
        (evidence(forwards={4: False, 6: True}), "well"),
        (evidence(forwards={4: False, 6: True}, refused_forwards={4: 3, 6: 1}), "well"),
        (evidence(forwards={4: False, 6: True}, refused_forwards={4: 3}, only_in=True), "forwarding_off"),
        (evidence(forwards={4: False, 6: True}, refuses_forwards=frozenset([4])), "forwarding_off"),
        (evidence(forwards={4: False, 6: True}, refuses_forwards=frozenset([6])), "well"),
        (evidence(refusal=Refusal("192.0.2.1", "refused", closed=True), **SILENT), "port_closed"),
        (evidence(refusal=Refusal("192.0.2.254", "no route", closed=False), **SILENT), "unreachable"),
        (evidence(others={"Bert": ["192.0.2.0/24"]}, without_session=frozenset(["Bert"]), **SILENT), "carrier_away"),
        (evidence(others={"Bert": ["192.0.2.0/24"]}, **SILENT), "no_answer"),
        (
            evidence(
                others={"Bert": ["192.0.2.0/24"]},
                without_session=frozenset(["Bert"]),
                endpoint_fault="lies behind Bert, whose own endpoint is not known yet",
            ),
            "carrier_away",
        ),
        (evidence(others={"Bert": ["0.0.0.0/0"]}, without_session=frozenset(["Bert"]), **SILENT), "no_answer"),
        (evidence(strangers=(reason("unknown_peer", "192.0.2.1:7", key="S" * 43 + "="),), **SILENT), "no_answer"),
        (evidence(masquerades=False, only_in=True), "no_masquerade"),
        (evidence(masquerades=True, only_in=True), "nothing_back"),
        (evidence(masquerades=False), "well"),
        (evidence(denied=DENIED, target="10.9.0.1"), "not_allowed"),
        (evidence(denied=DENIED), "well"),
        (evidence(kept=("chain f drops it", "`nft`"), only_in=True, masquerades=True), "forwarding_dropped"),
        (evidence(kept=("chain f drops it", "`nft`")), "well"),
        (evidence(away=[replace(AWAY, service="status-service", carries=False)]), "service_away"),
        (evidence(away=[replace(AWAY, carries=False)], **SILENT), "no_answer"),
        (evidence(is_ourselves=True, **SILENT), "endpoint_is_ourselves"),
        (evidence(way=WayOut("multicast"), **SILENT), "endpoint_no_host"),
        (evidence(way=WayOut("broadcast", errno.EACCES), **SILENT), "endpoint_no_host"),
        (evidence(way=WayOut("unspecified"), **SILENT), "endpoint_no_host"),
        (evidence(way=WayOut(error=errno.ENETUNREACH), **SILENT), "no_way_out"),
        (evidence(way=WayOut(device="eth0", carrier=False), **SILENT), "no_carrier"),
        (evidence(way=WayOut(device="eth0", silent=True), **SILENT), "no_neighbour"),
        (evidence(way=WayOut(device="eth0", via="192.0.2.254", silent=True), **SILENT), "no_neighbour"),
        (evidence(way=WayOut(device="eth0", carrier=False)), "well"),
        (evidence(way=WayOut(device="wg0"), allowed_ips=["192.0.2.0/24"], **SILENT), "endpoint_in_own_tunnel"),
        (
            evidence(
                way=WayOut(device="wg0"), allowed_ips=["192.0.2.0/24"], others={"Bert": ["192.0.2.1/32"]}, **SILENT
            ),
            "no_answer",
        ),
        (evidence(out_blocked=[BLOCK], **SILENT), "blocked_out"),
        (evidence(port_blocked=[replace(BLOCK, part=RANDOM.text)]), "port_blocked_here"),
        (evidence(port_blocked=[replace(BLOCK, part=LENGTHS.text)], tried="answered"), "port_blocked_here"),
        (evidence(port_blocked=[BLOCK], tried="answered"), "well"),
        (evidence(port_blocked=[replace(BLOCK, part=BEGINNING.text)], **SILENT), "no_answer"),
        (
            evidence(port_blocked=[replace(BLOCK, part=BEGINNING.text)], endpoint_set=None, **SILENT),
            "port_blocked_here",
        ),
        (evidence(port_blocked=[replace(BLOCK, part=OVER_RATE.text, narrow=True)]), "well"),
        (evidence(port_blocked=[replace(BLOCK, part=OVER_RATE.text, narrow=True)], **SILENT), "no_answer"),
        (evidence(tunnel_blocked=[replace(RULE, part="TCP packets")]), "tunnel_blocked_here"),
        (
            evidence(tried="answered", tunnel_blocked=[RULE], path=Path(True, True, 1420, 1420, silent=("fd00::2",))),
            "tunnel_blocked_here",
        ),
        (evidence(tunnel_blocked=[RULE]), "tunnel_blocked_here"),
        (evidence(tunnel_blocked=[replace(RULE, part="certain TCP packets", narrow=True)]), "well"),
        (evidence(through_blocked=[RULE], only_in=True), "forwarding_dropped"),
        (evidence(through_blocked=[RULE]), "well"),
        (evidence(reason("quota_reached"), path=Path(True, False, 1200, 1420), tried="answered"), "quota_reached"),
        (evidence(reason("rate_exceeded"), path=Path(True, False, 1200, 1420), tried="answered"), "well"),
        (evidence(tried="answered", path=Path(True, True, 1420, 1420, lost=4)), "loss"),
        (evidence(tried="answered", path=Path(True, True, 1420, 1420, lost=1)), "well"),
        (
            evidence(tried="answered", path=Path(True, True, silent=("fd00::2",), answering=("10.0.0.2",))),
            "no_inner_answer",
        ),
        (behind(answering=("10.0.0.2",)), "forwarding_off_there"),
        (behind(answering=("10.0.0.2",), forwards=Heard("exceeded", "10.0.0.2")), "nothing_from_behind"),
        (behind(forwards=Heard("exceeded", "10.0.0.2")), "nothing_from_behind"),
        (behind(refused=Heard("unreachable", "10.0.0.2", "no such host")), "host_behind_down"),
        (behind(refused=Heard("unreachable", "10.0.0.2", "no route")), "no_route_behind"),
        (behind(refused=Heard("unreachable", "10.0.0.2", "prohibited")), "forwarding_refused_there"),
        (behind(), "no_inner_answer"),
        (evidence(strangers=(unknown(PUBLIC),), public_key=PRIVATE, **SILENT), "private_key_here"),
        (evidence(now=1.0, **SILENT), "clock_here"),
        (evidence(last_handshake_unix_s=NOW + 900, tried="unanswered"), "clock_here"),
        (evidence(tried="unanswered", path=Path(True, True, 1420, 1420)), "handshake_lost"),
        (
            evidence(reason("inner_source_not_allowed", "10.9.9.9", ago=60), routes={"10.0.0.2/32": "eth0"}),
            "route_elsewhere",
        ),
        (evidence(reason("inner_source_not_allowed", "10.9.9.9", ago=60)), "source_not_allowed"),
        (
            evidence(reason("inner_source_not_allowed", "10.9.9.9", ago=60), tried="answered", path=Path(False)),
            "no_inner_answer",
        ),
        (evidence(path=Path(mtu=1200)), "mtu_ends_ipv6"),
        (evidence(path=Path(mtu=1200), allowed_ips=["10.0.0.2/32"]), "well"),
        (evidence(tracks_no_more=True), "connections_full"),
        (evidence(more_source_drops=2, **SILENT), "rp_filter_outside"),
        (evidence(more_source_drops=2), "well"),
        (
            evidence(tried="answered", path=Path(False, silent=("fd00::2",)), own_families=frozenset([4])),
            "no_own_address",
        ),
        (evidence(tried="answered", path=Path(False, other_answer="10.0.0.2")), "well"),
        (evidence(last_seen="a", endpoint=None, endpoint_set=None, last_handshake_unix_s=None), "not_called_since"),
        (
            evidence(strangers=(unknown(),), former={"X" * 43 + "=": Former("t", "Anna", "N" * 43 + "=")}, **SILENT),
            "old_key",
        ),
        (evidence(strangers=(unknown(),), former={"X" * 43 + "=": Former("t", "Anna", "")}, **SILENT), "old_key"),
        (evidence(strangers=(unknown("O" * 43 + "="),), **SILENT), "our_own_key"),
        (evidence(refusal=Refusal("192.0.2.254", "no route", False, True), **SILENT), "prohibited"),
        (evidence(denied=TO_BERT, others={"Bert": ["10.0.0.3/32"]}, isolates=True, target="10.0.0.3"), "isolated"),
        (evidence(denied=TO_BERT, others={"Bert": ["10.0.0.3/32"]}, target="10.0.0.3"), "not_allowed"),
    ],
)
def test_the_most_likely_cause_comes_first(found: Evidence, first: str) -> None:
    findings = search(found)
    assert findings[0].id == first
    assert findings[0].wrong == (first not in ("well", "idle"))
    for finding in findings:
        assert finding.text[0].islower()
        assert finding.mend[0].islower() or finding.mend[0] == "`"
        assert "\n" not in finding.text + finding.mend


def test_what_happened_long_ago_or_before_it_worked_says_nothing() -> None:
    assert search(evidence(reason("inner_source_not_allowed", ago=RECENT + 1)))[0].id == "well"
    assert search(evidence(reason("response_unconfirmed"), tried="answered"))[0].id == "well"
    assert search(evidence(strangers=(reason("bad_mac1", ago=RECENT + 1),), **SILENT))[0].id == "no_answer"


def test_a_hint_follows_when_all_is_well() -> None:
    assert [finding.id for finding in search(evidence(forwards={4: False}))] == ["well", "forwarding_off"]


def test_what_the_access_rules_drop_is_told_with_the_command_that_lets_it_pass() -> None:
    told = [finding for finding in search(evidence(denied=DENIED)) if finding.id == "not_allowed"]
    assert "1,234 packets from 10.0.0.2 to 10.9.0.1" in told[0].text
    assert "stagewire peer set PEER --allow 10.9.0.1" in told[0].mend


def test_the_first_line_says_what_to_do_first_and_the_next_why() -> None:
    [finding] = search(evidence(reason("response_not_authentic"), tried="refused", last_handshake_unix_s=None))
    told = lines({"subject": "Anna (PPPPPPPPPP)", "findings": [{**finding_as(finding)}]})
    assert told == [
        "Anna (PPPPPPPPPP): give both ends the same PresharedKey, or none",
        "  why: it answers our handshakes with another pre-shared key than ours",
        "  seen: response_not_authentic 3, from 192.0.2.1:51820",
    ]


def test_a_peer_without_a_known_address_is_told_to_be_tried_in_part() -> None:
    [found] = search(evidence(tried="answered", allowed_ips=["10.0.0.0/24"]))
    assert (found.id, "no packet could be tried" in found.text) == ("well", True)


def test_an_answer_fits_into_the_terminal() -> None:
    found = search(evidence(tried="unanswered", last_handshake_unix_s=None))
    told = lines({"subject": "Anna (PPPPPPPPPP)", "findings": [finding_as(each) for each in found]}, 80)
    assert len(told) > 3
    assert all(len(line) <= 80 for line in told)


def finding_as(finding: Any) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in finding.__slots__}


@pytest.mark.parametrize(
    ("text", "key", "target"),
    [
        ("Anna", "A", ""), ("192.0.2.1", "A", ""), ("10.0.0.7", "A", "10.0.0.7"), ("10.0.0.9", "B", "10.0.0.9"),
        ("198.51.100.1", None, ""), ("2001:db8::1", "B", ""),
    ],
)  # fmt: skip
def test_a_peer_by_name_by_its_endpoint_or_by_an_address_behind_it(text: str, key: str | None, target: str) -> None:
    peers = [
        {"public_key": "A", "name": "Anna", "endpoint": "192.0.2.1:5", "allowed_ips": ["10.0.0.0/24"]},
        {"public_key": "B", "name": "Bert", "endpoint": "[2001:db8::1]:5", "allowed_ips": ["10.0.0.8/29"]},
    ]
    peer, behind = which(text, peers)
    assert (peer and peer["public_key"], behind) == (key, target)


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 32), st.integers(0, 32), st.booleans(), st.booleans()
)
def test_a_prefix_lies_in_a_network_as_the_library_says(
    bits: int, length: int, other: int, flip: int, a: bool, b: bool
) -> None:
    prefix, network = _network(bits, length, a), _network(bits ^ (1 << flip) if flip < 32 else bits, other, b)
    same = prefix.version == network.version
    assert lies_in(str(prefix), network) == (same and prefix.subnet_of(network))  # type: ignore[arg-type]


def _network(bits: int, length: int, v6: bool) -> Network:
    return ip_network((bits << 96, length), strict=False) if v6 else ip_network((bits, length), strict=False)


def test_an_answer_is_as_its_schema_says() -> None:
    peer = {"public_key": "K" * 43 + "=", "name": "Anna"}
    cases: list[tuple[Tried, list[Finding]]] = [
        ("answered", []),
        ("", [Finding("a", "b", "c"), Finding("d", "e", "f", "g", wrong=False)]),
    ]
    for tried, findings in cases:
        schemas.check(_object("Anna", peer, findings, tried=tried), "why")
        schemas.check(_object("10.0.0.1", None, findings, tried=tried), "why")


def test_a_long_answer_is_whole_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = _object("Anna", None, [Finding("a", "b" * 5000, "c\u202e")], tried="")
    see_commands._print(found, [], as_json=True)
    assert json.loads(capsys.readouterr().out) == found


def test_the_address_of_a_place() -> None:
    assert [host_of(place) for place in ("192.0.2.1:5", "[2001:db8::1]:5", "[fe80::1%3]:5", "")] == [
        "192.0.2.1", "2001:db8::1", "fe80::1", ""
    ]  # fmt: skip


_names = st.sampled_from([name for name, counted in stats.COUNTERS.items() if counted.mend])


@given(
    st.lists(st.builds(reason, _names, st.sampled_from([PLACE, "", "10.9.9.9"])), max_size=4),
    st.lists(st.builds(reason, _names), max_size=3),
    st.sampled_from(["", "answered", "unanswered", "refused"]),
    st.sampled_from([None, NOW - 1, NOW - 1000]),
    st.sampled_from([PLACE, None]),
)
def test_there_is_always_an_answer(
    reasons: list[dict[str, Any]], strangers: list[dict[str, Any]], tried: str, at: float | None, place: str | None
) -> None:
    assert search(
        evidence(
            *reasons,
            strangers=tuple(strangers),
            tried=tried,
            last_handshake_unix_s=at,
            endpoint=place,
            endpoint_set=place,
        )
    )


def test_of_two_peers_at_one_address_the_one_at_a_strangers_place_is_meant_or_else_the_stranger() -> None:
    peers = [
        {"public_key": key, "name": "", "endpoint": f"192.0.2.1:{port}", "allowed_ips": []}
        for key, port in (("A", 5), ("B", 6))
    ]
    for place, key in (("192.0.2.1:6", "B"), ("192.0.2.1:7", None), ("192.0.2.9:7", "A")):
        peer, _ = which("192.0.2.1", peers, [{**reason("unknown_peer", place), "last_unix_s": time.time()}])
        assert (peer and peer["public_key"]) == key
    long_ago = {**reason("unknown_peer", "192.0.2.1:7"), "last_unix_s": time.time() - 2 * RECENT}
    assert which("192.0.2.1", peers, [long_ago])[0] == which("192.0.2.1", peers[:1])[0] == peers[0]
