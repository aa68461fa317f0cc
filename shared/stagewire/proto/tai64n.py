"""TAI64N time stamps: what keeps an old initiation from being answered twice (paper, section 5.4.2).

A stamp is 12 bytes, big endian, so that stamps compare as plain bytes:

    0x400000000000000a + seconds since 1970 8 | nanoseconds 4

The nanoseconds are whitened (rounded down) so that a stamp doesn't tell when exactly it was made.
"""

import struct
from typing import Final

from stagewire.proto.constants import TIMESTAMP_LENGTH
from stagewire.proto.messages import BadMessage

_LAYOUT = struct.Struct(">QI")
_EPOCH: Final = 0x400000000000000A
"""The TAI64 label of 1970. Its ten leap seconds are a convention; later ones are ignored by all."""
_SECOND: Final = 10**9
_MAX_SECONDS: Final = 2**62

STEP_NS: Final = 2**24
"""Stamps are multiples of this many nanoseconds within their second: about 16.8 ms, the greatest power of two
that still lets a peer make INITIATIONS_PER_SECOND different ones."""


def encode(unix_ns: int) -> bytes:
    """The stamp (12 bytes) of a wall-clock time, in nanoseconds since 1970.

    Raises ValueError for a time before 1970 or after the year 10**11.
    """
    seconds, nanoseconds = divmod(unix_ns, _SECOND)
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError(f"no time stamp for {unix_ns} ns since 1970")
    return _LAYOUT.pack(_EPOCH + seconds, nanoseconds - nanoseconds % STEP_NS)


def decode_untrusted(stamp: bytes) -> int:
    """The wall-clock time of a stamp, in nanoseconds since 1970; for people to read.

    What counts as newer is decided by comparing the bytes. Raises BadMessage('bad_timestamp'), and nothing
    else.
    """
    if len(stamp) != TIMESTAMP_LENGTH:
        raise BadMessage("bad_timestamp")
    label, nanoseconds = _LAYOUT.unpack(stamp)
    seconds = label - _EPOCH
    if not 0 <= seconds <= _MAX_SECONDS or nanoseconds >= _SECOND:
        raise BadMessage("bad_timestamp")
    return int(seconds * _SECOND + nanoseconds)


class Stamper:
    """Makes stamps that only grow, whatever the wall clock does.

    A peer ignores an initiation whose stamp isn't greater than the last it saw, silently and for as long as
    the clock is behind; so where the clock doesn't move on, the stamps do.
    """

    __slots__ = ("_last",)

    def __init__(self, floor: bytes = bytes(TIMESTAMP_LENGTH)) -> None:
        """`floor` is the greatest stamp made before, or zeros. Raises BadMessage when it is neither."""
        if floor != bytes(TIMESTAMP_LENGTH):
            decode_untrusted(floor)
        self._last = floor

    @property
    def last(self) -> bytes:
        """The stamp made last; the floor, when none has been made."""
        return self._last

    def next(self, unix_ns: int) -> bytes:
        """A stamp (12 bytes) of the time `unix_ns`, or of the next one that is greater than `last`."""
        stamp = encode(max(unix_ns, 0))
        if stamp <= self._last:
            # A step always crosses a multiple of STEP_NS or the end of the second, so rounding can't undo it.
            stamp = encode(decode_untrusted(self._last) + STEP_NS)
        self._last = stamp
        return stamp
