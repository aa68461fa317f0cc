"""Live changes: one after another, whole or not at all, remembered; and what is said to whom, in which order."""

import errno
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from key_service import journal, live
from key_service.announce import Announcer
from key_service.homes import home_of
from key_service.live import LiveConfiguration, Task
from key_service.moves import Moves, _Move
from key_service.registry import Registry, unconfigured
from key_service.snapshots import Snapshots
from key_service.timestamps import TimestampStore
from key_service.trial import WITHIN
from stagewire.config import HostPort, encode_key, public_key, uapi
from stagewire.config.parser import parse
from stagewire.config.uapi import Change, PeerChange, PrefixChange
from stagewire.control.messages import (
    ConnSettings,
    EndpointFound,
    FromKey,
    HostSettings,
    HostState,
    Listening,
    PeersGone,
    PeersSet,
    PrefixesSet,
    RoutesGone,
    RoutesSet,
    SendingExpired,
    SendStaged,
    SocketSettings,
    WorkerSettings,
)
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.handshaker import Handshaker

PRIVATE = bytes([8, *range(1, 31), 64])
A, B = (sha256(name).digest() for name in (b"a", b"b"))
PLACE = Endpoint(bytes([192, 0, 2, 1]), 99)


class HubStandIn:
    """Writes down what is told to whom."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, FromKey]] = []
        self.host_is_there = True

    def member(self, stage: str, _number: int = 0) -> object | None:
        return self if self.host_is_there or stage != "host" else None

    def numbers(self, _stage: str) -> list[int]:
        return [0, 1]

    def tell(self, stage: str, number: int, message: FromKey) -> None:
        self.said.append((stage, number, message))

    def take(self, kind: type[FromKey]) -> list[Any]:
        """What was said of one kind."""
        found = [message for _, _, message in self.said if isinstance(message, kind)]
        self.said = [entry for entry in self.said if not isinstance(entry[2], kind)]
        return found


AT_ONCE = SimpleNamespace(hold=lambda give, _prefixes, **_: give())


class House:
    def __init__(self, folder: Path, registry: Registry | None = None, *, managed: bool = False) -> None:
        self.store = folder / "live-0"
        self.handshaker = Handshaker(None, bytes(12), bytes, lambda: 0.0)
        self.registry = registry or Registry(unconfigured())
        announcer = Announcer(self.registry, self.handshaker, Moves(self.handshaker, 2), managed)
        timestamps = TimestampStore(folder / "timestamps")
        self.hub = HubStandIn()
        self.snapshots = Snapshots(self.hub, announcer, 1, 1)  # type: ignore[arg-type]
        parts = announcer, self.hub, self.snapshots, AT_ONCE, timestamps, self.store, Log()
        self.live = LiveConfiguration(*parts)  # type: ignore[arg-type]
        self.live.begin()
        self.answers: list[int] = []

    def change(self, *peers: PeerChange, **values: Any) -> None:
        self.live.change(Change(peers=peers, **values), self.answers.append)

    def request(self) -> int:
        """Of host-service, the last, which is to be answered."""
        settings = self.hub.take(SocketSettings)
        request: int = settings[-1].request
        assert request
        return request

    def host_says(self, fault: str = "", *warnings: str) -> HostSettings:
        """host-service's answer to the last settings of the network; returns them."""
        settings: HostSettings = self.hub.take(HostSettings)[-1]
        self.live.on_host_state(HostState(0, warnings, (), 0, fault, settings.request))
        return settings


def remember(house: House, registry: Registry) -> None:
    """What a new life does with what the one before has left."""
    for record in journal.records(house.store):
        registry.restore(record)


@pytest.fixture(autouse=True)
def _in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little of a processor we get."""
    monkeypatch.setattr(live, "BUDGET", 60.0)


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
    assert not house.hub.take(SocketSettings)
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
    assert deadline == pytest.approx(boot_time() + WITHIN, abs=1)
    first = house.request()
    house.live.act(deadline or 0.0)
    assert house.answers == [0, 0]
    assert house.hub.take(SocketSettings)[-1].listen_port == 7, "told again: it may have come back meanwhile"
    house.live.on_listening(Listening(7, 0, first))
    assert house.live.port == 7


def test_without_a_host_service_nobody_is_waited_for(house: House) -> None:
    house.hub.host_is_there = False
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
    for folder in (each for each in (house.store, house.store.with_suffix(".new")) if each.is_dir()):
        folder.rmdir()
    house.change(peer(B))
    run(house)
    again = Registry(unconfigured())
    remember(house, again)
    assert set(again.peers) == {A, B}


# --- an edited file ----------------------------------------------------------------------------------------

FILE = f"""[Interface]
PrivateKey = {encode_key(PRIVATE)}
Address = 10.0.0.1/24
[Peer]
PublicKey = {encode_key(A)}
AllowedIPs = 10.1.0.0/16
"""


def apply(
    house: House, text: str, remember: Exception | None = None, said: Callable[[str], None] = lambda _line: None
) -> None:
    """As `stagewire reload` has it done."""
    file = parse(text, "wg0.conf")

    def write() -> Any:
        if remember is not None:
            raise remember
        yield

    house.live.make(Task(lambda prepared: prepared.work_out_file(file), write, house.answers.append, True, said))


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


def test_a_port_that_is_taken_refuses_the_whole_file(tmp_path: Path) -> None:
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")))
    before = house.registry.snapshot()
    apply(house, FILE.replace("Address", "ListenPort = 9\nMTU = 1300\nAddress"))
    house.live.on_listening(Listening(1, errno.EADDRINUSE, house.request()))
    assert (house.answers, house.hub.said, house.registry.snapshot()) == ([errno.EADDRINUSE], [], before)


def test_a_mark_holds_once_host_service_says_so(house: House) -> None:
    house.change(fwmark=9)
    house.live.on_listening(Listening(1, 0, house.request()))
    assert (house.answers, house.registry.interface.fwmark) == ([], 0)
    house.live.on_host_state(HostState(0, (), (), 0))
    assert house.answers == [], "that was about something else"
    assert house.host_says().fwmark == 9
    assert (house.answers, house.registry.interface.fwmark) == ([0], 9)
    assert not house.hub.take(HostSettings), "it has been told"


def test_a_mark_that_host_service_refuses_changes_nothing(house: House) -> None:
    house.change(fwmark=9, private_key=PRIVATE)
    house.live.on_listening(Listening(1, 0, house.request()))
    house.host_says("FwMark 0x9 is another tunnel's mark")
    assert house.hub.take(SocketSettings)[-1].fwmark == 0
    assert house.answers == [], "before it says that all is as it was"
    assert house.host_says().fwmark == 0
    assert (house.answers, house.registry.interface.fwmark) == ([errno.EBUSY], 0)
    assert house.handshaker.public_key is None
    assert house.live.next_deadline() is None


def test_a_fault_that_was_there_before_refuses_nothing(house: House) -> None:
    house.live.on_host_state(HostState(0, (), (), 0, "no room"))
    house.change(fwmark=9)
    house.live.on_listening(Listening(1, 0, house.request()))
    house.host_says("no room")
    assert house.answers == [0]


def test_who_does_not_answer_for_the_network_is_told_again(house: House) -> None:
    house.change(fwmark=9)
    house.live.on_listening(Listening(1, 0, house.request()))
    assert house.hub.take(HostSettings)
    house.live.act(house.live.next_deadline() or 0.0)
    assert house.answers == [0]
    assert (house.hub.take(HostSettings)[-1].fwmark, house.hub.take(SocketSettings)[-1].fwmark) == (9, 9)


def test_a_route_that_is_taken_refuses_the_whole_file(tmp_path: Path) -> None:
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")), managed=True)
    before = house.registry.snapshot()
    said: list[str] = []
    apply(house, FILE.replace("10.1.0.0/16", "10.2.0.0/16").replace("10.0.0.1", "10.0.0.2"), said=said.append)
    house.change(peer(A, persistent_keepalive=7))
    [gone], [fresh] = house.hub.take(RoutesGone), house.hub.take(RoutesSet)
    assert house.host_says("", "route 10.2.0.0/16 is taken").addresses == ("10.0.0.2/24",)
    assert house.hub.take(RoutesGone)[0].prefixes == fresh.prefixes
    assert house.hub.take(RoutesSet)[0].prefixes == gone.prefixes
    assert {stage for stage, _, _ in house.hub.said} == {"host"}
    assert (house.answers, house.registry.snapshot()) == ([], before)
    assert house.host_says().addresses == ("10.0.0.1/24",)
    assert house.answers == [errno.EBUSY, 0], "and the next one is made"
    assert said == ["route 10.2.0.0/16 is taken; remove that route, or the prefix from AllowedIPs"]
    assert house.registry.snapshot().peers[0].allowed_ips == before.peers[0].allowed_ips


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


def test_another_life_of_host_service_is_told_all_once_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")), managed=True)
    apply(house, FILE.replace("10.1.0.0/16", "10.2.0.0/16").replace("10.0.0.1", "10.0.0.2"))
    house.hub.take(RoutesSet)
    monkeypatch.setattr(house.hub, "member", lambda _stage, _number=0: object())
    house.host_says()
    assert [stage for stage, _, message in house.hub.said if isinstance(message, RoutesSet)] == ["tun", "host"]
    assert house.hub.take(HostSettings)[-1].addresses == ("10.0.0.2/24",)
