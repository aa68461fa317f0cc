"""The replay window: which counters of a session have been seen (paper, section 5.4.6; RFC 6479).

The newest counters are remembered in a ring of 128 blocks of 64, found by the counter's low bits. When the
newest counter enters a new block, the blocks it passed are cleared. So the block it stands in is always
partly unused, and only WINDOW_SIZE - 64 counters back are accepted.
"""

from collections.abc import Sequence
from typing import Final

from stagewire.proto.constants import REJECT_AFTER_MESSAGES, WINDOW_SIZE

_BLOCK: Final = 64
_BLOCKS: Final = WINDOW_SIZE // _BLOCK
_REACH: Final = WINDOW_SIZE - _BLOCK
_MASK: Final = WINDOW_SIZE - 1
_NO_BLOCK: Final = bytes(_BLOCK)
_NOTHING: Final = bytes(WINDOW_SIZE)
_SEEN: Final = b"\1" * _BLOCK


class ReplayWindow:
    """The window of one session. One process owns it; it starts empty, with a new key."""

    # A byte for each of the ring's bits: 8 KiB, while a list of 128 integers takes 5 KiB and is half as fast,
    # for want of integers that change in place.
    __slots__ = ("_end", "_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._end = _BLOCK  # the first counter that needs a block cleared, or must be rejected
        self._seen = bytearray(WINDOW_SIZE)

    def accept(self, counter: int) -> bool:
        """Whether `counter` (0..2**64 - 1) is new; it is seen from now on.

        To be asked only for a packet that was authenticated. False when it was seen, is more than 8128 behind
        the newest, or is REJECT_AFTER_MESSAGES or more.
        """
        # Hot, once per packet. Measured: 0.09 us in order, 0.10 us out of order, 0.14 us for counters above
        # 2**30.
        newest = self._newest
        if counter > newest:
            if counter >= self._end and not self._advance(counter):
                return False
            self._newest = counter
            self._seen[counter & _MASK] = 1
            return True
        if newest - counter > _REACH:
            return False
        place = counter & _MASK
        if self._seen[place]:
            return False
        self._seen[place] = 1
        return True

    def accept_run(self, counters: Sequence[int]) -> bool:
        """Whether these follow one another, and all are beyond the newest; then they are seen from now on.

        Otherwise nothing has changed, and each is to be asked for by itself. At most 64 of them. As `accept`, to be asked
        only for packets that were authenticated.
        """
        # Hot, once per run. Measured: 0.9 us for 43, in place of 3.9 us.
        first, last = counters[0], counters[-1]
        count = last - first + 1
        if first <= self._newest or count != len(counters) or count > _BLOCK:
            return False
        if list(counters) != list(range(first, last + 1)):
            return False
        if last >= self._end and not self._advance(last):
            return False
        self._newest = last
        place = first & _MASK
        around = max(0, place + count - WINDOW_SIZE)
        self._seen[place : place + count - around] = _SEEN[around:count]
        if around:
            self._seen[:around] = _SEEN[:around]
        return True

    def _advance(self, counter: int) -> bool:
        """Clears the blocks up to that of `counter`. False, and no change, if it must be rejected."""
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        first, last = self._end // _BLOCK, counter // _BLOCK
        if last - first >= _BLOCKS - 1:
            self._seen[:] = _NOTHING  # at most once around, or a jump of 2**60 would stand here for years
        else:
            for block in range(first, last + 1):
                place = block % _BLOCKS * _BLOCK
                self._seen[place : place + _BLOCK] = _NO_BLOCK
        # REJECT_AFTER_MESSAGES lies inside a block, whose last counters must come here to be rejected.
        self._end = min((last + 1) * _BLOCK, REJECT_AFTER_MESSAGES)
        return True
