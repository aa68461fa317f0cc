"""Packs into one number which worker a prefix's packets go to, and which workers may deliver packets from the prefix.

tun-service keeps such a number for each prefix, and asks it for each packet. A moving peer is at home in two workers.
"""

from collections.abc import Iterable
from typing import Final

from stagewire.limits import MAX_WORKERS

WORKER_BITS: Final = 8
"""Bits of the worker that packets go to. Above them is a bit for each worker that may deliver."""


def pack(worker: int, also: Iterable[int] = ()) -> int:
    """Returns the number for packets to `worker`, which it may deliver as well, and so may those in `also`.

    Raises ValueError for a worker that cannot be.
    """
    packed = worker
    for each in (worker, *also):
        if not 0 <= each < MAX_WORKERS:
            raise ValueError(f"a worker's number is 0 to {MAX_WORKERS - 1}, not {each}")
        packed |= 1 << WORKER_BITS + each
    return packed


def worker_of(packed: int) -> int:
    """Returns the worker that packets go to."""
    return packed & (1 << WORKER_BITS) - 1


def may_deliver(packed: int, worker: int) -> bool:
    """Tells whether a worker may deliver packets from the prefix."""
    return packed >> WORKER_BITS + worker & 1 == 1
