"""Live changes: one after another, whole or not at all, remembered; and what is said to whom, in which order."""

import errno
from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from key_service import journal
from key_service.announce import Announcer
from key_service.homes import home_of
from key_service.live import LISTENING_WITHIN, LiveConfiguration
from key_service.moves import Moves, _Move
from key_service.registry import Registry, unconfigured
from key_service.timestamps import TimestampStore
from stagewire.config import HostPort, encode_key, public_key
from stagewire.config.parse import parse
from stagewire.ipc.control import (
    ConnSettings,
    EndpointFound,
    FromKey,
    Listening,
    PeersGone,
    PeersSet,
    PrefixesSet,
    RoutesSet,
    SendingExpired,
    SendStaged,
)
from stagewire.ipc.loop import boot_time
from stagewire.logs import Log
from stagewire.proto import uapi
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.uapi import Change, PeerChange, PrefixChange

PRIVATE = bytes([8, *range(1, 31), 64])
A, B = (sha256(name).digest() for name in (b"a", b"b"))
PLACE = Endpoint(bytes([192, 0, 2, 1]), 99)


class HubStandIn:
    """Writes down what is told to whom."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, FromKey]] = []
        self.conn_is_there = True

    def member(self, stage: str, _number: int = 0) -> object | None:
        return self if self.conn_is_there or stage != "conn" else None

    def numbers(self, _stage: str) -> list[int]:
        return [0, 1]

    def tell(self, stage: str, number: int, message: FromKey) -> None:
        self.said.append((stage, number, message))

    def take(self, kind: type[FromKey]) -> list[Any]:
        """What was said of one kind."""
        found = [message for _, _, message in self.said if isinstance(message, kind)]
        self.said = [entry for entry in self.said if not isinstance(entry[2], kind)]
        return found


class House:
    def __init__(self, folder: Path, registry: Registry | None = None) -> None:
        self.store = folder / "live-0"
        self.handshaker = Handshaker(None, bytes(12), bytes, lambda: 0.0)
        self.registry = registry or Registry(unconfigured())
        announcer = Announcer(self.registry, self.handshaker, Moves(self.handshaker, 2), False)
        timestamps = TimestampStore(folder / "timestamps")
        self.live = LiveConfiguration(announcer, timestamps, self.store, Log())
        self.hub = HubStandIn()
        self.live.hub = self.hub  # type: ignore[assignment]
        self.live.begin()
        self.answers: list[int] = []

    def change(self, *peers: PeerChange, **values: Any) -> None:
        self.live.change(Change(peers=peers, **values), self.answers.append)

    def request(self) -> int:
        """Of conn-service, the last, which is to be answered."""
        settings = self.hub.take(ConnSettings)
        request: int = settings[-1].request
        assert request
        return request


def remember(house: House, registry: Registry) -> None:
    """What a new life does with what the one before has left."""
    for record in journal.records(house.store):
        registry.restore(record)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def peer(key: bytes, *allowed: str, **values: Any) -> PeerChange:
    return PeerChange(key, 1, allowed_ips=tuple(PrefixChange(ip_network(each), True) for each in allowed), **values)


def test_a_new_peer_is_told_to_all_whom_it_concerns(house: House) -> None:
    house.change(peer(A, "10.0.0.0/8", endpoint=PLACE, persistent_keepalive=5))
    assert house.answers == [0]
    assert {(stage, type(message)) for stage, _, message in house.hub.said} == {
        ("device", PeersSet),
        ("device", PrefixesSet),
        ("tun", RoutesSet),
    }
    told = {number: message for stage, number, message in house.hub.said if isinstance(message, PeersSet)}
    assert [told[number].peers[0].home for number in (0, 1)] == [home_of(A, 2) == number for number in (0, 1)]
    assert told[0].peers[0].endpoint == PLACE.pack()
    house.hub.said.clear()
    # Named again: its home alone hears that what waits is worth a try, and where it is if that is news.
    home = home_of(A, 2)
    house.change(peer(A, endpoint=PLACE))
    assert house.hub.said == [("device", home, SendStaged((A,)))]
    house.hub.said.clear()
    moved = PLACE._replace(port=PLACE.port + 1)
    house.change(peer(A, endpoint=moved))
    assert house.hub.said == [
        ("device", home, EndpointFound(A, moved.pack())),
        ("device", home, SendStaged((A,))),
    ]
    house.hub.said.clear()
    house.change(peer(A, remove=True))
    assert house.hub.take(PeersGone) == [PeersGone((A,))] * 2
    assert house.handshaker.peers == {}


def test_what_concerns_a_peer_that_moves_is_told_to_both_its_homes(house: House) -> None:
    house.change(peer(A, "10.0.0.0/8"))
    home = home_of(A, 2)
    moves = house.live._announcer.moves
    moves._moves[A] = _Move(home, 1 - home)
    house.hub.said.clear()
    house.change(peer(A, endpoint=PLACE, persistent_keepalive=5))
    told = [(number, message) for _, number, message in house.hub.said]
    assert {number for number, message in told if isinstance(message, EndpointFound)} == {0, 1}
    assert {number for number, message in told if isinstance(message, SendStaged)} == {0, 1}
    assert [message.peers[0].home for _, message in told if isinstance(message, PeersSet)] == [True, True]
    house.change(peer(A, remove=True))
    assert moves.moving == 0


def test_settings_that_are_being_tried_are_not_taken_back_by_other_news(house: House) -> None:
    house.live.tell_conn()
    house.change(listen_port=7)
    house.live.tell_conn()
    assert [(each.listen_port, each.request) for each in house.hub.take(ConnSettings)] == [(0, 0), (7, 1), (7, 0)]


def test_changes_wait_behind_a_port(house: House) -> None:
    house.change(listen_port=7)
    house.change(peer(A))
    house.change(peer(B))
    assert (house.answers, house.registry.peers) == ([], {})
    house.live.on_listening(Listening(7, 0, house.request()))
    assert house.answers == [0, 0, 0]
    assert list(house.registry.peers) == [A, B]
    assert (house.live.port, house.registry.interface.listen_port) == (7, 7)
    assert house.live.next_deadline() is None


def test_a_refusal_leaves_all_as_it_was(house: House) -> None:
    house.change(peer(A, "10.0.0.0/8"), listen_port=6)
    house.live.on_listening(Listening(6, 0, house.request()))
    before, remembered = house.registry.snapshot(), house.store.read_bytes()
    house.hub.said.clear()
    house.change(peer(B, "10.0.0.0/8"), listen_port=7, fwmark=9, replace_peers=True, private_key=PRIVATE)
    house.change(peer(B, "11.0.0.0/8"))
    house.live.on_listening(Listening(6, errno.EADDRINUSE, house.request()))
    assert house.answers == [0, errno.EADDRINUSE, 0]
    assert house.registry.snapshot().peers[:1] == before.peers
    assert (house.registry.interface, house.live.port) == (replace(before, peers=()), 6)
    assert set(house.registry.peers) == {A, B}, "the next one was made"
    assert house.handshaker.public_key is None
    assert not house.hub.take(SendingExpired)
    assert house.store.read_bytes() != remembered


def test_an_answer_to_something_else_is_not_taken_for_ones_own(house: House) -> None:
    house.change(private_key=PRIVATE)
    assert [each.request for each in house.hub.take(ConnSettings)] == [0]
    house.change(listen_port=7)
    request = house.request()
    house.live.on_listening(Listening(5, 0, 0))
    assert (house.answers, house.live.port) == ([0], 5)
    house.live.on_listening(Listening(5, errno.EACCES, request))
    assert house.answers == [0, errno.EACCES]


def test_who_says_nothing_is_not_waited_for_long(house: House) -> None:
    house.change(listen_port=7)
    house.change(peer(A))
    deadline = house.live.next_deadline()
    assert deadline == pytest.approx(boot_time() + LISTENING_WITHIN, abs=1)
    first = house.request()
    house.live.act(deadline or 0.0)
    assert house.answers == [0, 0]
    assert house.hub.take(ConnSettings)[-1].listen_port == 7, "told again: it may have come back meanwhile"
    house.live.on_listening(Listening(7, 0, first))
    assert house.live.port == 7


def test_without_a_conn_service_nobody_is_waited_for(house: House) -> None:
    house.hub.conn_is_there = False
    house.change(listen_port=7, fwmark=3)
    assert house.answers == [0]
    assert house.live.next_deadline() is None


def test_another_private_key(house: House) -> None:
    house.change(peer(public_key(PRIVATE), "10.0.0.0/8"), peer(A))
    house.hub.said.clear()
    house.change(private_key=PRIVATE)
    assert house.handshaker.public_key == public_key(PRIVATE)
    assert set(house.handshaker.peers) == {A}
    assert len(house.hub.take(SendingExpired)) == 2
    assert house.hub.take(ConnSettings)[-1].public_key == public_key(PRIVATE)
    house.change(private_key=PRIVATE)
    assert not house.hub.take(SendingExpired), "the same is no change"
    house.change(private_key=bytes(32))
    assert house.hub.take(ConnSettings)[-1].public_key == bytes(32)


def test_what_is_in_force_is_remembered(house: House, tmp_path: Path) -> None:
    house.change(peer(A, "10.0.0.0/8", preshared_key=B, endpoint=PLACE, persistent_keepalive=3), private_key=PRIVATE)
    house.change(peer(B, "10.0.0.0/9", "fd00::/8"))
    house.change(peer(A, remove=True))
    house.change(peer(A, "12.0.0.0/8", preshared_key=B))
    assert house.store.stat().st_mode & 0o777 == 0o600
    fresh = Registry(unconfigured())
    remember(house, fresh)
    assert set(fresh.snapshot().peers) == set(house.registry.snapshot().peers)
    assert fresh.interface.private_key == PRIVATE
    lines = b"".join(uapi.get_reply(House(tmp_path, fresh).live.state(whole=True)))
    assert b"preshared_key=" + B.hex().encode() in lines


def test_upon_a_file_what_was_removed_stays_removed_and_a_name_a_name(tmp_path: Path) -> None:
    text = "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nEndpoint = a.example:1\n[Peer]\nPublicKey = {}\n"
    file = parse(text.format(*map(encode_key, (PRIVATE, A, B))), "test")
    house = House(tmp_path, Registry(file))
    house.change(peer(B, remove=True), private_key=bytes(32))
    again = Registry(file)
    remember(house, again)
    assert set(again.peers) == {A}
    assert again.peers[A].endpoint == HostPort("a.example", 1)
    assert again.interface.private_key is None


def test_a_state_that_is_read_slowly_is_that_of_its_beginning(house: House) -> None:
    house.change(peer(A), peer(B))
    pieces = uapi.get_reply(house.live.state())
    house.change(peer(A, remove=True), peer(B, remove=True))
    assert b"".join(pieces).count(b"public_key=") == 2


def test_the_private_key_is_shown_as_set(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.live._show_private_key = False
    house.change(private_key=PRIVATE)
    assert house.live.state().private_key is None
    assert house.live.state(whole=True).private_key == PRIVATE


def run(house: House) -> int:
    """Turns until there is nothing left to write."""
    turns = 0
    while house.live.next_deadline() == 0.0:
        house.live.act(boot_time())
        turns += 1
    return turns


def test_a_big_change_is_written_between_other_things_and_holds_once_it_is(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("key_service.live.BUDGET", 0.0)
    many = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(3000)]
    house.change(peer(A, *many))
    house.change(peer(B, "10.0.0.0/8"))
    assert (house.answers, house.registry.peers, house.hub.said) == ([], {}, [])
    assert journal.records(house.store) == []
    assert run(house) > 3
    assert house.answers == [0, 0]
    again = Registry(unconfigured())
    remember(house, again)
    assert again.snapshot() == house.registry.snapshot()


def test_many_changes_become_one_and_nothing_is_forgotten(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("key_service.journal.MAX_RECORDS", 10)
    for number in range(40):
        house.change(peer(A, f"10.{number}.0.0/16", persistent_keepalive=number))
        if number % 7 == 6:  # in the middle of a rewrite, most times
            house.live.act(boot_time())
    run(house)
    assert len(journal.records(house.store)) <= 11
    again = Registry(unconfigured())
    remember(house, again)
    assert again.snapshot() == house.registry.snapshot()


def test_what_cannot_be_remembered_holds_all_the_same(house: House) -> None:
    house.store.with_suffix(".new").mkdir()
    house.store.mkdir()
    house.change(peer(A))
    run(house)
    assert (house.answers, set(house.registry.peers)) == ([0], {A})
    house.store.rmdir()
    house.store.with_suffix(".new").rmdir()
    house.change(peer(B))
    run(house)
    again = Registry(unconfigured())
    remember(house, again)
    assert set(again.peers) == {A, B}
