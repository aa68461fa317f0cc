"""Moments of the boot-time clock, told by a wall clock that is corrected slowly, and by one that jumps."""

from types import SimpleNamespace

import pytest

from stagewire import wall_clock

SECOND = 10**9


def test_a_slow_correction_moves_nothing_and_a_jump_moves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now, wall = 1000.0, 1_800_000_000 * SECOND
    monkeypatch.setattr(wall_clock, "boot_time", lambda: now)
    monkeypatch.setattr(wall_clock, "time", SimpleNamespace(time_ns=lambda: wall))
    monkeypatch.setattr(wall_clock, "_offset_ns", [])
    at = wall_clock.unix_ns(990.0)
    assert at == wall - 10 * SECOND
    wall += SECOND // 2
    assert wall_clock.unix_ns(990.0) == at
    wall += 3600 * SECOND
    assert wall_clock.unix_ns(990.0) == wall - 10 * SECOND
