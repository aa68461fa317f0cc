"""Trains that are dropped whole: their packets count for their peers, or where they were to go."""

from typing import Any

from tests.proto.byhand import T, v4
from tests.proto.kernel.visits import NAMES, PLACES, Side, index_of

from device_service.dropped import Dropped
from stagewire.pipe import trains
from stagewire.proto.constants import TYPE_TRANSPORT
from stagewire.proto.endpoint import place_of
from stagewire.proto.kernel.choice import choose
from stagewire.proto.kernel.rule import PLAIN
from stagewire.proto.messages import HEADER
from stagewire.reasons import Incident

LATE = T - trains.MAX_AGE - 0.1


def made() -> tuple[Side, Dropped, Any]:
    side = Side(choose(PLAIN))
    return side, side.service._dropped, lambda: set(side.counters.take_changed())


def at(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


def test_packets_that_waited_too_long_count_for_the_peers_they_were_for() -> None:
    side, _, told = made()
    packets = [v4("10.9.0.1", "10.0.0.1"), v4("10.9.0.1", "10.0.0.2"), v4("10.9.0.1", "10.0.0.1")]
    side.plain_in([trains.pack_plain(packets, LATE)])
    assert told() == {
        Incident("train_too_old", NAMES[1], at("10.0.0.1"), len(packets[0]), 2),
        Incident("train_too_old", NAMES[2], at("10.0.0.2"), len(packets[1]), 1),
    }


def test_datagrams_that_waited_too_long_count_for_the_peers_whose_sessions_they_name() -> None:
    side, _, told = made()
    datagrams = [HEADER.pack(TYPE_TRANSPORT, index) + bytes(40) for index in (index_of(1), 0x12345678)]
    side.cipher_in([trains.pack_cipher([(PLACES[1], datagrams)], LATE)])
    place = place_of(PLACES[1])
    assert told() == {Incident("train_too_old", NAMES[1], place, 48, 1), Incident("train_too_old", b"", place, 48, 1)}


def test_what_no_stage_takes_counts_for_its_peers_and_places() -> None:
    side, dropped, told = made()
    packet = v4("10.0.0.1", "10.9.0.1")
    dropped.to_os("tun_full", trains.pack_plain([packet, packet], T), 2)
    dropped.to_network("conn_full", trains.pack_cipher([(PLACES[2], [bytes(60)] * 3)], T), 3)
    assert told() == {
        Incident("tun_full", NAMES[1], at("10.0.0.1"), len(packet), 2),
        Incident("conn_full", b"", place_of(PLACES[2]), 60, 3),
    }
    assert side.counters == {"tun_full": 2, "conn_full": 3}
