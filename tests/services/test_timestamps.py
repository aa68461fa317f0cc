"""The greatest timestamps on disk: they survive everything but their own file's loss, and nothing in it can hurt."""

import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from key_service import timestamps
from key_service.timestamps import TimestampStore
from stagewire.proto import tai64n

KEYS = [bytes([number]) * 32 for number in range(1, 200)]
NEVER = bytes(12)
stamps = st.binary(min_size=12, max_size=12)
entries = st.lists(
    st.tuples(st.sampled_from(KEYS[:5]), st.sampled_from(["initiation", "response", "own"]), stamps), max_size=30
)


def stamp(number: int) -> bytes:
    return number.to_bytes(12, "big")


def filled(path: Path, count: int = 3) -> TimestampStore:
    store = TimestampStore(path)
    for number, key in enumerate(KEYS[:count], start=1):
        store.store(key, "initiation", stamp(number))
        store.store(key, "response", stamp(1000 + number))
    return store


def test_an_absent_file_holds_nothing(tmp_path: Path) -> None:
    store = TimestampStore(tmp_path / "timestamps")
    assert store.latest(KEYS[0], "initiation") == NEVER
    assert store.latest(KEYS[0], "response") == NEVER
    assert store.latest(KEYS[0], "own") == NEVER


def test_what_is_stored_is_there_for_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    for _ in range(3):
        filled(path)  # neither flushed nor closed: a killed process does neither
        store = TimestampStore(path)
        for number, key in enumerate(KEYS[:3], start=1):
            assert store.latest(key, "initiation") == stamp(number)
            assert store.latest(key, "response") == stamp(1000 + number)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["timestamps"]


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    program = f"""
import os, signal
from pathlib import Path
from key_service.timestamps import TimestampStore
from stagewire.proto import tai64n
store = TimestampStore(Path({str(path)!r}))
for number in range(1, 500):
    store.store(bytes([number % 100]) * 32, "initiation", number.to_bytes(12, "big"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    store = TimestampStore(path)
    assert [store.latest(bytes([number]) * 32, "initiation") for number in range(100)] == [
        stamp(400 + number) for number in range(100)
    ]


@given(entries)
def test_the_greatest_wins_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[bytes, str, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("stamps") / "timestamps"
    store = TimestampStore(path)
    greatest: dict[tuple[bytes, bool], bytes] = {}
    for key, kind, value in made:
        store.store(key, kind, value)
        place = key, kind == "response"
        greatest[place] = max(greatest.get(place, NEVER), value)
    for reader in (store, TimestampStore(path)):
        for (key, response), value in greatest.items():
            assert reader.latest(key, "response" if response else "initiation") == value


def test_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    before = TimestampStore(path)
    size = path.stat().st_size
    del before
    store = filled(path, len(KEYS))
    assert path.stat().st_size > size
    store.store(KEYS[0], "initiation", stamp(7777))  # into the grown file
    store = TimestampStore(path)
    assert store.latest(KEYS[0], "initiation") == stamp(7777)
    for number, key in enumerate(KEYS[1:], start=2):
        assert store.latest(key, "initiation") == stamp(number)
        assert store.latest(key, "response") == stamp(1000 + number)


def test_it_does_not_grow_by_being_reopened(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    filled(path)
    sizes = set()
    for _ in range(5):
        TimestampStore(path)
        sizes.add(path.stat().st_size)
    assert len(sizes) == 1


def test_the_file_has_no_holes(tmp_path: Path) -> None:
    """Writing to a hole of a mapped file on a full disk would kill the process."""
    path = tmp_path / "timestamps"
    filled(path)
    found = path.stat()
    assert found.st_blocks * 512 >= found.st_size


def survives(path: Path) -> TimestampStore:
    """Opens what is there and stores something more in it."""
    store = TimestampStore(path)
    store.store(KEYS[7], "initiation", b"\xff" * 12)
    assert TimestampStore(path).latest(KEYS[7], "initiation") == b"\xff" * 12
    return store


@given(st.integers(min_value=0))
def test_a_truncated_file_keeps_what_is_whole(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("stamps") / "timestamps"
    filled(path)
    os.truncate(path, length % path.stat().st_size)
    store = survives(path)
    for number, key in enumerate(KEYS[:3], start=1):
        assert store.latest(key, "initiation") in (NEVER, stamp(number))


@given(st.binary(max_size=600))
def test_random_bytes_count_as_absent(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("stamps") / "timestamps"
    for head in (b"", timestamps._MAGIC):
        path.write_bytes(head + content)
        assert survives(path).latest(KEYS[0], "initiation") == NEVER


@given(st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=10))
def test_a_damaged_record_counts_as_absent_and_its_neighbours_stay(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("stamps") / "timestamps"
    filled(path)
    content = bytearray(path.read_bytes())
    hurt = {(where - len(timestamps._MAGIC)) // timestamps._RECORD for where, _ in damage}
    for where, value in damage:
        content[where] = value
    path.write_bytes(content)
    store = survives(path)
    for number, key in enumerate(KEYS[:3], start=1):
        found = store.latest(key, "initiation")
        if number - 1 not in hurt and -1 not in hurt:
            assert found == stamp(number)
        # Never one that nobody stored, and so never one too great, which would lock a peer out.
        assert found in (NEVER, stamp(number))


@pytest.mark.parametrize("torn", range(0, timestamps._COPY, 7))
def test_a_torn_copy_leaves_the_other(tmp_path: Path, torn: int) -> None:
    """The process dies in the middle of writing: the stamp before it must still be there."""
    path = tmp_path / "timestamps"
    store = TimestampStore(path)
    for number in range(1, 4):
        store.store(KEYS[0], "initiation", stamp(number))
        content = bytearray(path.read_bytes())
        place = len(timestamps._MAGIC) + store._turn[KEYS[0]] * timestamps._COPY  # the copy just written
        content[place + torn : place + timestamps._COPY] = bytes(timestamps._COPY - torn)
        (tmp_path / "torn").write_bytes(content)
        assert TimestampStore(tmp_path / "torn").latest(KEYS[0], "initiation") == stamp(number - 1)


def test_another_programs_file_counts_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    for content in (
        b"",
        b"\0" * 8200,
        b"SQLite format 3\0" + bytes(4096),
        random.Random(5).randbytes(8200),
        b"SWTAI64",
    ):
        path.write_bytes(content)
        assert survives(path).latest(KEYS[0], "initiation") == NEVER


def test_a_file_of_another_version_is_kept_and_named(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    other = b"SWTAI65N" + bytes(800)
    path.write_bytes(other)
    store = TimestampStore(path)
    assert store.lost is not None
    assert "another version" in store.lost.why
    assert (tmp_path / "timestamps.damaged").read_bytes() == other
    store.store(KEYS[0], "initiation", stamp(1))
    assert TimestampStore(path).lost is None


def test_a_half_written_successor_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    filled(path)
    path.with_suffix(".new").write_bytes(b"left by a killed process")
    assert TimestampStore(path).latest(KEYS[0], "initiation") == stamp(1)
    assert not path.with_suffix(".new").exists()


def test_no_folder_is_an_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        TimestampStore(tmp_path / "absent" / "timestamps")


def test_a_place_that_cannot_be_replaced_is_an_error_and_the_old_file_serves_on(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    store = filled(path, 64)  # as many as it has room for
    kept = tmp_path / "kept"
    path.rename(kept)
    path.mkdir()
    (path / "in the way").touch()
    for _ in range(2):
        with pytest.raises(OSError, match="directory"):
            store.store(KEYS[100], "initiation", stamp(1))
    store.store(KEYS[0], "initiation", stamp(5000))
    assert TimestampStore(kept).latest(KEYS[0], "initiation") == stamp(5000)
    assert store.latest(KEYS[100], "initiation") == stamp(1)  # in memory at least


@contextmanager
def tiny_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_is_an_error_and_costs_nothing_that_was_stored(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 256 * 1024) as disk:
        path, ballast = disk / "timestamps", disk / "ballast"
        store = filled(path, 64)  # as many as it has room for
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                store.store(KEYS[64], "initiation", stamp(9000))
        assert store.latest(KEYS[64], "initiation") == stamp(9000)
        # Those that have their place already are stored as ever, and nothing kills the process.
        for number, key in enumerate(KEYS[:64], start=1):
            store.store(key, "initiation", stamp(5000 + number))
        store.flush()
        # A start doesn't need room for a second file: the one that is there goes on, in place.
        started = TimestampStore(path)
        assert not path.with_suffix(".new").exists()
        for number, key in enumerate(KEYS[:64], start=1):
            assert started.latest(key, "initiation") == stamp(5000 + number)
            started.store(key, "initiation", stamp(6000 + number))
        with pytest.raises(OSError, match="No space left"):
            started.store(KEYS[64], "initiation", stamp(9000))
        for number, key in enumerate(KEYS[:64], start=1):
            assert TimestampStore(path).latest(key, "initiation") == stamp(6000 + number)

        ballast.unlink()
        again = TimestampStore(path)
        for number, key in enumerate(KEYS[:64], start=1):
            assert again.latest(key, "initiation") == stamp(6000 + number)
        # Room again: what could not be stored is stored with the next stamp.
        store.store(KEYS[64], "initiation", stamp(9001))
        assert TimestampStore(path).latest(KEYS[64], "initiation") == stamp(9001)


def test_what_is_forgotten_stays_forgotten_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    store = filled(path)
    store.forget(KEYS[1])
    store.forget(KEYS[9])  # never known
    for reader in (store, TimestampStore(path)):  # neither flushed nor closed
        assert reader.latest(KEYS[1], "initiation") == reader.latest(KEYS[1], "response") == NEVER
        assert reader.latest(KEYS[0], "initiation") == stamp(1)
        assert reader.latest(KEYS[2], "initiation") == stamp(3)
    reader.store(KEYS[1], "initiation", stamp(1))  # an older stamp than the one that was forgotten
    assert TimestampStore(path).latest(KEYS[1], "initiation") == stamp(1)


def test_room_of_forgotten_peers_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    store = filled(path)
    size = path.stat().st_size
    for number in range(1000):
        key = number.to_bytes(32, "big")
        store.store(key, "initiation", stamp(number))
        store.forget(key)
    assert path.stat().st_size == size
    assert TimestampStore(path).latest(KEYS[2], "response") == stamp(1003)


def test_strangers_are_forgotten_but_for_the_last_ones_and_our_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "timestamps"
    store = filled(path, 10)
    store.store(KEYS[50], "own", stamp(77))
    store = TimestampStore(path)
    assert store.forget_strangers({KEYS[0], KEYS[5]}, 2) == 6
    for reader in (store, TimestampStore(path)):
        known = [number for number in range(10) if reader.latest(KEYS[number], "initiation") != NEVER]
        assert known == [0, 5, 8, 9]
        assert reader.latest(KEYS[50], "own") == stamp(77)
    store = reader  # the file is the last one's that opened it
    assert store.forget_strangers({KEYS[0]}, 0) == 3
    for number in range(100, 180):
        store.store(KEYS[number], "own", stamp(number))
    store = TimestampStore(path)
    assert store.forget_strangers({KEYS[0]}, 0) == 81 - 64
    assert store.latest(KEYS[179], "own") == stamp(179)


@pytest.mark.parametrize("absurd", [b"\xff" * 12, bytes(11) + b"\1", tai64n.encode(2**61 * 10**9)])
def test_a_stamp_beyond_all_times_is_no_floor_of_ours(tmp_path: Path, absurd: bytes) -> None:
    """A peer made it with a key that is ours now; no stamp of ours could follow it."""
    store = filled(tmp_path / "stamps")
    store.store(KEYS[7], "initiation", absurd)
    assert store.latest(KEYS[7], "initiation") == absurd
    assert store.own(KEYS[7]) == NEVER
    ahead = tai64n.encode(4_102_444_800 * 10**9)
    store.store(KEYS[8], "own", ahead)
    assert TimestampStore(tmp_path / "stamps").own(KEYS[8]) == ahead
