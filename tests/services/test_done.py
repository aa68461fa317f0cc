"""The list of what `up` did: it survives a crash at any moment, and nobody but root has a word in it."""

import json
from pathlib import Path

import pytest

from stagewire_cli.done import DNS, FOLDER, POST_UP, PRE_UP, Done, DoneList, Plan

PLAN = Plan(("echo down",), ("echo gone", "echo %i"), True)


@pytest.fixture
def done(tmp_path: Path) -> DoneList:
    started = DoneList(tmp_path)
    started.begin(PLAN)
    return started


def path(folder: Path) -> Path:
    return folder / FOLDER / "done"


def test_what_was_noted_is_read_and_what_is_undone_is_not(done: DoneList, tmp_path: Path) -> None:
    assert done.read() == Done(PLAN)
    done.note(PRE_UP)
    done.note(DNS, "tun.wg0")
    done.note(POST_UP)
    assert DoneList(tmp_path).read() == Done(PLAN, {PRE_UP, DNS, POST_UP}, "tun.wg0")
    done.undone(DNS)
    done.undone(POST_UP)
    assert DoneList(tmp_path).read() == Done(PLAN, {PRE_UP})


def test_why_dns_is_not_set_counts_until_it_is_set_anew(done: DoneList) -> None:
    done.note_dns_failure("resolvconf says: no")
    assert done.read() == Done(PLAN, dns_failure="resolvconf says: no")
    done.note_dns_failure("")
    assert done.read() == Done(PLAN)


def test_a_later_plan_counts_and_the_deeds_stay(done: DoneList) -> None:
    done.note(PRE_UP)
    done.remember(Plan())
    assert done.read() == Done(Plan(), {PRE_UP})


def test_another_life_begins_with_nothing(done: DoneList) -> None:
    done.note(PRE_UP)
    done.begin(Plan())
    assert done.read() == Done(Plan())


def test_a_list_that_a_crash_cut_short_counts_as_far_as_it_goes(done: DoneList, tmp_path: Path) -> None:
    done.note(PRE_UP)
    whole = path(tmp_path).read_bytes()
    done.note(DNS, "wg0")
    longer = path(tmp_path).read_bytes()
    for end in range(len(whole), len(longer) - 1):
        path(tmp_path).write_bytes(longer[:end])
        assert done.read() == Done(PLAN, {PRE_UP})
    for end in range(len(json.dumps({"plan": ""}))):
        path(tmp_path).write_bytes(longer[:end])
        assert done.read() is None


def test_no_list_is_none(tmp_path: Path) -> None:
    assert DoneList(tmp_path / "nowhere").read() is None
    assert DoneList(tmp_path).read() is None


def test_a_list_that_others_could_have_written_is_none(done: DoneList, tmp_path: Path) -> None:
    assert path(tmp_path).stat().st_mode & 0o777 == 0o600
    assert path(tmp_path).parent.stat().st_mode & 0o777 == 0o700
    for changed, mode in ((path(tmp_path), 0o620), (path(tmp_path).parent, 0o770)):
        before = changed.stat().st_mode
        changed.chmod(mode)
        assert done.read() is None
        changed.chmod(before)
    assert done.read() == Done(PLAN)
    path(tmp_path).rename(tmp_path / "elsewhere")
    path(tmp_path).symlink_to(tmp_path / "elsewhere")
    assert done.read() is None


def test_a_copy_makes_it_again_where_it_is_gone_and_nowhere_else(done: DoneList, tmp_path: Path) -> None:
    done.note(DNS, "wg0")
    copy = done.copy()
    done.undone(DNS)
    done.restore(copy)
    assert done.read() == Done(PLAN), "the one that is there counts"
    path(tmp_path).unlink()
    path(tmp_path).parent.rmdir()
    assert done.copy() == b""
    done.restore(b"")
    assert not path(tmp_path).parent.exists()
    done.restore(copy)
    assert done.read() == Done(PLAN, {DNS}, "wg0")
