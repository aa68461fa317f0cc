"""Overwrites memory that this process has freed: a freed block keeps its content, so also keys, until it is used again.

Python keeps blocks of at most 512 bytes itself, and C functions leave on the stack what they worked on. The C library
overwrites larger blocks as they are freed, if it is glibc and GLIBC_TUNABLES in supervisord.conf says so.
"""

import fcntl
from collections.abc import Iterable
from functools import partial
from typing import Final

_SIZES: Final = range(48, 160, 16)
"""Bytes of Python's blocks that hold a key alone, or its line, as bytes, in hexadecimal or in base64."""
_DERIVED: Final = (80, 112, 144)
"""Bytes of the blocks in which `proto.noise` leaves keys: 32 bytes, or a padded key with what is hashed after it."""
_FEW: Final = 4096
"""Blocks of each of those sizes: a handshake frees some 50 of each, which are the first to be taken again."""
_HEAD: Final = bytes.__basicsize__
_ENOUGH: Final = 20_000
"""Blocks of each of those sizes: more than a key-service has free."""
_LARGER: Final = range(_SIZES.stop, 512 + 1, 16)
"""Bytes of Python's other blocks: a key may lie in one within a longer text, such as a line with a comment."""
_SOME: Final = 4000
"""Blocks of each of those sizes."""

_STACK_PIECE: Final = bytes(1024)
"""What fcntl(2) may get; Python copies it onto the stack first."""
_DEPTH: Final = 24
"""Calls in one another, each of which overwrites its piece of the stack: deeper than a handshake's hashes lie."""


def sweep() -> None:
    """Overwrites the free small blocks, by taking them all, and the free stack."""
    _take(_SIZES, _ENOUGH)
    _take(_LARGER, _SOME)
    _overwrite_stack(_DEPTH)


def sweep_after_handshakes() -> None:
    """Overwrites the small blocks that handshakes have freed, and the free stack."""
    _take(_DERIVED, _FEW)
    _overwrite_stack(_DEPTH)


def _take(sizes: Iterable[int], count: int) -> None:
    for size in sizes:
        taken = [bytes(size - _HEAD) for _ in range(count)]
        del taken


def _overwrite_stack(depth: int) -> None:
    """Overwrites what C functions have left on the stack, such as the last hash: Python's own calls don't deepen it."""
    fcntl.fcntl(2, fcntl.F_GETFD, _STACK_PIECE)
    if depth:
        partial(_overwrite_stack, depth - 1)()  # a call by C deepens it
