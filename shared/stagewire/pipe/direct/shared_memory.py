"""Shares memory between both ends of a pipe: a long train is laid there, and only its place goes through the socket.

The pusher makes the memory (memfd_create(2)) for one connection and hands it over (SCM_RIGHTS). The memory ends with the
connection, so an abandoned reader that lives on never sees its successor's trains. It begins with a byte of state a slot:

    0  free     the pusher's, to lay a train in; it takes the lowest, which is still in the caches
    1  told     on its way through the socket
    2  in hand  the reader's, until it has done with the train
    3  new      there is no reader yet, or it could not take the memory

Only the end that owns a slot changes its byte, so no lock is needed. Slots are few. A pusher that finds none free sends the
train itself, so it never waits for a slot, and the socket still limits what waits in a pipe.
"""

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final

from stagewire.linux import descriptors
from stagewire.pipe.trains import Data, Part

SLOTS: Final = 8
"""With four, up to a quarter of all trains found none free (docs/performance/LIMITS.md)."""
SLOT: Final = 192 * 1024
"""Bytes; a train has no more than `trains.MAX_FRAME` and its headers."""
LEAST: Final = 4096
"""Bytes from which on a train is laid; a shorter one is as quick through the socket."""
MEMORY_SIZE: Final = mmap.PAGESIZE + SLOTS * SLOT
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""A pusher that could shorten the memory could kill its reader (SIGBUS)."""
_FREE, _TOLD, _IN_HAND, _NEW = range(4)


class BadMemory(Exception):  # noqa: N818 - it is the other end's error
    """Reports a descriptor of no such memory, or of memory that may become shorter."""


class Memory:
    """Holds one end's view of the memory."""

    def __init__(self, descriptor: int) -> None:
        """Maps a memory file, and owns its descriptor from now on. Raises BadMemory."""
        self.descriptor = descriptor
        try:
            self.map: Final = _mapped_untrusted(descriptor)
        except (OSError, ValueError) as error:
            self.close()
            raise BadMemory(str(error)) from None
        self._view = memoryview(self.map)
        self.in_hand: Final[list[int]] = []
        """Slots that the reader has."""
        self.lengths: Final = [0] * SLOTS
        """Bytes of the train that was last laid in each slot."""

    @classmethod
    def make(cls) -> "Memory":
        """Makes new memory. Raises OSError."""
        descriptor = os.memfd_create("stagewire-trains", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, MEMORY_SIZE)
            os.pwrite(descriptor, bytes([_NEW]) * SLOTS, 0)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def close(self) -> None:
        """Closes the descriptor, which only hand-down needs; mmap keeps its own until no view is left."""
        if self.descriptor >= 0:
            descriptors.close(self.descriptor)  # a pusher's may be anything
            self.descriptor = -1

    # --- the pusher's --------------------------------------------------------------------------------------

    def lay(self, parts: Sequence[Part], length: int) -> int | None:
        """Lays a train of so many bytes and returns its slot; None if it can't. hot: bench traffic"""
        slot = self.map.find(b"\0", 0, SLOTS)
        if slot < 0 or length > SLOT:
            return None
        view, at = self._view, _start(slot)
        for part in parts:
            end = at + len(part)
            view[at:end] = part
            at = end
        self.map[slot] = _TOLD
        self.lengths[slot] = length
        return slot

    def laid(self) -> int:
        """Counts the bytes of all trains that the reader has not done with."""
        return sum(length for slot, length in enumerate(self.lengths) if self.map[slot] in {_TOLD, _IN_HAND})

    def take_back(self, slot: int) -> None:
        """Frees a slot of which the reader could not be told."""
        self.map[slot] = _FREE

    # --- the reader's --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Lets the pusher lay trains. What was in hand of a reader that died is lost with it."""
        for slot in range(SLOTS):
            if self.map[slot] in {_IN_HAND, _NEW}:  # the pusher may be changing the others
                self.map[slot] = _FREE

    def take_untrusted(self, slot: int, length: int) -> tuple[Data, int, int] | None:
        """Returns (memory, start, end) of a train, in hand until `release`; None if there can't be one."""
        # Once until `release`, whatever the byte says: a pusher could set it again and again.
        if slot >= SLOTS or length > SLOT or self.map[slot] != _TOLD or slot in self.in_hand:
            return None
        self.map[slot] = _IN_HAND
        self.in_hand.append(slot)
        start = _start(slot)
        return self.map, start, start + length

    def release(self) -> None:
        """Gives the pusher back all that was in hand."""
        while self.in_hand:
            self.map[self.in_hand.pop()] = _FREE


def _mapped_untrusted(descriptor: int) -> mmap.mmap:
    """Raises OSError if it is no memory file, ValueError if it is too short or may become so."""
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise ValueError("not sealed")
    if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        raise ValueError("of huge pages")  # they may run out at any touch, which ends the reader (SIGBUS)
    return mmap.mmap(descriptor, MEMORY_SIZE)


def _start(slot: int) -> int:
    return mmap.PAGESIZE + slot * SLOT
