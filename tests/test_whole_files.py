"""A file is there as a whole or not at all: after a kill, on a full disk, on a file system without unnamed files."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.services.disks import small_disk

from stagewire import whole_files
from stagewire.whole_files import WholeFile

KILLED = """
import os, signal, sys
from pathlib import Path
from stagewire.whole_files import WholeFile
file = WholeFile(Path(sys.argv[1]))
file.write(b"x" * 100_000)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["unnamed", "named"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "named":
        monkeypatch.setattr(whole_files, "_DESCRIPTORS", tmp_path / "missing")
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_it_appears_for_root_alone_and_never_over_another(folder: Path) -> None:
    with WholeFile(folder / "a") as file:
        file.write(b"whole")
        assert "a" not in left(folder)
        file.appear()
    assert (folder / "a").read_bytes() == b"whole"
    assert (folder / "a").stat().st_mode & 0o777 == 0o600
    with WholeFile(folder / "a") as file:
        file.write(b"other")
        with pytest.raises(FileExistsError):
            file.appear()
    assert (folder / "a").read_bytes() == b"whole"
    assert left(folder) == ["a"]


def test_it_takes_the_place_of_another(folder: Path) -> None:
    (folder / "a").write_bytes(b"old")
    with WholeFile(folder / "a") as file:
        file.write(b"new")
        assert (folder / "a").read_bytes() == b"old"
        file.replace()
    assert (folder / "a").read_bytes() == b"new"
    assert left(folder) == ["a"]


def test_without_a_name_nothing_is_left(folder: Path) -> None:
    with WholeFile(folder / "a") as file:
        file.write(b"half")
    assert left(folder) == []


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert left(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk needs root")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with WholeFile(disk / "a") as file, pytest.raises(OSError, match="No space left") as full:
            file.write(bytes(1 << 20))
        assert full.value.errno == errno.ENOSPC
        assert left(disk) == []
        assert os.statvfs(disk).f_bfree > 0
