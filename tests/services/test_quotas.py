"""What a peer has used counts once, whoever restarts, until the month ends; its cap is what the quota leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from key_service.quotas import Quotas
from key_service.registry import Registry, unconfigured
from stagewire.config import PeerConfig, encode_key, uapi
from stagewire.config.model import PeerLimits
from stagewire.control import usage
from stagewire.control.event import Event
from stagewire.control.usage import BadUsage, Usage
from stagewire.limits import MAX_COUNT

A, B = bytes([1]) * 32, bytes([2]) * 32
QUOTA = 1000
NOW = 100.0
NOVEMBER, DECEMBER, FAR = 1_795_000_000.0, 1_797_000_000.0, 4_000_000_000.0


def peer(key: bytes, quota: int = QUOTA) -> PeerConfig:
    return PeerConfig(key, bytes(32), (), None, 0, False, 0, "phone", limits=PeerLimits(quota=quota))


class World:
    """A state folder, a clock, and the key-service of the moment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock, self.now = folder, NOVEMBER, 0.0
        self.registry = Registry(replace(unconfigured(), peers=(peer(A), peer(B, 0))))
        self.said: list[str] = []
        self.told: list[bytes] = []
        self.events: list[Event] = []
        self.quotas = self.begun()

    def begun(self) -> Quotas:
        """Starts a new key-service."""
        quotas = Quotas(self.folder, self.registry, cast("Any", self), lambda: self.clock)
        quotas.tell = self.told.extend
        quotas.happened = self.events.append
        self.quotas = quotas
        return quotas

    def warning(self, text: str, **_facts: Any) -> None:
        self.said.append(text)

    error = warning

    def look(self) -> None:
        self.now += 100
        self.quotas.look(self.now)

    def configure(self, *peers: PeerConfig) -> None:
        self.registry.peers = {each.public_key: each for each in peers}
        self.registry.commits += 1

    @property
    def used(self) -> int:
        return self.quotas._usages[A].in_month(usage.month_of(self.clock))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_cap_is_what_is_left_beyond_what_the_tunnel_has_carried(world: World) -> None:
    assert world.quotas.cap(A, 0) == QUOTA
    assert world.quotas.cap(B, 0) == -1
    world.quotas.on_traffic(A, 0, 7, 300, NOW)
    assert world.quotas.cap(A, 0) == QUOTA, "the worker that carried it has the same cap as before"
    assert world.quotas.cap(A, 1) == QUOTA - 300
    world.quotas.on_traffic(A, 1, 8, 200, NOW)
    assert world.quotas.cap(A, 0) == QUOTA - 200
    world.quotas.on_traffic(A, 0, 7, 5000, NOW)
    assert world.quotas.cap(A, 1) == 200


def test_workers_hear_of_a_cap_once_and_again_when_it_changes(world: World) -> None:
    world.look()
    world.quotas.on_traffic(A, 0, 7, 300, NOW)
    world.look()
    world.look()
    assert world.told == [A]
    world.clock = DECEMBER
    world.look()
    assert world.told == [A, A]
    assert world.quotas.cap(A, 0) == 300 + QUOTA
    world.configure(peer(A, 2 * QUOTA))
    world.look()
    assert world.told == [A, A, A]


def test_a_killed_key_service_counts_nothing_twice_and_nothing_too_little(world: World) -> None:
    world.quotas.on_traffic(A, 0, 7, 300, NOW)
    world.look()
    world.quotas.on_traffic(A, 0, 7, 350, NOW)  # not stored
    world.begun()
    world.quotas.worker_began(0, 7)
    world.quotas.on_traffic(A, 0, 7, 400, NOW)
    assert world.used == 400
    assert world.quotas.cap(A, 0) == QUOTA


def test_what_a_dead_worker_had_not_reported_is_reckoned_from_its_pace(world: World) -> None:
    for now, total in ((NOW, 100), (NOW + 0.2, 300)):  # 1,000 bytes a second
        world.quotas.on_traffic(A, 0, 7, total, now)
    world.quotas.worker_died(0, 7, NOW + 0.3)
    assert world.used == 400
    world.quotas.on_traffic(A, 0, 7, 380, NOW + 0.3)
    assert world.used == 400, "a last report that comes late counts only beyond that"
    world.quotas.on_traffic(A, 0, 7, 410, NOW + 0.3)
    world.quotas.worker_began(0, 8)
    world.quotas.on_traffic(A, 0, 8, 50, NOW + 0.5)
    assert world.used == 460
    world.quotas.worker_died(0, 7, NOW + 0.6)
    assert world.used == 460, "that process has been counted"


def test_a_worker_that_dies_before_its_first_report_goes_on_at_the_pace_of_the_one_before(world: World) -> None:
    for now, total in ((NOW, 100), (NOW + 0.2, 300)):
        world.quotas.on_traffic(A, 0, 7, total, now)
    world.quotas.worker_died(0, 7, NOW + 0.2)
    world.quotas.worker_began(0, 8)
    world.quotas.worker_died(0, 8, NOW + 0.3)
    assert world.used == 400


@pytest.mark.parametrize("last", [0.4, 0.405, 0.5])
def test_reports_that_come_late_make_no_pace(world: World, last: float) -> None:
    for late, total in ((0.0, 0), (0.39, 200), (0.4, 400)):  # 1,000 bytes a second
        world.quotas.on_traffic(A, 0, 7, total, NOW + late)
    world.quotas.on_traffic(A, 0, 7, 500, NOW + last)
    world.quotas.worker_died(0, 7, NOW + 0.6)
    assert 600 <= world.used <= 500 + 1250 * 0.2


def test_a_death_heard_of_late_adds_no_more_than_a_report_had(world: World) -> None:
    for now, total in ((NOW, 100), (NOW + 0.2, 300)):
        world.quotas.on_traffic(A, 0, 7, total, now)
    world.quotas.worker_died(0, 7, NOW + 0.55)
    assert world.used == 500


def test_a_dead_worker_whose_tunnel_rested_had_nothing_to_report(world: World) -> None:
    for now, total in ((NOW, 100), (NOW + 0.2, 300), (NOW + 0.4, 300)):
        world.quotas.on_traffic(A, 0, 7, total, now)
    world.quotas.worker_died(0, 7, NOW + 500)
    assert world.used == 300


def test_a_new_worker_counts_from_zero(world: World) -> None:
    world.quotas.on_traffic(A, 0, 7, 300, NOW)
    world.quotas.worker_began(0, 8)
    assert world.quotas.cap(A, 0) == QUOTA - 300
    world.quotas.on_traffic(A, 0, 8, 310, NOW)
    assert world.used == 610


def test_the_last_report_of_a_worker_counts_once_though_the_next_one_has_begun(world: World) -> None:
    world.quotas.on_traffic(A, 0, 7, 300, NOW)
    world.quotas.worker_began(0, 8)
    world.quotas.on_traffic(A, 0, 7, 320, NOW)
    assert world.used == 320
    world.quotas.on_traffic(A, 0, 8, 10, NOW)
    world.quotas.on_traffic(A, 0, 7, 330, NOW)
    world.quotas.on_traffic(A, 0, 8, 15, NOW)
    assert world.used == 345
    assert world.quotas.cap(A, 0) == QUOTA - 345 + 15


def test_a_tunnel_made_anew_in_the_same_worker_counts_from_zero(world: World) -> None:
    world.quotas.on_traffic(A, 0, 7, 300, NOW)
    world.quotas.tunnel_begins(A, 0)
    assert world.quotas.cap(A, 0) == QUOTA - 300
    world.quotas.on_traffic(A, 0, 7, 310, NOW)
    assert world.used == 610
    world.quotas.peer_gone(A)
    world.quotas.on_traffic(A, 0, 7, 320, NOW)
    assert world.used == 930


def test_what_a_peer_carried_before_it_had_a_quota_does_not_count(world: World) -> None:
    world.configure(peer(A), peer(B))
    world.quotas.carried = lambda _key: {0: (7, 5000)}
    assert world.quotas.cap(B, 0) == 5000 + QUOTA
    world.quotas.on_traffic(B, 0, 7, 5100, NOW)
    assert world.quotas._usages[B].in_month("2026-11") == 100


def test_a_clock_that_jumps_a_month_ahead_and_back_finds_the_month_that_it_left(world: World) -> None:
    world.quotas.on_traffic(A, 0, 7, 900, NOW)
    for jump in (DECEMBER, FAR, 0.0):
        world.clock = jump
        world.quotas.on_traffic(A, 0, 7, 900, NOW)
        world.look()
        world.clock = NOVEMBER
        assert world.used == 900
        assert world.quotas.cap(A, 1) == 100


def test_no_more_than_three_months_are_kept() -> None:
    one = Usage()
    for month in ("a", "b", "a", "c", "d"):
        one.add(month, 1)
    assert one.months == {"a": 2, "c": 1, "d": 1}


def test_the_operator_is_warned_once_of_each(world: World) -> None:
    for total in (100, 799, 800, 900, 1000, 1100):
        world.quotas.on_traffic(A, 0, 7, total, NOW)
        world.look()
    assert [text.partition(";")[0] for text in world.said] == [
        "peer has used 80% of its quota",
        "peer has used up its quota",
    ]
    world.begun()
    world.look()
    assert len(world.said) == 2, "a new key-service repeats no warning"
    assert [(event.kind, event.public_key) for event in world.events] == [
        ("quota_near", encode_key(A)),
        ("quota_reached", encode_key(A)),
    ]


def test_what_a_peer_has_used_outlives_its_absence_within_the_month(world: World) -> None:
    world.quotas.on_traffic(A, 0, 7, 900, NOW)
    world.configure()
    world.quotas.peer_gone(A)
    world.quotas.save(0)
    world.configure(peer(A))
    world.begun()
    assert world.quotas.cap(A, 0) == 100
    world.configure()
    world.clock = DECEMBER
    world.quotas.save(0)
    assert usage.read(world.folder) == {}


@pytest.mark.parametrize("spoilt", ["{", '{"version": 2, "peers": {}}'])
def test_a_spoilt_file_is_kept_and_named_and_quotas_begin_anew(world: World, spoilt: str) -> None:
    """So the version that wrote it can go on with it."""
    (world.folder / usage.NAME).write_text(spoilt)
    world.begun()
    world.quotas.on_traffic(A, 0, 7, 0, NOW)
    world.look()
    assert (world.folder / f"{usage.NAME}.damaged").read_text() == spoilt
    assert "cannot read what peers have used" in world.said[0]
    assert world.quotas.cap(A, 0) == QUOTA


def test_a_full_disk_is_said_and_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("stagewire.files.write", full)
        world.quotas.on_traffic(A, 0, 7, 300, NOW)
        world.look()
    assert "cannot store what peers have used" in world.said[0]
    world.look()
    assert usage.read(world.folder)[A].in_month("2026-11") == 300


def test_a_change_by_wg_keeps_a_peers_limits(world: World) -> None:
    change = uapi.Change(replace_peers=True, peers=(uapi.PeerChange(A, 0, persistent_keepalive=5),))
    world.registry.commit(world.registry.prepare(change))
    assert world.registry.peers[A].limits.quota == QUOTA


AMOUNTS = st.integers(0, 2**62)


USAGES = st.builds(
    Usage,
    st.dictionaries(st.just("2026-11"), AMOUNTS),
    st.dictionaries(st.integers(0, 63), st.tuples(AMOUNTS, AMOUNTS)),
)


@given(st.dictionaries(st.binary(min_size=32, max_size=32), USAGES, max_size=3))
def test_what_is_written_is_read(usages: dict[bytes, Usage]) -> None:
    assert usage.unpack_untrusted(usage.pack(usages)) == usages


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        json.dumps({"version": 2, "peers": {}}).encode(),
        json.dumps({"version": 1, "peers": {"short": {}}}).encode(),
        json.dumps({"version": 1, "peers": {"A" * 43 + "=": {"months": {"x": -1}, "tunnels": {}}}}).encode(),
        json.dumps({"version": 1, "peers": {"A" * 43 + "=": {"months": {}, "tunnels": {"0": [True, 1]}}}}).encode(),
    ],
)
def test_anything_else_is_refused_in_a_line(said: bytes) -> None:
    with pytest.raises(BadUsage):
        usage.unpack_untrusted(said)


def test_a_worker_that_counts_without_bound_makes_no_cap_that_cannot_be_told(world: World) -> None:
    for generation in range(4):
        world.quotas.on_traffic(A, generation % 2, generation, MAX_COUNT, NOW)
        assert 0 <= world.quotas.cap(A, 0) <= MAX_COUNT
    world.look()
    assert world.begun().cap(A, 0) <= MAX_COUNT
    assert world.used == MAX_COUNT
