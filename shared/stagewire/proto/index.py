"""Session indices: four bytes that say which of our handshakes or sessions is meant (paper, section 5.4).

An index is random in its high 24 bits, so that it tells nothing about the number of peers, and carries the
number of the worker that has the session in its low 8, so that the worker is known from the datagram alone.
"""

from collections.abc import Callable
from typing import Final

MAX_WORKERS: Final = 256
_ATTEMPTS: Final = 1000


def worker_of(index: int) -> int:
    """The number (0..255) of the worker that an index belongs to."""
    return index & 0xFF


class IndexTable:
    """The indices in use, by handshakes and sessions alike. `random_bytes` gives that many random bytes."""

    __slots__ = ("_random_bytes", "_used")

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._used: set[int] = set()

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, index: object) -> bool:
        return index in self._used

    def allocate(self, worker: int) -> int:
        """An index that nobody has, for a session of `worker`; in use until it is released.

        Raises ValueError for a worker outside 0..255, RuntimeError when no free index is found, which with a
        sound source of randomness means that nearly all 2**24 of the worker are in use.
        """
        if not 0 <= worker < MAX_WORKERS:
            raise ValueError(f"a worker's number is 0 to 255, not {worker}")
        for _ in range(_ATTEMPTS):
            index = int.from_bytes(self._random_bytes(3)) << 8 | worker
            if self.claim(index):
                return index
        raise RuntimeError(f"no free session index for worker {worker}")

    def claim(self, index: int) -> bool:
        """Marks an index in use that another process serves already. False if it was in use."""
        if index in self._used:
            return False
        self._used.add(index)
        return True

    def release(self, index: int) -> None:
        """Frees an index; nothing happens if it is free."""
        self._used.discard(index)
