"""The ledger: what is read back is what was done and not undone, whatever became of the file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.services.disks import full_disk, small_disk

from host_service import ledger
from host_service.ledger import (
    AddressAdded,
    GuardAdded,
    Ledger,
    LinkMade,
    MtuSet,
    NftTableMade,
    Numbered,
    Operation,
    RuleAdded,
    Settled,
    SysctlSet,
    Unwritten,
)
from host_service.rules import Rule

EVERY: list[Operation] = [
    LinkMade("wg0", 4711),
    NftTableMade("stagewire-wg0"),
    SysctlSet("/proc/sys/net/ipv4/conf/all/src_valid_mark", "0", "1"),
    Numbered(51820, (32762, 0)),
    RuleAdded(Rule(4, 32764, 1, 51820, 51820, inverted=True)),
    GuardAdded("fd66::/64", 254, 0xFFFFFFFF - 4),
    MtuSet(1420),
    AddressAdded("10.9.0.1/24"),
    Settled(),
]


Open = Callable[[Path], Ledger]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ledger.NAME


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens ledgers, and closes them in the end."""
    books: list[Ledger] = []

    def open_one(path: Path) -> Ledger:
        books.append(Ledger(path))
        return books[-1]

    yield open_one
    for book in books:
        book.close()


def test_what_was_done_is_read_back_in_order_and_what_was_undone_is_not(path: Path, opened: Open) -> None:
    book = opened(path)
    for operation in EVERY:
        book.do(operation)
        book.do(operation)
    assert ledger.read(path) == EVERY == book.operations()
    assert len(path.read_text().splitlines()) == len(EVERY)
    book.undo(EVERY[0])
    book.undo(EVERY[0])
    assert EVERY[0] not in book
    assert ledger.read(path) == EVERY[1:] == opened(path).operations()
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_file_nothing_was_done(path: Path) -> None:
    assert ledger.read(path) == []


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "1", "null", '{"what": "do"}', '{"what": "do", "kind": "Nonsense"}', '{"what":"do","kind":"MtuSet"}',
     '{"what": "do", "kind": "GuardAdded", "prefix": "x", "table": 1, "metric": 2}',
     '{"what": "do", "kind": "SysctlSet", "path": "/proc/sys/kernel/core_pattern", "before": "|/tmp/x", "value": "core"}',
     '{"what": "do", "kind": "SysctlSet", "path": "/proc/sys/net/ipv4/ip_forward", "before": "0", "value": "1"}',
     '{"what": "do", "kind": "GuardAdded", "prefix": "10.1.0.0/24", "table": 1180591620717411303424, "metric": 1}',
     '{"what": "do", "kind": "GuardAdded", "prefix": "10.1.0.0/24", "table": 1, "metric": -1}',
     '{"what": "do", "kind": "Numbered", "number": 4294967296, "first": [1, 2]}',
     '{"what": "do", "kind": "Numbered", "number": 1, "first": [1180591620717411303424, 2]}',
     '{"what": "do", "kind": "Numbered", "number": 1, "first": [1, -5]}',
     '{"what": "do", "kind": "LinkMade", "name": "wg0", "owner": -1}',
     '{"what": "do", "kind": "NftTableMade", "name": "x", "handle": 18446744073709551616}',
     '{"what": "do", "kind": "RuleAdded", "rule": {"version": 5, "priority": 1, "action": 1}}',
     '{"what": "do", "kind": "RuleAdded", "rule": {"version": 4, "priority": 1, "action": 256}}',
     '{"what": "do", "kind": "RuleAdded", "rule": {"version": 4, "priority": 1, "action": 1, "mark": -1}}',
     '{"what": "do", "kind": "RuleAdded", "rule": {"version": 4, "priority": 1, "action": 1, "suppress": -2}}',
     '{"what": "do", "kind": "RuleAdded", "rule": {"version": 4}}', '{"what": "do", "kind": "Numbered", "first": 3}'],
)  # fmt: skip
def test_lines_that_are_none_are_left_out(path: Path, opened: Open, line: str) -> None:
    book = opened(path)
    book.do(EVERY[0])
    with path.open("a") as file:
        file.write(f"{line}\n")
    book.do(EVERY[1])
    assert ledger.read(path) == EVERY[:2]


def test_a_line_that_a_kill_has_cut_is_left_out(path: Path, opened: Open) -> None:
    book = opened(path)
    for operation in EVERY:
        book.do(operation)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        found = ledger.read(path)
        assert found == EVERY[: len(found)]


def test_it_does_not_grow_without_end(path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "OVERGROWN", 20)
    book = opened(path)
    book.do(EVERY[0])
    for _ in range(50):
        book.do(EVERY[5])
        book.undo(EVERY[5])
    assert len(path.read_text().splitlines()) <= 22
    assert ledger.read(path) == EVERY[:1]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_on_a_full_disk_the_file_of_an_earlier_life_is_gone_on_with(disk: Path, opened: Open) -> None:
    path = disk / ledger.NAME
    book = opened(path)
    for operation in EVERY:
        book.do(operation)
    book.undo(EVERY[0])
    with full_disk(disk) as ballast:
        after, another = opened(path), opened(disk / "another")
        assert after.operations() == EVERY[1:]
        with pytest.raises(Unwritten, match="another cannot be written: No space left on device"):
            another.do(EVERY[0])
        assert another.operations() == []
        # The last page of its file has room for some lines.
        noted = [GuardAdded(f"10.{number}.0.0/16", 254, 1) for number in range(100)]

        def note_all() -> None:
            for operation in noted:
                after.do(operation)

        with pytest.raises(Unwritten, match="ledger cannot be written"):
            note_all()
        last = after.operations()[-1]
        with pytest.raises(Unwritten):
            after.undo(EVERY[1])
        assert EVERY[1] in after
        ballast.unlink()
    for operation in noted:
        after.do(operation)
    after.undo(EVERY[1])
    another.do(EVERY[0])
    assert last in noted
    assert after.operations() == ledger.read(path) == [*EVERY[2:], *noted]
    assert ledger.read(disk / "another") == [EVERY[0]]
    assert sorted(each.name for each in disk.iterdir()) == ["another", "ledger"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_one_that_cannot_be_shortened_goes_on(disk: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "OVERGROWN", 5)
    book = opened(disk / ledger.NAME)
    book.do(EVERY[0])
    with full_disk(disk):
        for _ in range(10):
            book.do(EVERY[1])
            book.undo(EVERY[1])
        assert ledger.read(disk / ledger.NAME) == [EVERY[0]]
