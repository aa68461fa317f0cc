"""Who changed what, a line for each change: on the disk before the change holds, and without a secret."""

import json
import os
from pathlib import Path

import pytest

from stagewire import audit
from stagewire.audit import Asker, Audit

ANNA = Asker(0, 4711, "anna")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_names_who_when_and_what(tmp_path: Path) -> None:
    one = Audit(tmp_path, "wg0")
    one.write(ANNA, "peer add", ["+ peer phone", "~ MTU 1420 -> 1380"])
    one.write(ANNA, "reload", ["+ PostUp echo SECRET", "- PreDown echo SECRET"])
    first, second = lines(tmp_path / "audit")
    assert (first["uid"], first["pid"], first["by"], first["what"]) == (0, 4711, "anna", "peer add")
    assert first["changes"] == ["+ peer phone", "~ MTU 1420 -> 1380"]
    assert str(first["when"]).endswith("Z")
    assert second["changes"] == ["+ PostUp", "- PreDown"]
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o600


def test_what_was_not_made_leaves_no_line(tmp_path: Path) -> None:
    one = Audit(tmp_path, "wg0")
    one.write(ANNA, "first", [])
    one.write(ANNA, "second", [])
    one.take_back()
    assert [line["what"] for line in lines(tmp_path / "audit")] == ["first"]


def test_a_full_disk_refuses_the_change_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Audit(tmp_path, "wg0")
    one.write(ANNA, "first", [])

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        one.write(ANNA, "second", [])
    assert [line["what"] for line in lines(tmp_path / "audit")] == ["first"]


def test_a_full_file_gives_way_to_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_SIZE", 500)
    one = Audit(tmp_path, "wg0")
    for number in range(20):
        one.write(ANNA, f"{number}", [])
    kept = [*lines(tmp_path / "audit.1"), *lines(tmp_path / "audit")]
    assert [line["what"] for line in kept] == [f"{number}" for number in range(20 - len(kept), 20)]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["audit", "audit.1"]
