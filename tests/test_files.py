"""Whatever lies under a name of ours in a stage's folder: nothing waits, nothing is followed, nothing else is touched."""

import os
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from stagewire import config, files

MOST = 100


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def folder(path: Path) -> None:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").touch()


def unix_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def another_name(path: Path) -> None:
    kept = path.with_name("kept")
    kept.write_text("secret")
    path.hardlink_to(kept)


def anothers(path: Path) -> None:
    path.touch()
    os.chown(path, 12345, 12345)


STRANGE = [fifo, link, folder, unix_socket, huge, another_name, anothers]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")


@as_root
@pytest.mark.parametrize("make", STRANGE)
def test_a_strange_thing_is_refused_at_once_with_its_name_and_can_be_cleared(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "name"
    make(path)
    with pytest.raises(files.Suspicious, match=rf"^{path} .*; remove it$"):
        files.read(path, MOST)
    files.clear(path)
    assert not os.path.lexists(path)
    assert Path("/etc/passwd").exists()


def test_a_file_of_ours_is_read_and_a_missing_one_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "name"
    with pytest.raises(FileNotFoundError):
        files.read(path, MOST)
    path.write_bytes(b"x" * MOST)
    assert files.read(path, MOST) == b"x" * MOST


def test_only_what_is_on_the_disk_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of holes, planted in the place of ours, would fill the disk and keep a successor busy for ever."""
    fresh, old, written = tmp_path / "fresh", tmp_path / "old", list[int]()

    def pwrite(_descriptor: int, data: bytes, _at: int) -> None:
        written.append(len(data))
        assert sum(written) <= 1 << 20

    fresh.write_text("new")
    old.write_text("secret")
    os.truncate(old, 1 << 40)
    monkeypatch.setattr(os, "pwrite", pwrite)
    files.put_over(fresh, old)
    assert sum(written) >= len("secret")
    assert old.read_text() == "new"


@as_root
def test_a_small_file_takes_little_memory_however_large_it_might_be(tmp_path: Path) -> None:
    """key-service overwrites whatever memory it gets, and handshakes wait meanwhile."""
    path = tmp_path / "wg0.conf"
    path.write_text("[Interface]\n")
    path.chmod(0o600)
    tracemalloc.start()
    try:
        files.read(path, 1 << 26)
        config.load_text(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 18


def test_a_folders_owner_may_have_made_the_file(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    path = tmp_path / "name"
    anothers(path)
    assert files.read(path, MOST) == b""


@as_root
@pytest.mark.parametrize("make", [link, another_name])
def test_only_a_file_with_one_name_is_given_away(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "name"
    make(path)
    there = path.resolve() if path.is_symlink() else tmp_path / "kept"
    before = there.stat()
    removed = files.give(path, 12345, 12345)
    assert removed is not None
    assert removed.why == ("has another name elsewhere" if make is another_name else "is no regular file")
    assert (there.stat().st_uid, there.stat().st_mode) == (before.st_uid, before.st_mode)
    assert not os.path.lexists(path)
    path.touch()
    assert files.give(path, 12345, 12345) is None
    assert path.stat().st_uid == 12345


def test_a_folder_behind_a_link_is_not_made_ours(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    (tmp_path / "name").symlink_to("theirs")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        files.make_folder(tmp_path / "name", 0o777)
    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o700


def test_a_folder_goes_however_deep_it_is_and_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    top = tmp_path / "name"
    top.mkdir()
    (top / "link").symlink_to(tmp_path / "kept")
    inner = os.open(top, os.O_RDONLY)
    for _ in range(3000):  # deeper than a path can be long, and than Python may call
        os.mkdir("d", dir_fd=inner)
        inner, outer = os.open("d", os.O_RDONLY, dir_fd=inner), inner
        os.close(outer)
    os.close(inner)
    files.wipe(top)
    assert not top.exists()
    assert (tmp_path / "kept" / "file").exists()


def test_a_file_takes_its_name_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "fresh").write_text("new")
    folder(tmp_path / "name")
    files.put(tmp_path / "fresh", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "new"
