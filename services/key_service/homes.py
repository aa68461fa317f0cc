"""Chooses each peer's home worker by rendezvous hashing of its public key (Thaler and Ravishankar, 1998).

A peer ranks all workers, by a hash of the peer's key and the worker's number. The first worker is the peer's home. If
workers come or go, a peer moves only if its first worker came or went.
"""

from hashlib import blake2s


def home_of(public_key: bytes, workers: int) -> int:
    """Returns the number of a peer's home worker, below `workers`."""
    return max(range(workers), key=lambda worker: blake2s(public_key, salt=worker.to_bytes(8, "little")).digest())
