"""The bell by which spares see that libzmq hides work from them."""

import os
import select
import socket
from pathlib import Path

import pytest

from stagewire.process import handed
from stagewire.process.bell import NAME, Bell, Ringer


def rings(bell: Bell) -> bool:
    return bool(select.select([bell.descriptor], [], [], 0)[0])


def test_it_rings_until_it_is_silenced(tmp_path: Path) -> None:
    bell, ringers = Bell(tmp_path), [Ringer(tmp_path) for _ in range(3)]
    assert not rings(bell)
    bell.silence()
    for ringer in ringers:
        for _ in range(100):  # more than the kernel keeps
            ringer.ring()
    assert rings(bell)
    bell.silence()
    assert not rings(bell)
    ringers[0].ring()
    assert rings(bell)


def test_a_new_holder_has_a_new_bell_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    ringer = Ringer(tmp_path)
    ringer.ring()
    old = Bell(tmp_path)
    new = Bell(tmp_path)
    ringer.ring()
    assert (rings(old), rings(new)) == (False, True)
    (tmp_path / NAME).unlink()
    ringer.ring()


def test_it_shows_what_else_is_readable(tmp_path: Path) -> None:
    bell, (ours, theirs) = Bell(tmp_path), socket.socketpair()
    with ours, theirs:
        bell.watch(ours.fileno())
        assert not rings(bell)
        theirs.send(b"a")
        assert rings(bell)
        bell.silence()
        assert rings(bell)
        ours.recv(1)
        assert not rings(bell)


def test_a_spare_takes_nothing_else_for_it(tmp_path: Path) -> None:
    bell = Bell(tmp_path)
    assert handed.brings_work(handed.WAITS)
    assert handed.is_sound(handed.WAITS, bell.descriptor, tmp_path, os.geteuid())
    memory = os.memfd_create("memory")
    try:
        assert not handed.is_sound(handed.WAITS, memory, tmp_path, os.geteuid())
    finally:
        os.close(memory)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        Bell(tmp_path)
