"""Who has connected to our pipes, kept so that whoever takes over reads on where we stopped: what waits there isn't lost.

Copies of the connections are left to the spares with all else (`bequest`), and a page of memory with a byte for each: it is
set from before something is read until all messages that were begun are whole. A connection whose byte is set may have been
left in the middle of a message. Nobody reads on there, as what follows could be taken for the beginning of another one; its
pusher is hung up on, and connects anew.

With a pusher that shares memory that is left as well. Both have names of their own, by which a version that knows of no such
memory takes neither: it would read on in the connection and find nothing.
"""

import mmap
import os
import socket as sockets
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from stagewire.ipc.memory import BadMemory, Memory

PREFIX: Final = "pipe-pusher:"
"""`<prefix><number>:<pipe>`; the number is of its byte. Whatever begins with `pipe` is looked through by `endpoints`."""
SHARER: Final = "pipe-sharer:"
"""The same, of one who shares memory."""
MEMORY: Final = "pipe-memory:"
"""`<prefix><number>`"""
MARKS: Final = "pipe-marks"
MOST: Final = 100
"""Left at once, each with memory or without; the kernel hands 253 descriptors on. More than that connect anew."""

Left = tuple[sockets.socket, Memory | None]
"""A pusher who is connected, and what it shares."""


class Pushers:
    """Those of all our pipes. `inherited`: what was left by who was at work before us, of which this takes its own."""

    def __init__(self, inherited: dict[str, int]) -> None:
        self._before: dict[str, list[Left]] = {}
        self._take(inherited)
        self._page: tuple[int, mmap.mmap] | None = None
        """Where the marks are, from when there is a pipe: descriptor, memory."""
        self._left: dict[int, tuple[str, int, int | None]] = {}
        """(pipe, descriptor, that of the memory) by number."""
        self._numbers = set(range(MOST))
        self.on_change: Callable[[], None] = lambda: None

    def _take(self, inherited: dict[str, int]) -> None:
        descriptor = inherited.pop(MARKS, None)
        marks = b"" if descriptor is None else os.pread(descriptor, mmap.PAGESIZE, 0)
        if descriptor is not None:
            os.close(descriptor)
        for name in [name for name in inherited if name.startswith((PREFIX, SHARER))]:
            number, _, pipe = name.partition(":")[2].partition(":")
            pusher = sockets.socket(fileno=inherited.pop(name))
            shared = inherited.pop(MEMORY + number, None)
            try:
                memory = None if shared is None else Memory(shared)
            except BadMemory:
                hang_up(pusher)
                continue
            whole = marks[int(number) : int(number) + 1] == b"\0"
            if whole and (memory is not None) == name.startswith(SHARER):
                self._before.setdefault(pipe, []).append((pusher, memory))
            else:
                _let_go(pusher, memory)

    @property
    def marks(self) -> mmap.mmap:
        """A byte for each; 0: all that was begun is whole."""
        if self._page is None:
            descriptor = os.memfd_create(MARKS, os.MFD_CLOEXEC)
            os.ftruncate(descriptor, mmap.PAGESIZE)
            self._page = descriptor, mmap.mmap(descriptor, mmap.PAGESIZE)
        return self._page[1]

    def of(self, pipe: str) -> list[Left]:
        """Those of a pipe who were connected to the process before us, and have been welcomed by it."""
        return self._before.pop(pipe, [])

    def enter(self, pipe: str, pusher: sockets.socket) -> int:
        """Leaves one to the spares from now on; returns the number of its byte, which is set, MOST if it isn't left."""
        if not self._numbers:
            return MOST
        number = min(self._numbers)
        self._numbers.remove(number)
        self.marks[number] = 1
        self._left[number] = pipe, pusher.fileno(), None
        self.on_change()
        return number

    def share(self, number: int, memory: int) -> None:
        """Leaves what one shares with it, whose descriptor is the caller's to close after `remove`."""
        if number in self._left:
            pipe, pusher, _ = self._left[number]
            self._left[number] = pipe, pusher, memory
            self.on_change()

    def remove(self, number: int) -> None:
        """One that has gone."""
        if self._left.pop(number, None) is not None:
            self._numbers.add(number)
            self.on_change()

    def left(self) -> dict[str, int]:
        """What is to be left to the spares, by name."""
        if self._page is None:
            return {}
        left = {MARKS: self._page[0]}
        for number, (pipe, pusher, memory) in self._left.items():
            left[f"{PREFIX if memory is None else SHARER}{number}:{pipe}"] = pusher
            if memory is not None:
                left[f"{MEMORY}{number}"] = memory
        return left

    def close_inherited(self) -> None:
        """Those of pipes that we don't have."""
        while self._before:
            for pusher, memory in self._before.popitem()[1]:
                _let_go(pusher, memory)

    def close(self) -> None:
        """Lets go of the page."""
        self.close_inherited()
        if self._page is not None:
            descriptor, marks = self._page
            self._page = None
            marks.close()
            os.close(descriptor)


def hang_up(pusher: sockets.socket) -> None:
    """Ends a connection, whoever else has a copy of it."""
    with suppress(OSError):  # it has ended already
        pusher.shutdown(sockets.SHUT_RDWR)
    pusher.close()


def _let_go(pusher: sockets.socket, memory: Memory | None) -> None:
    if memory is not None:
        memory.close()
    hang_up(pusher)
