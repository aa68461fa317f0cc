"""The wall clock as it stood at `up`, across the lives of key-service."""

from pathlib import Path

import pytest
from tests.services.test_odd_stamps import Lines

from key_service import clock
from key_service.clock import Clock
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.tai64n import Anchor

SECOND = 10**9
TODAY, YEAR = 1_800_000_000 * SECOND, 365 * 86_400 * SECOND


def handshaker(known: Clock) -> Handshaker:
    return Handshaker(None, bytes(12), bytes, float, known.anchor)


def test_the_first_life_decides_for_all_of_this_up(tmp_path: Path) -> None:
    log = Lines()
    first = Clock(tmp_path, log)
    assert first.anchor is None
    first.look(handshaker(first), 50.0, TODAY)
    second = Clock(tmp_path, log)
    assert second.anchor == Anchor(TODAY, 50.0)
    ours = handshaker(second)
    for now in (60.0, 61.0):
        second.look(ours, now, TODAY + 10 * YEAR)
    assert [line["event"] for line in log.said] == ["the wall clock jumped"]
    assert log.said[0]["days"] == 3650.0
    assert "stagewire down" in str(log.said[0]["mend"])
    second.look(ours, 62.0, TODAY + 12 * SECOND)
    second.look(ours, 63.0, TODAY + 10 * YEAR)
    assert len(log.said) == 2
    (tmp_path / clock.NAME).unlink()  # `down`, then `up`
    assert Clock(tmp_path, log).anchor is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "another-boot 1 1.0",
        "rubbish",
        "\xff\xfe",
        "{boot} x y",
        "{boot} 1 nan",
        "{boot} 1 inf",
        "{boot} 1 -1",
        "{boot} 1 1e300",
        "{boot} -1 1",
        "{boot} 9223372036854775807000000000 1",
    ],
)
def test_a_file_of_another_boot_or_of_nobody_is_no_anchor(tmp_path: Path, text: str) -> None:
    path = tmp_path / clock.NAME
    path.write_text(text.format(boot=clock._boot()), "latin-1")
    known = Clock(tmp_path, Lines())
    assert known.anchor is None
    known.look(handshaker(known), 1.0, TODAY)
    assert Clock(tmp_path, Lines()).anchor == Anchor(TODAY, 1.0)


def test_a_full_disk_costs_only_the_memory(tmp_path: Path) -> None:
    known = Clock(tmp_path / "missing", Lines())
    ours = handshaker(known)
    known.look(ours, 1.0, TODAY)
    assert ours.look_at_clock(2.0, TODAY + YEAR)[0] > 0


def test_a_clock_that_was_not_set_is_taken_up_once_it_is(tmp_path: Path) -> None:
    log = Lines()
    known = Clock(tmp_path, log)
    ours = handshaker(known)
    known.look(ours, 1.0, 1 * SECOND)
    known.look(ours, 30.0, TODAY)
    assert log.said == []
    assert Clock(tmp_path, log).anchor == Anchor(TODAY, 30.0)
