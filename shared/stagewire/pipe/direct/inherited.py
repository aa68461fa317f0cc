"""Keeps the connections of a pipe's pushers, so that a successor reads on where the holder stopped, and loses nothing.

`process.hand_down` gives spares copies of the connections, and of a page of memory with a byte for each. The byte is set
from before something is read until each message that was begun is whole. A connection whose byte is set may have been left
in the middle of a message. The successor ends it, as the rest could pass for the beginning of another message. Its pusher
connects anew.

Memory that a pusher shares is handed down as well. Both then have names of their own, by which a version that knows of no
such memory takes neither: it would read on in the connection and find nothing.
"""

import mmap
import os
import socket as sockets
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from stagewire.pipe.direct.shared_memory import BadMemory, Memory

PREFIX: Final = "pipe-pusher:"
"""`<prefix><number>:<pipe>`; the number is its byte's. `pipes` takes every name that begins with `pipe`."""
SHARER: Final = "pipe-sharer:"
"""The same, of a pusher that shares memory."""
MEMORY: Final = "pipe-memory:"
"""`<prefix><number>`"""
MARKS: Final = "pipe-marks"
MOST: Final = 100
"""Connections that are kept, with memory or without; the kernel hands on 253 descriptors. Further pushers connect anew."""

Left = tuple[sockets.socket, Memory | None]
"""A connection, and the memory that its pusher shares."""


class Pushers:
    """Keeps the connections of all pipes. It takes its own out of `inherited`, the descriptors of the predecessor."""

    def __init__(self, inherited: dict[str, int]) -> None:
        self._before: dict[str, list[Left]] = {}
        self._take(inherited)
        self._page: tuple[int, mmap.mmap] | None = None
        """(descriptor, memory) of the marks, from the first pipe on."""
        self._left: dict[int, tuple[str, int, int | None]] = {}
        """(pipe, descriptor, descriptor of the memory) by number."""
        self._numbers = set(range(MOST))
        self.on_change: Callable[[], None] = lambda: None

    def _take(self, inherited: dict[str, int]) -> None:
        marks = _marks(inherited.pop(MARKS, None))
        for name in [name for name in inherited if name.startswith((PREFIX, SHARER))]:
            number, _, pipe = name.partition(":")[2].partition(":")
            descriptor, shared = inherited.pop(name), inherited.pop(MEMORY + number, None)
            try:
                pusher = sockets.socket(fileno=descriptor)
            except OSError:  # it is no socket
                for each in (descriptor, shared):
                    if each is not None:
                        os.close(each)
                continue
            try:
                memory = None if shared is None else Memory(shared)
            except BadMemory:
                hang_up(pusher)
                continue
            if number in marks and (memory is not None) == name.startswith(SHARER):
                self._before.setdefault(pipe, []).append((pusher, memory))
            else:
                let_go(pusher, memory)

    @property
    def marks(self) -> mmap.mmap:
        """Returns the page of bytes. 0: each message that was begun is whole."""
        if self._page is None:
            descriptor = os.memfd_create(MARKS, os.MFD_CLOEXEC)
            os.ftruncate(descriptor, mmap.PAGESIZE)
            self._page = descriptor, mmap.mmap(descriptor, mmap.PAGESIZE)
        return self._page[1]

    def of(self, pipe: str) -> list[Left]:
        """Returns the connections of a pipe that the predecessor had welcomed."""
        return self._before.pop(pipe, [])

    def enter(self, pipe: str, pusher: sockets.socket) -> int:
        """Registers a connection for hand-down. Returns the number of its byte, which is set; MOST if the table is full."""
        if not self._numbers:
            return MOST
        number = min(self._numbers)
        self._numbers.remove(number)
        self.marks[number] = 1
        self._left[number] = pipe, pusher.fileno(), None
        self.on_change()
        return number

    def share(self, number: int, memory: int) -> None:
        """Registers a pusher's memory as well. The caller closes its descriptor after `remove`."""
        if number in self._left:
            pipe, pusher, _ = self._left[number]
            self._left[number] = pipe, pusher, memory
            self.on_change()

    def remove(self, number: int) -> None:
        """Forgets a connection that has ended."""
        if self._left.pop(number, None) is not None:
            self._numbers.add(number)
            self.on_change()

    def left(self) -> dict[str, int]:
        """Returns what spares get copies of, by name."""
        if self._page is None:
            return {}
        left = {MARKS: self._page[0]}
        for number, (pipe, pusher, memory) in self._left.items():
            left[f"{PREFIX if memory is None else SHARER}{number}:{pipe}"] = pusher
            if memory is not None:
                left[f"{MEMORY}{number}"] = memory
        return left

    def close_inherited(self) -> None:
        """Ends the connections that no pipe took."""
        while self._before:
            for pusher, memory in self._before.popitem()[1]:
                let_go(pusher, memory)

    def close(self) -> None:
        """Closes the page, and what no pipe took."""
        self.close_inherited()
        if self._page is not None:
            descriptor, marks = self._page
            self._page = None
            marks.close()
            os.close(descriptor)


def _marks(descriptor: int | None) -> set[str]:
    """Returns the numbers of the connections whose byte says that each message is whole."""
    if descriptor is None:
        return set()
    try:
        page = os.pread(descriptor, mmap.PAGESIZE, 0)
    except OSError:  # it is no memory
        return set()
    finally:
        os.close(descriptor)
    return {str(number) for number, mark in enumerate(page) if not mark}


def hang_up(pusher: sockets.socket) -> None:
    """Ends a connection, also where other processes have copies."""
    with suppress(OSError):  # it has ended already
        pusher.shutdown(sockets.SHUT_RDWR)
    pusher.close()


def let_go(pusher: sockets.socket, memory: Memory | None) -> None:
    """Ends a connection and its memory."""
    if memory is not None:
        memory.close()
    hang_up(pusher)
