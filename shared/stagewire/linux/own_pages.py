"""Makes memory pages of a forked process its own before it needs them.

Forks of one process share each page until they write to it. The kernel then copies the page, which takes as long as a few
packets. Another fork that does the same work shows which pages these will be: it has them already.
"""

import array
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGESIZE")
_PRESENT, _OF_FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
"""Bits of an entry of /proc/PID/pagemap: the page is in memory; it is a file's, not a copy; no other process has it."""
_POPULATE_WRITE: Final = 23
"""Advice of madvise(2) since Linux 5.14: make these pages as a write would."""
_MOST: Final = 1 << 28
"""Bytes of one mapping that count: a larger one is no program's heap."""

_libc = ctypes.CDLL(None)


def make_own(like: int) -> int:
    """Copies each shared page of this process which another process, known by its pid, has as its own.

    Returns the number of pages. It is 0 if the kernel doesn't show that process's pages, or can't copy beforehand.
    """
    done = 0
    try:
        ours, theirs = (os.open(f"/proc/{each}/pagemap", os.O_RDONLY | os.O_CLOEXEC) for each in ("self", like))
    except OSError:  # such as in a container that may not look at processes
        return done
    try:
        for begin, end, of_file in writable(Path("/proc/self/maps")):
            for first, count in _runs(lacking(ours, theirs, begin, end, of_file=of_file)):
                place, size = ctypes.c_void_p(begin + first * _PAGE), ctypes.c_size_t(count * _PAGE)
                if _libc.madvise(place, size, _POPULATE_WRITE):
                    return done
                done += count
    except OSError:  # the other process has ended
        pass
    finally:
        os.close(ours)
        os.close(theirs)
    return done


def writable(maps: Path) -> Iterator[tuple[int, int, bool]]:
    """Yields the limits of each private mapping that a process may write to, and whether it is a file's.

    `maps` is the process's file in /proc.
    """
    for line in maps.read_text().splitlines():
        limits, rights, _, _, inode, *_ = line.split(maxsplit=5)
        begin, end = (int(limit, 16) for limit in limits.split("-"))
        if rights == "rw-p" and end - begin <= _MOST:
            yield begin, end, inode != "0"


def lacking(lacks: int, has: int, begin: int, end: int, *, of_file: bool = False) -> list[int]:
    """Lists the pages, counted from `begin`, that are shared in one process and another's own.

    `lacks` and `has` are descriptors of their pagemaps. A file's page is shared even where it isn't in memory yet.
    Raises OSError.
    """
    own, mask = _PRESENT | _EXCLUSIVE, _PRESENT | _EXCLUSIVE | _OF_FILE
    ours = _entries(lacks, begin, end)
    return [
        page
        for page, entry in enumerate(_entries(has, begin, end))
        if entry & mask == own and ours[page] & mask != own and (of_file or ours[page] & _PRESENT)
    ]


def _entries(pagemap: int, begin: int, end: int) -> "array.array[int]":
    """Returns an entry for each page, fewer where the other process's addresses end."""
    entries = array.array("Q")
    entries.frombytes(os.pread(pagemap, (end - begin) // _PAGE * entries.itemsize, begin // _PAGE * entries.itemsize))
    return entries


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """Yields the first page and the number of each run of neighbours."""
    first = last = -2
    for page in [*pages, -2]:
        if page != last + 1:
            if last >= 0:
                yield first, last - first + 1
            first = page
        last = page
