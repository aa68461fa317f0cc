"""Which stages stand still, by the pages of their slots."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewire.process.slots import Slot
from status_service.beats import QUIET_AFTER, Beats

T = 1000.0


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Slot]:
    slot = Slot(tmp_path, "conn", 0)
    assert slot.take(T)
    slot.beat(T)
    yield slot
    slot.close()


def at_fault(slot: Slot, now: float) -> list[str]:
    return Beats(slot).at_fault(now)


def test_a_holder_that_beats_sleeps_or_has_announced_a_silence_is_well(conn: Slot) -> None:
    assert at_fault(conn, T + QUIET_AFTER) == []
    assert at_fault(conn, T + QUIET_AFTER + 0.1) == ["conn-service stands still"]
    conn.sleep(T + 4)
    assert at_fault(conn, T + 3.9) == []
    assert at_fault(conn, T + 4.1) == ["conn-service stands still"]
    conn.beat(T + 5)
    conn.expect_silence(2, T + 5)
    assert at_fault(conn, T + 6.9) == []
    assert at_fault(conn, T + 7.1) == ["conn-service stands still"]


def test_a_worker_that_was_ended_is_not_missed_but_conn_service_is(conn: Slot, tmp_path: Path) -> None:
    for stage, number in (("device", 3), ("status", 0)):
        Slot(tmp_path, stage, number).close()
    conn.release()
    assert at_fault(conn, T) == ["no conn-service is at work"]
    conn.path.unlink()
    assert at_fault(conn, T) == [], "the run folder was wiped, which key-service tells"


def test_a_stage_is_looked_for_by_its_slot_alone_even_if_it_never_told_of_itself(conn: Slot, tmp_path: Path) -> None:
    worker = Slot(tmp_path, "device", 63)
    assert worker.take(T)
    worker.beat(T)
    conn.beat(T + 2)
    assert at_fault(conn, T + 2) == ["device-service 63 stands still"]
    worker.close()
    assert at_fault(conn, T + 2) == []
