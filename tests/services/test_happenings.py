"""Events: what makes them, how many are kept, and in what order a reader gets them, whatever the clock does."""

import json
from dataclasses import replace

import pytest
from tests import schemas

from key_service.event_makers import events_of_change
from key_service.registry import unconfigured
from stagewire import stats
from stagewire.config import PeerConfig
from stagewire.control.event import KINDS, MAX_CHANGES, REFUSALS, Event, as_json
from stagewire.control.messages import TO_STATUS
from stagewire.control.telemetry import Counters, GatewayReport, PeerReport
from stagewire.logs import Log
from stagewire.reasons import Incident
from status_service.happenings import Happenings
from status_service.history import History
from status_service.peers import Peers
from status_service.presence import Connection, Presence
from status_service.refusals import AGAIN, MOST_A_MINUTE, Refusals
from status_service.ring import MOST, Ring
from status_service.tally import TAKEN_OVER_WITHIN, Tally

SCHEMA = schemas.schema("event")
ALL = tuple(KINDS)
KEY = bytes([1]) * 32
T, UNIX = 1000.0, 1_800_000_000.0


class Lines(Log):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []

    def info(self, event: str, **values: object) -> None:
        self.said.append((event, str(values["peer"])))


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture
def happenings(log: Lines) -> Happenings:
    return Happenings(log, Peers(), Presence(UNIX, []), Ring(), History())


def kinds(happenings: Happenings) -> list[str]:
    return [event.kind for event in happenings.ring.after(0, ALL, 99)[0]]


def test_ids_grow_and_a_reader_goes_on_where_it_was_whatever_the_clock_does() -> None:
    ring = Ring()
    ids = [ring.add(Event("connected"), unix_s).id for unix_s in (UNIX, UNIX, UNIX - 86_400, UNIX + 1)]
    assert ids == sorted(set(ids))
    assert [event.id for event in ring.after(ids[1], ALL, 99)[0]] == ids[2:]
    assert ring.after(ring.newest, ALL, 99) == ((), False)
    kept = Ring(ring.after(0, ALL, 99)[0])
    assert kept.add(Event("moved"), UNIX - 1e6).id > ids[-1]


def test_a_flood_of_one_kind_takes_no_other_kinds_place_and_is_said() -> None:
    ring = Ring()
    first = ring.add(Event("connected"), UNIX)
    for number in range(MOST + 1):
        ring.add(Event("rekeyed"), UNIX + number)
    found, lost = ring.after(0, ALL, 9999)
    assert (len(found), found[0], lost) == (MOST + 1, first, True)
    assert ring.after(0, ("connected",), 99) == ((first,), False)
    assert not ring.after(first.id + 2, ("rekeyed",), 1)[1] or ring.after(first.id + 2, ("rekeyed",), 1)[0]
    assert ring.after(0, ("nonsense",), 99) == ((), False)
    assert ring.after(0, ALL, -5)[0] == ()


def test_a_peers_way_is_told_and_logged_by_name(happenings: Happenings, log: Lines) -> None:
    report = PeerReport(KEY, "Anna", "", 1, 2, UNIX, "192.0.2.1:5", 0.0)
    assert happenings.on_report(GatewayReport(True, (report,), ()), T, UNIX)
    assert happenings.on_report(GatewayReport(True, (), (KEY,)), T, UNIX)
    assert kinds(happenings) == ["connected", "disconnected"]
    assert log.said == [("peer connected", "Anna (AQEBAQEBAQ)"), ("peer disconnected", "Anna (AQEBAQEBAQ)")]


def test_key_service_tells_of_its_own_kinds_alone(happenings: Happenings) -> None:
    own = GatewayReport(True, (), (), (Event("scaled", workers=3, workers_before=1),))
    assert happenings.on_report(own, T, UNIX)
    assert not happenings.on_report(GatewayReport(True, (), (), (Event("connected"), Event("nonsense"))), T, UNIX)
    assert kinds(happenings) == ["scaled"]


def test_a_refusal_is_told_once_with_reason_and_name_and_a_flood_is_bounded(happenings: Happenings) -> None:
    happenings.on_report(GatewayReport(True, (PeerReport(KEY, "Anna", "", 0, 0, 0.0),), ()), T, UNIX)
    place = bytes((192, 0, 2, 1)) + (5).to_bytes(2)

    def count(incident: Incident, now: float) -> None:
        happenings.on_counters(Counters("key", 0, 1, 7, (), (), (incident,)), now, UNIX, taken_over=False)

    for step in range(3):
        count(Incident("response_not_authentic", KEY, place, 92, step), T + step)
        count(Incident("no_peer", b"", place, 92, step), T + step)
    [event] = happenings.ring.after(0, ("refused",), 99)[0]
    assert (event.name, event.reason, event.endpoint) == ("Anna", "response_not_authentic", "192.0.2.1:5")
    count(Incident("response_not_authentic", KEY, place, 92, 9), T + AGAIN)
    assert len(happenings.ring.after(0, ("refused",), 99)[0]) == 2
    for number in range(500):
        count(Incident("unknown_peer", number.to_bytes(32), place, 148, 1), T + 2 * AGAIN)
    assert len(happenings.ring.after(0, ("refused",), 9999)[0]) == 2 + MOST_A_MINUTE


def test_a_flood_of_strangers_leaves_no_memory_behind() -> None:
    refusals = Refusals()
    for number in range(10_000):
        refusals.take(Incident("unknown_peer", number.to_bytes(32), b"", 148, 1), "", number * 60.0)
    assert len(refusals._told) <= 4096


def test_a_take_over_is_another_process_soon_after_the_last_report() -> None:
    tally = Tally()
    assert not tally.take(Counters("conn", 0, 1, 7, (), ()), T)
    assert not tally.take(Counters("conn", 0, 1, 7, (), ()), T + 1)
    assert tally.take(Counters("conn", 0, 2, 8, (), ()), T + 2)
    assert not tally.take(Counters("conn", 0, 3, 9, (), ()), T + 2 + TAKEN_OVER_WITHIN)


def peer(number: int) -> PeerConfig:
    return PeerConfig(bytes([number]) * 32, bytes(32), (), None, 0, False, 0, f"peer {number}")


def test_what_an_operator_changes() -> None:
    both, one = (replace(unconfigured(), peers=peers) for peers in ((peer(1), peer(2)), (peer(1),)))
    [off] = events_of_change("peer disable", ["- x"], both, one)
    [on] = events_of_change("peer enable", ["+ x"], one, both)
    assert [(event.kind, event.name) for event in (off, on)] == [("disabled", "peer 2"), ("enabled", "peer 2")]
    [reloaded] = events_of_change("reload", ["x" * 5000] * 100, both, one)
    assert (reloaded.what, len(reloaded.changes), reloaded.changes[-1]) == (
        "reload", MAX_CHANGES + 1, f"and {100 - MAX_CHANGES} more"
    )  # fmt: skip
    assert len(TO_STATUS.pack(GatewayReport(True, (), (), (reloaded,) * 8))) < 32_000


def test_every_reason_of_a_refusal_is_a_counter() -> None:
    assert stats.COUNTERS.keys() >= REFUSALS


# --- as JSON ------------------------------------------------------------------------------------------------

HOSTILE = "\u202eevil\x1b[2J\n<b>" + "x" * 10_000


@pytest.mark.parametrize("kind", ALL)
def test_each_kind_has_its_fields_as_the_schema_says(kind: str) -> None:
    event = Event(kind, 5, UNIX, "K" * 43 + "=", HOSTILE, "192.0.2.1:5", "192.0.2.2:5", changes=("a", "b"))
    said = as_json(event, "wg0")
    text = json.dumps(said)
    assert text.isascii()
    assert text.isprintable()
    schemas.check(said, "event")
    [schema] = [each for each in SCHEMA["oneOf"] if each["properties"]["kind"]["const"] == kind]
    assert schema["description"] == KINDS[kind].about


def test_the_schema_has_no_other_kind() -> None:
    assert [each["properties"]["kind"]["const"] for each in SCHEMA["oneOf"]] == list(ALL)


def test_what_down_ended_is_ended_by_the_next_life(log: Lines) -> None:
    kept = Connection(KEY, "Anna", "192.0.2.1:5", T - 50, UNIX - 50, T - 10, UNIX - 10, UNIX, 100, 200)
    happenings = Happenings(log, Peers(), Presence(UNIX, [kept]), Ring(), History())
    happenings.end_all(UNIX)
    [event] = happenings.ring.after(0, ALL, 99)[0]
    assert (event.kind, event.seconds, event.rx_bytes) == ("disconnected", 40.0, 100)
