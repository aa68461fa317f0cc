"""Names our handshakes and sessions on the wire: session indices, of four bytes (paper, section 5.4).

The low 8 bits are the number of the worker that has the session, so conn-service steers a datagram without a table. The
high 24 bits are random, so that an index tells nothing about the number of peers.
"""

from collections.abc import Callable
from typing import Final

from stagewire.proto import constants as c

_NUMBERS: Final = 256
_ATTEMPTS: Final = 1000


class IndexTable:
    """Holds the indices in use, by handshakes and sessions alike. `random_bytes` returns that many random bytes."""

    __slots__ = ("_random_bytes", "_used")

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._used: set[int] = set()

    def allocate(self, worker: int) -> int:
        """Returns a free index for a session of `worker`, which is in use until `release`.

        Raises ValueError for a worker outside 0..255. Raises RuntimeError when it finds no free index: with sound
        randomness, nearly all 2**24 of the worker are in use.
        """
        if not 0 <= worker < _NUMBERS:
            raise ValueError(f"a worker's number is 0 to 255, not {worker}")
        for _ in range(_ATTEMPTS):
            index = int.from_bytes(self._random_bytes(3)) << 8 | worker
            if self.claim(index):
                return index
        raise RuntimeError(f"no free session index for worker {worker}")

    def claim(self, index: int) -> bool:
        """Marks an index as in use that another process serves already. Returns False if it was in use."""
        if index in self._used:
            return False
        self._used.add(index)
        return True

    def release(self, index: int) -> None:
        """Frees an index, which may be free already."""
        self._used.discard(index)


# --- steering ----------------------------------------------------------------------------------------------


def worker_of(index: int) -> int:
    """Returns the number (0..255) of an index's worker."""
    return index & 0xFF


def worker_of_datagram(datagram: bytes) -> int:
    """Returns the number of the worker that a transport message is for."""
    return datagram[4]


def is_transport(datagram: bytes | memoryview) -> bool:
    """Tells whether type, reserved bytes and length are those of a transport message."""
    return len(datagram) >= c.TRANSPORT_OVERHEAD and datagram[:4] == b"\x04\0\0\0"


def worker_of_run(data: memoryview, size: int) -> int | None:
    """Returns the number of the worker that all datagrams of a run are for, of `size` bytes each but the last.

    Returns None if one of them can't be a transport message, or if they are for several workers. Hot.
    """
    length = len(data)
    if length <= size:
        return data[4] if is_transport(data) else None
    if size < c.TRANSPORT_OVERHEAD or 0 < length % size < c.TRANSPORT_OVERHEAD:
        return None
    # A column of bytes at a time: where each message begins, stepping by their size.
    count = (length + size - 1) // size
    for at, expected in enumerate((b"\4", b"\0", b"\0", b"\0", bytes(data[4:5]))):
        if data[at::size].tobytes() != expected * count:
            return None
    return data[4]
