"""Which peers come, go, move and rekey: once each, and never to and fro."""

from dataclasses import replace

from stagewire.control.event import Event
from stagewire.control.telemetry import PeerReport
from stagewire.proto.constants import REJECT_AFTER_TIME
from status_service.presence import MOST, Connection, Presence

BEGUN = 1_000_000.0
T = 5000.0
KEY = bytes([1]) * 32
ANNA = PeerReport(KEY, "Anna", "10.0.0.2/32", 0, 0, BEGUN + 1, "192.0.2.1:5", 0.0)


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_a_peer_comes_with_its_first_packet_and_goes_when_no_session_can_live() -> None:
    presence = Presence(BEGUN)
    assert presence.take(replace(ANNA, heard_s_ago=-1.0), (0, 92), T, BEGUN) == []
    [came] = presence.take(ANNA, (10, 0), T, BEGUN)
    assert (came.kind, came.name, came.endpoint) == ("connected", "Anna", "192.0.2.1:5")
    assert presence.take(ANNA, (5, 7), T + 60, BEGUN + 60) == []
    assert presence.look(T + 60 + REJECT_AFTER_TIME - 0.1) == []
    [went] = presence.look(T + 60 + REJECT_AFTER_TIME)
    assert (went.kind, went.seconds, went.rx_bytes, went.tx_bytes) == ("disconnected", 60.0, 15, 7)
    assert presence.look(T + 1000) == []


def test_a_packet_every_179_s_is_one_connection() -> None:
    presence, said = Presence(BEGUN), []
    for step in range(1000):
        if step % 179 == 0:
            said += presence.take(ANNA, (1, 1), T + step, BEGUN + step)
        said += presence.look(T + step)
    assert kinds(said) == ["connected"]


def test_a_key_service_that_starts_anew_and_knows_nothing_ends_no_connection() -> None:
    presence = Presence(BEGUN)
    presence.take(ANNA, (1, 1), T, BEGUN)
    assert presence.take(replace(ANNA, heard_s_ago=-1.0), (0, 0), T + 1, BEGUN) == []
    assert presence.look(T + 100) == []
    assert presence.take(ANNA, (1, 0), T + 120, BEGUN) == []
    assert presence.look(T + 299) == []


def test_a_late_report_of_an_old_packet_makes_no_connection() -> None:
    assert Presence(BEGUN).take(replace(ANNA, heard_s_ago=REJECT_AFTER_TIME), (1, 1), T, BEGUN) == []


def test_a_peer_of_an_earlier_life_is_not_new_and_one_that_is_removed_goes() -> None:
    presence = Presence(BEGUN)
    assert presence.take(replace(ANNA, last_handshake_unix_s=BEGUN - 1), (1, 1), T, BEGUN) == []
    assert kinds(presence.end(KEY)) == ["disconnected"]
    assert presence.end(KEY) == []
    # Where the earlier life has left its connections, that peer has come in between.
    assert kinds(Presence(BEGUN, []).take(replace(ANNA, last_handshake_unix_s=BEGUN - 1), (1, 1), T, BEGUN)) == [
        "connected"
    ]


def test_a_kept_connection_goes_on_and_ends_where_nothing_comes() -> None:
    kept = Connection(KEY, "Anna", "192.0.2.1:5", T - 50, BEGUN - 50, T - 10, BEGUN - 10, 0.0, 100, 200)
    presence = Presence(BEGUN, [kept])
    assert presence.take(replace(ANNA, heard_s_ago=1.0), (1, 2), T, BEGUN) == []
    [went] = presence.look(T + REJECT_AFTER_TIME)
    assert (went.seconds, went.rx_bytes, went.tx_bytes) == (49.0, 101, 202)


def test_another_endpoint_and_another_session_are_events_of_a_connected_peer() -> None:
    presence = Presence(BEGUN)
    presence.take(ANNA, (1, 1), T, BEGUN)
    [moved] = presence.take(replace(ANNA, endpoint="[2001:db8::1]:7"), (1, 1), T + 1, BEGUN)
    assert (moved.kind, moved.before, moved.endpoint) == ("moved", "192.0.2.1:5", "[2001:db8::1]:7")
    later = replace(ANNA, endpoint="[2001:db8::1]:7", last_handshake=T + 121)
    assert kinds(presence.take(later, (1, 1), T + 121, BEGUN)) == ["rekeyed"]
    assert presence.take(later, (1, 1), T + 122, BEGUN) == []
    of_a_new_key_service = replace(later, last_handshake=0.0)
    assert presence.take(of_a_new_key_service, (1, 1), T + 122, BEGUN) == []
    assert presence.take(later, (1, 1), T + 122, BEGUN) == []
    after_a_jump = replace(later, last_handshake_unix_s=later.last_handshake_unix_s + 3600)
    assert presence.take(after_a_jump, (1, 1), T + 123, BEGUN + 3600) == []


def test_a_crowd_goes_over_several_looks() -> None:
    presence = Presence(BEGUN)
    for number in range(MOST + 7):
        presence.take(replace(ANNA, public_key=number.to_bytes(32)), (1, 1), T, BEGUN)
    assert [len(presence.look(T + 500)) for _ in range(3)] == [MOST, 7, 0]
