"""What key-service keeps of the file that it accepted: whole or not at all, and for its eyes alone."""

import os
from pathlib import Path

import pytest

from stagewire.config import accepted
from stagewire.config.accepted import Accepted


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "key").mkdir()
    return tmp_path


def kept(run: Path, text: str) -> Accepted:
    made = Accepted.anew(text)
    made.prepare(run, os.geteuid(), os.getegid()).replace(accepted.path(run))
    return made


@pytest.mark.parametrize("text", ["", "[Interface]\n", "\n\n", "caf\udce9 \u00e9\r\n", "x" * 200_000])
def test_what_is_kept_is_read(run: Path, text: str) -> None:
    assert accepted.read(run) is None
    made = kept(run, text)
    assert accepted.read(run) == made == accepted.unpack(made.packed())
    assert accepted.path(run).stat().st_mode & 0o777 == 0o600
    assert text not in repr(made) or not text.strip()


def test_until_it_is_in_its_place_the_other_counts(run: Path) -> None:
    first = kept(run, "first")
    Accepted.anew("second").prepare(run, os.geteuid(), os.getegid())
    assert accepted.read(run) == first


def test_a_reload_begins_another_journal_and_a_start_finds_its_own() -> None:
    assert Accepted.first("a") == Accepted.first("a")
    assert Accepted.first("a").generation != Accepted.first("b").generation
    assert Accepted.anew("a").generation != Accepted.anew("a").generation


@pytest.mark.parametrize(
    "data", [b"", b"x", b"short\ntext", b"0123456789abcdef", b"../../../../etc/\ntext", b"\xff" * 16 + b"\n"]
)
def test_what_was_not_kept_by_us_is_nothing(run: Path, data: bytes) -> None:
    accepted.path(run).write_bytes(data)
    assert accepted.read(run) is None


def test_a_link_is_not_followed(run: Path) -> None:
    kept(run, "first")
    accepted.path(run).rename(run / "elsewhere")
    accepted.path(run).symlink_to(run / "elsewhere")
    assert accepted.read(run) is None
