"""Which worker a peer is at home in: rendezvous hashing (Thaler and Ravishankar, 1998) on its public key.

Every peer ranks the workers by a hash of both; the first is its home. When the number of workers changes, only the peers
move whose first choice came or went.
"""

from hashlib import blake2s


def home_of(public_key: bytes, workers: int) -> int:
    """The number, from 0, of the worker among `workers` that is home to a peer."""
    return max(range(workers), key=lambda worker: blake2s(public_key, salt=worker.to_bytes(8, "little")).digest())
