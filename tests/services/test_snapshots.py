"""Snapshots in pieces."""

from pathlib import Path

import pytest
from tests.services.live import A, B, House, HubStandIn
from tests.services.test_announce import announcer, made

from key_service import live, snapshots
from key_service.hub import Member
from key_service.snapshots import Snapshots
from stagewire.config.uapi import PeerChange
from stagewire.control.messages import (
    FromKey,
    PeersGone,
    PeersSet,
    PrefixesSet,
    RoutesSet,
    SnapshotEnd,
    TunSettings,
    Welcome,
)
from stagewire.loop import boot_time


class Hub:
    def __init__(self) -> None:
        self.said: list[tuple[bytes, FromKey]] = []

    def send(self, identity: bytes, message: FromKey) -> None:
        self.said.append((identity, message))

    def take(self) -> list[tuple[bytes, type]]:
        said, self.said = self.said, []
        return [(identity, type(message)) for identity, message in said]


def member(stage: str) -> Member:
    return Member(stage.encode(), stage, 0, 1, 1, 0.0, 0.0)


def one() -> tuple[Hub, Snapshots]:
    hub = Hub()
    return hub, Snapshots(hub, announcer(made(peers=200), workers=1), 7, 8)  # type: ignore[arg-type]


def test_a_short_snapshot_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PIECE", 60.0)
    hub, sent = one()
    sent.begin(member("tun"))
    assert hub.said[0] == (b"tun", Welcome(7, 8))
    assert hub.said[-1] == (b"tun", SnapshotEnd(8))
    assert sent.next_deadline() is None


def test_a_held_one_goes_at_its_time_or_when_it_is_released() -> None:
    for let_go in (Snapshots.release, lambda sent: sent.act(sent.next_deadline())):
        hub, sent = one()
        until = boot_time() + 60
        sent.hold(until)
        for stage in ("tun", "conn"):
            sent.begin(member(stage))
        assert hub.said == []
        assert sent.next_deadline() == until
        let_go(sent)
        assert hub.said[0] == (b"tun", Welcome(7, 8))


def test_long_ones_go_in_pieces_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PIECE", 0.0)  # each message is a piece
    hub, sent = one()
    sent.begin(member("tun"))
    sent.begin(member("device"))
    assert hub.take() == [(b"tun", Welcome)]
    pieces = []
    while (due := sent.next_deadline()) is not None:
        sent.act(due)
        pieces.append(hub.take())
    tun = [TunSettings, *[RoutesSet] * 4, SnapshotEnd]
    told = [each for piece in pieces for each in piece]
    assert [kind for identity, kind in told if identity == b"tun"] == tun
    assert {identity for identity, _ in told[: len(tun)]} == {b"tun"}
    kinds = [kind for identity, kind in told if identity == b"device"]
    assert (kinds[0], kinds[-1], kinds.count(PeersSet), kinds.count(PrefixesSet)) == (Welcome, SnapshotEnd, 4, 4)
    assert max(map(len, pieces)) <= 2


def test_another_hello_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PIECE", 0.0)
    hub, sent = one()
    for _ in range(2):
        sent.begin(member("tun"))
        sent.act(0.0)
    while (due := sent.next_deadline()) is not None:
        sent.act(due)
    kinds = [kind for _, kind in hub.take()]
    last = len(kinds) - 1 - kinds[::-1].index(Welcome)
    assert kinds[last:] == [Welcome, TunSettings, *[RoutesSet] * 4, SnapshotEnd]
    assert SnapshotEnd not in kinds[:last]


def test_a_change_waits_for_the_end_of_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the snapshot would name what the change removes."""
    monkeypatch.setattr(live, "BUDGET", 60.0)
    house = House(tmp_path)
    say = lambda hub, identity, message: hub.said.append((identity.decode(), 0, message))  # noqa: E731
    monkeypatch.setattr(HubStandIn, "send", say, raising=False)
    house.change(PeerChange(A, 1), PeerChange(B, 1))
    house.hub.said.clear()
    monkeypatch.setattr(snapshots, "PIECE", 0.0)  # each message is a piece
    house.snapshots.begin(Member(b"device", "device", 0, 1, 1, 0.0, 0.0))
    house.change(PeerChange(A, 1, remove=True))
    turns = 0
    while len(house.answers) < 2:
        assert house.live.next_deadline() == house.snapshots.next_deadline() or not house.snapshots.next_deadline()
        assert A in house.registry.peers
        for timed in (house.snapshots, house.live):
            if timed.next_deadline() is not None:
                timed.act(boot_time())
        turns += 1
    told = [type(message) for _, _, message in house.hub.said]
    assert turns > 2
    assert told.index(SnapshotEnd) < told.index(PeersGone)
    assert A not in house.registry.peers
