"""The journal of live changes: what is read is what was written, whole records only, whatever a crash left."""

import errno
import os
from collections.abc import Iterator
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from key_service import journal
from key_service.journal import Journal, operation, records
from stagewire.config.uapi import Change, OperationReader, PeerChange, PrefixChange
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.noise import clamp

A = sha256(b"a").digest()
KEYS = st.binary(min_size=32, max_size=32)
PREFIXES = st.builds(
    PrefixChange,
    st.sampled_from([ip_network(each) for each in ("10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "::/0", "fd00:1::/48")]),
    st.booleans(),
)
ENDPOINTS = st.sampled_from(
    [Endpoint(bytes([192, 0, 2, 1]), 99), Endpoint(bytes.fromhex("fe80" + "00" * 13 + "01"), 5, 3)]
)
PEERS = st.one_of(
    st.builds(PeerChange, KEYS, st.just(0), remove=st.just(True)),
    st.builds(
        PeerChange,
        KEYS,
        st.just(0),
        update_only=st.booleans(),
        preshared_key=st.none() | KEYS,
        endpoint=st.none() | ENDPOINTS,
        persistent_keepalive=st.none() | st.integers(0, 65535),
        replace_allowed_ips=st.booleans(),
        allowed_ips=st.lists(PREFIXES, max_size=4).map(tuple),
    ),
)
CHANGES = st.builds(
    Change,
    private_key=st.none() | st.just(bytes(32)) | KEYS.map(clamp),
    listen_port=st.none() | st.integers(0, 65535),
    fwmark=st.none() | st.integers(0, 2**32 - 1),
    replace_peers=st.booleans(),
    peers=st.lists(PEERS, max_size=4).map(tuple),
)


def without_lines(change: Change) -> tuple[object, ...]:
    """All of it but where in its text a section stood."""
    peers = [
        (
            *(peer.public_key, peer.remove, peer.update_only, peer.preshared_key, peer.endpoint),
            *(peer.persistent_keepalive, peer.replace_allowed_ips, peer.allowed_ips),
        )
        for peer in change.peers
    ]
    return change.private_key, change.listen_port, change.fwmark, change.replace_peers, peers


@given(CHANGES)
def test_a_change_reads_back_as_it_was(change: Change) -> None:
    [found] = OperationReader().feed_untrusted(b"".join(operation(change)))
    assert isinstance(found, Change)
    assert without_lines(found) == without_lines(change)


def write(book: Journal, *pieces: bytes) -> None:
    for _ in book.append(iter(pieces)):
        pass


def tidy(book: Journal, *pieces: bytes) -> None:
    for _ in book.rewrite(iter(pieces)):
        pass


def overgrown(book: Journal) -> bool:
    return book.overgrown


def test_records_come_back_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "live"
    assert records(path) == []
    book = Journal(path)
    assert not path.exists()
    write(book, b"one")
    write(book, b"t", b"w", b"o")
    write(book)
    assert records(path) == [b"one", b"two", b""]
    write(Journal(path), b"three")
    assert records(path) == [b"one", b"two", b"", b"three"]


def test_whatever_a_crash_left_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "live"
    book = Journal(path)
    write(book, b"one")
    whole = path.stat().st_size
    write(book, b"t", b"w", b"o")
    data = path.read_bytes()
    for end in range(whole, len(data)):
        for torn in (data[:end], data[:end] + bytes(len(data) - end), data[:end] + b"\xff" * 50):
            path.write_bytes(torn)
            assert records(path) == [b"one"]
        write(Journal(path), b"after")
        assert records(path) == [b"one", b"after"]


def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "live"
    path.touch()
    path.chmod(0o644)
    before = os.umask(0)
    try:
        book = Journal(path)
        write(book, b"secret")
        assert path.stat().st_mode & 0o777 == 0o600
        fresh = path.with_suffix(".new")
        fresh.touch()
        fresh.chmod(0o666)
        steps = book.rewrite(iter((b"a", b"b")))
        next(steps)
        assert fresh.stat().st_mode & 0o777 == 0o600
        assert list(steps) == [None]
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not fresh.exists()


def test_a_rewrite_keeps_what_was_appended_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "live"
    book = Journal(path)
    for number in range(journal.MAX_RECORDS + 1):
        assert overgrown(book) is False
        write(book, b"%d" % number)
    assert overgrown(book) is True
    steps = book.rewrite(iter((b"all ", b"of ", b"them")))
    next(steps)
    write(book, b"more")
    assert len(records(path)) == journal.MAX_RECORDS + 2, "the old ones count until the end"
    next(steps)
    write(book, b"and", b" more")
    for _ in steps:
        pass
    assert records(path) == [b"all of them", b"more", b"and more"]
    assert not overgrown(book)
    write(book, b"last")
    assert records(path)[-1] == b"last"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be written doesn't count, nor what follows upon it, until all is written anew."""
    path, room = tmp_path / "live", [1000]
    real = os.write

    def on_a_full_disk(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = real(descriptor, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr("key_service.journal.os.write", on_a_full_disk)
    book = Journal(path)
    write(book, b"one")
    room[0] = 20
    with pytest.raises(OSError, match="No space"):
        write(book, b"x" * 100)
    assert records(path) == [b"one"]
    room[0] = 1000
    write(book, b"upon it")
    assert records(path) == [b"one"]
    assert book.overgrown
    room[0] = 5
    with pytest.raises(OSError, match="No space"):
        tidy(book, b"all of it")
    assert records(path) == [b"one"]
    room[0] = 1000
    tidy(book, b"all of it")
    write(book, b"more")
    assert records(path) == [b"all of it", b"more"]


def test_a_change_that_comes_while_a_rewrite_mends_a_torn_journal_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was once in neither: the rewrite had passed its place."""

    def on_a_full_disk(_descriptor: int, _frame: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    book = Journal(tmp_path / "live")
    write(book, b"one")
    with monkeypatch.context() as full:
        full.setattr(journal, "_write", on_a_full_disk)
        with pytest.raises(OSError, match="No space"):
            write(book, b"two")
    steps = book.rewrite(iter((b"one ", b"and two")))
    next(steps)
    write(book, b"three", b" and four")
    for _ in steps:
        pass
    assert records(tmp_path / "live") == [b"one and two", b"three and four"]
    assert not book.overgrown


def test_a_big_change_is_written_in_pieces(tmp_path: Path) -> None:
    def prefixes() -> Iterator[PrefixChange]:
        for number in range(20_000):
            yield PrefixChange(ip_network((number << 12, 32)), True)

    change = Change(peers=(PeerChange(A, 1, allowed_ips=tuple(prefixes())),))
    book = Journal(tmp_path / "live")
    steps = sum(1 for _ in book.append(operation(change)))
    [text] = records(tmp_path / "live")
    assert steps >= len(text) // journal.FRAME
    assert text.count(b"allowed_ip=") == 20_000
