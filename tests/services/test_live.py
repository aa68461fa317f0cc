"""Live changes: one after another, whole or not at all, remembered; and what is said to whom, in which order."""

import errno
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.services.live import FILE, PLACE, PRIVATE, A, B, House, apply, peer, remember

from key_service import journal, live
from key_service.homes import home_of
from key_service.moves import _Move
from key_service.registry import Registry, unconfigured
from stagewire.config import HostPort, encode_key, public_key, uapi
from stagewire.config.parser import parse
from stagewire.control.messages import (
    ConnSettings,
    EndpointFound,
    Listening,
    PeersGone,
    PeersSet,
    PrefixesSet,
    RoutesSet,
    SendingExpired,
    SendStaged,
    SocketSettings,
    WorkerSettings,
)
from stagewire.loop import boot_time


@pytest.fixture(autouse=True)
def _in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little of a processor we get."""
    monkeypatch.setattr(live, "BUDGET", 60.0)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


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
        ("device", home, EndpointFound(A, moved.pack(), house.handshaker.peers[A].endpoint_set_at)),
        ("device", home, SendStaged((A,))),
    ]
    house.hub.said.clear()
    house.change(peer(A, remove=True))
    assert house.hub.take(PeersGone) == [PeersGone((A,))] * 2
    assert house.handshaker.peers == {}


def test_a_place_that_was_learnt_before_the_operator_set_another_counts_no_more(house: House) -> None:
    """A busy worker says late what it learnt, and `wg show` showed the old endpoint."""
    learnt, moved = PLACE._replace(port=PLACE.port + 1).pack(), PLACE._replace(port=PLACE.port + 2).pack()
    house.change(peer(A, "10.0.0.0/8", endpoint=PLACE))
    before = boot_time()
    house.change(peer(A, endpoint=PLACE._replace(port=PLACE.port + 2)))
    house.handshaker.endpoint_moved(A, learnt, before)
    assert house.handshaker.peers[A].endpoint == moved
    house.handshaker.endpoint_moved(A, learnt, boot_time())
    assert house.handshaker.peers[A].endpoint == learnt


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
    for folder in (each for each in (house.store, house.store.with_suffix(".new")) if each.is_dir()):
        folder.rmdir()
    house.change(peer(B))
    run(house)
    again = Registry(unconfigured())
    remember(house, again)
    assert set(again.peers) == {A, B}


def test_settings_of_a_file_are_told_and_peers_that_stay_hear_nothing(tmp_path: Path) -> None:
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")))
    apply(house, FILE)
    assert (house.answers, house.hub.said) == ([0], [])
    apply(house, FILE.replace("10.0.0.1/24", "10.0.0.2/24\nMTU = 1300\n# stagewire: RekeyAfterTime = 30"))
    settings = house.host_says()
    assert (settings.addresses, settings.mtu) == (("10.0.0.2/24",), 1300)
    assert house.hub.take(WorkerSettings) == [WorkerSettings(house.live._announcer.mtu, 30.0)] * 2
    assert house.hub.said == []
    apply(house, FILE)
    house.host_says()
    apply(house, FILE.replace("AllowedIPs", "# stagewire: ResponseTimestamp = on\nAllowedIPs"))
    assert house.hub.take(ConnSettings)[0].stamped
    assert house.handshaker.peers[A].stamped
    apply(house, FILE.replace("AllowedIPs", "Endpoint = vpn.example:5\nAllowedIPs"))
    assert house.live.known_peers.names == {A: HostPort("vpn.example", 5)}
    assert house.answers == [0] * 5


def test_a_file_that_cannot_be_kept_is_not_applied(tmp_path: Path) -> None:
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")))
    before = house.registry.snapshot()
    apply(house, FILE.replace("10.1.0.0/16", "10.2.0.0/16"), OSError(errno.ENOSPC, "full"))
    assert (house.answers, house.hub.said, house.registry.snapshot()) == ([errno.ENOSPC], [], before)
    # A port that was tried already is given back.
    apply(house, FILE.replace("Address", "ListenPort = 9\nAddress"), OSError(errno.ENOSPC, "full"))
    house.live.on_listening(Listening(9, 0, house.request()))
    assert house.answers == [errno.ENOSPC] * 2
    [settings] = house.hub.take(SocketSettings)
    assert settings.listen_port != 9


def test_a_change_made_while_a_file_waits_stays(tmp_path: Path) -> None:
    """The file is worked out upon what the change before it left."""
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")))
    house.change(peer(A, persistent_keepalive=7), listen_port=5)
    apply(house, FILE.replace("10.1.0.0/16", "10.2.0.0/16"))
    house.change(peer(A, endpoint=PLACE))
    house.live.on_listening(Listening(5, 0, house.request()))
    assert house.answers == [0] * 3
    (left,) = house.registry.snapshot().peers
    assert (left.persistent_keepalive, left.allowed_ips) == (7, (ip_network("10.2.0.0/16"),))
    assert (left.endpoint, house.registry.interface.listen_port) == (HostPort("192.0.2.1", 99), 5)
