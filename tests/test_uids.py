"""Blocks of uids: each interface's own, the same in each life, and none that another account or process has."""

import fcntl
import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewire.environment import Environment, EnvironmentMistake
from stagewire.linux import uids
from stagewire.linux.uids import UidsRefused
from stagewire.stages import STAGES, UIDS

FIRST, LAST = 3_000_000_000, 3_000_000_000 + 4 * UIDS - 1
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives uids")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    kept = uids._block, uids._ranges, uids._own_stages
    yield
    uids._block, uids._ranges, uids._own_stages = kept


def interface(run: Path, name: str = "wg0", **variables: str) -> Environment:
    return Environment.read({"STAGEWIRE_RUN_DIR": str(run), "STAGEWIRE_UIDS": f"{FIRST}-{LAST}", **variables}, name)


@needs_root
def test_an_interface_keeps_its_block_until_it_goes_down(tmp_path: Path) -> None:
    here = interface(tmp_path)
    uids.claim(here, afresh=True)
    first = uids.group()
    assert first in range(FIRST, LAST, UIDS)
    uids.use(here, None)
    uids.look(here)
    assert uids.group() == first
    uids.claim(here)
    assert (uids.group(), uids.uid_of("device", 3)) == (first, first + 64 + 3)
    uids.give_up(here)
    uids.claim(here, afresh=True)
    assert uids.group() == first


@needs_root
def test_interfaces_that_are_up_share_no_uid_and_one_too_many_is_refused_in_one_line(tmp_path: Path) -> None:
    taken = set()
    for name in ("a", "b", "c", "d"):
        uids.claim(interface(tmp_path, name), afresh=True)
        (tmp_path / name).mkdir()
        taken.add(uids.group())
    assert taken == {*range(FIRST, LAST, UIDS)}
    with pytest.raises(UidsRefused) as refused:
        uids.claim(interface(tmp_path, "e"), afresh=True)
    assert "STAGEWIRE_UIDS" in str(refused.value)
    assert "\n" not in str(refused.value)
    (tmp_path / "b").rmdir()  # its owner was killed, and left only its note
    uids.claim(interface(tmp_path, "e"), afresh=True)


CLAIM = """
import sys
from pathlib import Path
from stagewire.environment import Environment
from stagewire.linux import uids
uids.claim(Environment.read({"STAGEWIRE_RUN_DIR": sys.argv[1]}, sys.argv[2]), afresh=True)
"""


@needs_root
def test_a_folder_that_another_user_has_locked_stops_no_start(tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        subprocess.run([sys.executable, "-c", CLAIM, tmp_path, "a"], check=True, timeout=20)
    finally:
        os.close(other)
    assert {each.name for each in tmp_path.iterdir()} == {"a.uids"}


@needs_root
def test_starts_at_once_choose_a_block_each_and_leave_no_lock(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        (tmp_path / name).mkdir()
    started = [subprocess.Popen([sys.executable, "-c", CLAIM, tmp_path, name]) for name in names]
    assert [each.wait(20) for each in started] == [0] * len(names)
    assert {each.name for each in tmp_path.iterdir() if each.is_file()} == {f"{name}.uids" for name in names}
    assert len({(tmp_path / f"{name}.uids").read_text() for name in names}) == len(names)


@needs_root
def test_a_block_with_an_account_or_a_process_of_another_program_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pwd.getpwuid(0)
    account = pwd.struct_passwd([*root[:2], FIRST + 5, *root[3:]])
    monkeypatch.setattr(pwd, "getpwall", lambda: [account])
    group = grp.struct_group(["other", "x", FIRST + UIDS, []])
    monkeypatch.setattr(grp, "getgrall", lambda: [group])
    uid = FIRST + 2 * UIDS + 100
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], user=uid, stdin=subprocess.PIPE, env={"PATH": os.defpath}
    ) as other:
        for name in ("a", "b", "c", "d", "e"):
            uids.claim(interface(tmp_path, name), afresh=True)
            assert uids.group() == FIRST + 3 * UIDS
        assert other.stdin is not None
        other.stdin.close()


@needs_root
def test_a_block_outlives_a_wipe_of_all_folders_by_the_environment(tmp_path: Path) -> None:
    here = interface(tmp_path)
    uids.claim(here, afresh=True)
    told, first = uids.variables(here), uids.group()
    assert told["STAGEWIRE_UIDS"] == f"{FIRST}-{LAST}"
    uids.give_up(here)
    other = interface(tmp_path, **{**told, "STAGEWIRE_UID_BLOCK": str(first + UIDS)})
    uids.claim(other)
    assert uids.group() == first + UIDS
    uids.look(here)
    assert uids.group() == first + UIDS


@needs_root
def test_an_interface_of_an_earlier_version_keeps_its_numbers_until_it_is_started_anew(tmp_path: Path) -> None:
    here = interface(tmp_path)
    here.run.mkdir()
    former = uids._former_group()
    os.chown(here.run, 0, former)
    uids.claim(here)
    assert uids.group() == former
    assert len({uids.uid_of(stage) for stage in STAGES}) == len(STAGES)
    assert uids.uid_of("device", 0) == uids.uid_of("device", 5)
    assert uids.are_shared()
    assert "earlier version" in uids.why_shared()
    uids.claim(here)
    assert uids.group() == former
    uids.claim(here, afresh=True)
    assert uids.group() >= FIRST
    assert not uids.are_shared()


@needs_root
def test_a_stage_is_known_by_its_uid_of_any_interface_or_version(tmp_path: Path) -> None:
    uids.claim(interface(tmp_path), afresh=True)
    for stage in STAGES:
        for uid in (uids.uid_of(stage), uids._former_uid(stage), FIRST + uids.uid_of(stage) - uids.group()):
            assert [each for each in STAGES if uids.may_be(each, uid)] == [stage]
    assert not uids.is_any_stages(0)
    assert not uids.is_any_stages(LAST + 2)
    assert not uids.is_any_stages(65534)


@pytest.mark.parametrize("text", ["5", "0-1000", "1000-1126", "a-b", "10-", "-10", "4294967000-4294967294", "9-1"])
def test_a_range_that_holds_no_block_is_refused(text: str) -> None:
    with pytest.raises(EnvironmentMistake, match="STAGEWIRE_UIDS"):
        Environment.read({"STAGEWIRE_UIDS": text})


@pytest.mark.parametrize("text", ["tap", "tap:", "Tap:plain-out", "tun:plain-out", "a:x,a:y", ":plain-out"])
def test_a_stage_of_ones_own_needs_a_name_and_a_pipe(text: str) -> None:
    with pytest.raises(EnvironmentMistake, match="STAGEWIRE_STAGES"):
        Environment.read({"STAGEWIRE_STAGES": text})
    assert Environment.read({"STAGEWIRE_STAGES": "tap:plain-out, b:plain-in"}).own_stages == (
        ("tap", "plain-out"),
        ("b", "plain-in"),
    )
