"""Makes and reads TAI64N time stamps, which keep an old initiation from a second answer (paper, section 5.4.2).

A stamp is 12 bytes, big endian, so that stamps compare as plain bytes:

    0x400000000000000a + seconds since 1970 8 | nanoseconds 4

The nanoseconds are whitened (rounded down), so that a stamp doesn't tell exactly when it was made.
"""

import struct
from dataclasses import dataclass
from typing import Final

from stagewire.proto.constants import TIMESTAMP_LENGTH
from stagewire.proto.messages import BadMessage

_LAYOUT = struct.Struct(">QI")
_EPOCH: Final = 0x400000000000000A
"""TAI64 label of 1970. Its ten leap seconds are a convention; every implementation ignores later ones."""
_SECOND: Final = 10**9
_MAX_SECONDS: Final = 2**62

END_NS: Final = 2**61 * _SECOND
"""Of stored times: a peer's time beyond half of what a stamp can say is no clock's."""
MAX_JUMP_NS: Final = 86_400 * _SECOND
"""ns by which the wall clock may leave the boot-time clock before our stamps stop to follow it."""
UNSET_BEFORE_NS: Final = 1_704_067_200 * _SECOND
"""ns since 1970 (January 2024); a machine whose clock says less has not been told the time yet."""
STEP_NS: Final = 2**24
"""ns between two stamps of a second: the greatest power of two that leaves INITIATIONS_PER_SECOND stamps."""


def encode(unix_ns: int) -> bytes:
    """Makes the stamp (12 bytes) of a wall-clock time, in nanoseconds since 1970.

    Raises ValueError for a time before 1970 or after the year 10**11.
    """
    seconds, nanoseconds = divmod(unix_ns, _SECOND)
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError(f"no time stamp for {unix_ns} ns since 1970")
    return _LAYOUT.pack(_EPOCH + seconds, nanoseconds - nanoseconds % STEP_NS)


def decode_untrusted(stamp: bytes) -> int:
    """Returns a stamp's wall-clock time, in nanoseconds since 1970, for people to read.

    To find the newer of two stamps, compare their bytes. Raises BadMessage('bad_timestamp'), and nothing else.
    """
    if len(stamp) != TIMESTAMP_LENGTH:
        raise BadMessage("bad_timestamp")
    label, nanoseconds = _LAYOUT.unpack(stamp)
    seconds = label - _EPOCH
    if not 0 <= seconds <= _MAX_SECONDS or nanoseconds >= _SECOND:
        raise BadMessage("bad_timestamp")
    return int(seconds * _SECOND + nanoseconds)


@dataclass(frozen=True, slots=True)
class Anchor:
    """Ties the wall clock (ns since 1970) to the boot-time clock (s), at one moment."""

    unix_ns: int
    boot_s: float

    def jump(self, unix_ns: int, now: float) -> int:
        """Returns how far (ns) the wall clock has left the boot-time clock since; 0 if by less than MAX_JUMP_NS."""
        ahead = unix_ns - self.unix_ns - int((now - self.boot_s) * _SECOND)
        return ahead if abs(ahead) > MAX_JUMP_NS else 0


class Stamper:
    """Makes stamps that only grow, whatever the wall clock does.

    A peer silently ignores an initiation whose stamp isn't greater than the last. So where the clock stands or goes
    back, the stamps still grow. Where it jumps ahead by more than MAX_JUMP_NS, the stamps go on as if it had not: peers
    remember the greatest stamp, and would ignore us once the clock is right again.
    """

    __slots__ = ("_last", "anchor")

    def __init__(self, floor: bytes = bytes(TIMESTAMP_LENGTH), anchor: Anchor | None = None) -> None:
        """Begins after `floor`, the greatest stamp made before, or zeros. Raises BadMessage for other bytes.

        Without an `anchor`, the clock is right at the first stamp.
        """
        if floor != bytes(TIMESTAMP_LENGTH):
            decode_untrusted(floor)
        self._last = floor
        self.anchor = anchor

    @property
    def last(self) -> bytes:
        """Returns the newest stamp, at first the floor."""
        return self._last

    def jump(self, unix_ns: int, now: float) -> int:
        """Returns by how much (ns) the stamps do not follow the wall clock, mostly 0."""
        if self.anchor is None or self.anchor.unix_ns < UNSET_BEFORE_NS:
            self.anchor = Anchor(unix_ns, now)
        return self.anchor.jump(unix_ns, now)

    def next(self, unix_ns: int, now: float) -> bytes:
        """Makes a stamp (12 bytes) of the time `unix_ns`, or of the next time whose stamp is greater than `last`."""
        unix_ns -= self.jump(unix_ns, now)
        stamp = encode(max(unix_ns, 0))
        if stamp <= self._last:
            # A step always crosses a multiple of STEP_NS or the end of the second, so rounding can't undo it.
            stamp = encode(decode_untrusted(self._last) + STEP_NS)
        self._last = stamp
        return stamp
