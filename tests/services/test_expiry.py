"""A peer whose time is over goes, once, also when the clock jumps; and an attempt that fails is made again."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from key_service import expiry
from key_service.expiry import Expiry
from key_service.registry import Registry, unconfigured
from stagewire.config import PeerConfig, uapi
from stagewire_cli import in_force

A, B = bytes([1]) * 32, bytes([2]) * 32


class Live:
    """Makes each change at once, or refuses it."""

    def __init__(self, *peers: PeerConfig) -> None:
        self.registry = Registry(replace(unconfigured(), peers=peers))
        self.refuses = False
        self.tries = 0

    def change(self, change: uapi.Change, done: Any) -> None:
        self.tries += 1
        if not self.refuses:
            self.registry.commit(self.registry.prepare(change))
        done(5 if self.refuses else 0)


def peer(key: bytes, expires: int | None) -> PeerConfig:
    return PeerConfig(key, bytes(32), (), None, 0, False, 0, "phone", expires)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(at=1000.0)
    now.time = lambda: now.at
    monkeypatch.setattr(expiry, "time", now)
    return now


def looking(live: Live) -> tuple[Expiry, list[str]]:
    said: list[str] = []
    log = cast("Any", SimpleNamespace(info=lambda *_words, **_values: None, warning=lambda *_words, **_values: None))
    return Expiry(cast("Any", live), log, said.extend, lambda _kind, _peers: None), said


def test_a_peer_goes_when_its_time_is_over_and_no_other(clock: SimpleNamespace) -> None:
    live = Live(peer(A, 2000), peer(B, None))
    one, said = looking(live)
    one.look(0)
    assert set(live.registry.peers) == {A, B}
    clock.at = 2000.0
    one.look(0)
    one.look(0)
    assert set(live.registry.peers) == {B}
    assert len(said) == 1
    assert "phone" in said[0]


def test_a_clock_that_jumps_over_the_time_and_back_brings_nobody_back(clock: SimpleNamespace) -> None:
    live = Live(peer(A, 2000))
    one, _ = looking(live)
    clock.at = 9e9
    one.look(0)
    clock.at = 0.0
    one.look(0)
    assert not live.registry.peers


def test_a_refused_removal_is_tried_again(clock: SimpleNamespace) -> None:
    live = Live(peer(A, 1))
    one, said = looking(live)
    live.refuses = True
    for at in range(100):
        one.look(at)
    assert live.tries < 10, "each try waits longer"
    assert live.registry.peers
    live.refuses = False
    one.look(100 + expiry.MAX_WAIT)
    assert not live.registry.peers
    assert len(said) == 1


def test_a_time_that_is_set_anew_counts(clock: SimpleNamespace) -> None:
    live = Live(peer(A, 2000))
    one, _ = looking(live)
    one.look(0)
    live.registry = Registry(replace(unconfigured(), peers=(peer(A, 3000),)))
    live.registry.commits = 1
    clock.at = 2500.0
    one.look(0)
    assert live.registry.peers
    clock.at = 3000.0
    one.look(0)
    assert not live.registry.peers


def test_the_operator_is_warned_once_a_day_before(clock: SimpleNamespace) -> None:
    day, end = expiry.WARN_BEFORE, 1_000_000
    live = Live(peer(A, end), peer(B, None))
    told: list[tuple[str, list[bytes]]] = []
    log = cast("Any", SimpleNamespace(info=lambda *_words, **_values: None, warning=lambda *_words, **_values: None))
    one = Expiry(
        cast("Any", live),
        log,
        lambda _lines: None,
        lambda kind, peers: told.append((kind, [p.public_key for p in peers])),
    )
    for clock.at in (end - day - 1, end - day, end - day + 1, end - 1):
        one.look(0)
        live.registry.commits += 1  # other changes ask for no second warning
    assert told == [("expires_soon", [A])]
    clock.at = end
    one.look(0)
    assert told == [("expires_soon", [A]), ("expired", [A])]


def test_a_later_time_is_warned_of_anew(clock: SimpleNamespace) -> None:
    live = Live(peer(A, 1500))
    told: list[str] = []
    log = cast("Any", SimpleNamespace(info=lambda *_words, **_values: None, warning=lambda *_words, **_values: None))
    one = Expiry(cast("Any", live), log, lambda _lines: None, lambda kind, _peers: told.append(kind))
    one.look(0)
    live.registry.peers = {A: peer(A, 9_000_000)}
    live.registry.commits += 1
    one.look(0)
    assert told == ["expires_soon"]
    clock.at = 9_000_000 - 5
    one.look(0)
    assert told == ["expires_soon"] * 2


def test_looking_keeps_no_peer_alive() -> None:
    """A peer that is removed takes its keys with it."""
    live = Live(peer(A, 9_000_000_000))
    one, _ = looking(live)
    peers = live.registry.peers
    before = sys.getrefcount(peers)
    one.look(0)
    assert sys.getrefcount(peers) == before


def test_save_keeps_a_peer_whose_time_is_over() -> None:
    standing = replace(unconfigured(), peers=(peer(A, 1000), peer(B, None)))
    lines = [("public_key", B.hex()), ("errno", "0")]
    now = in_force.with_expired(in_force.over(standing, lines), standing, 2000)
    assert [each.public_key for each in now.peers] == [A, B]
    assert in_force.with_expired(in_force.over(standing, lines), standing, 500).peers == now.peers[1:]
