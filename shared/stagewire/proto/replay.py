"""Remembers which counters of a session were seen: the replay window (paper, section 5.4.6; RFC 6479).

A ring of 128 blocks of 64 holds the newest counters, found by a counter's low bits. When the newest counter enters a
new block, the window clears each block that it passed. The newest block is always partly unused, so the window reaches
only WINDOW_SIZE - 64 counters back.
"""

from typing import Final

from stagewire.proto.constants import REJECT_AFTER_MESSAGES, WINDOW_SIZE

_BLOCK: Final = 64
_BLOCKS: Final = WINDOW_SIZE // _BLOCK
_REACH: Final = WINDOW_SIZE - _BLOCK
_MASK: Final = WINDOW_SIZE - 1
_NO_BLOCK: Final = bytes(_BLOCK)
_NOTHING: Final = bytes(WINDOW_SIZE)


class ReplayWindow:
    """Holds the window of one session. One process owns it; it starts empty, with a new key."""

    # A byte for each bit: Python's integers can't change in place, so a list of them takes twice as long.
    __slots__ = ("_end", "_newest", "_seen")

    def __init__(self) -> None:
        self._newest = -1
        self._end = _BLOCK  # the first counter that needs a block cleared, or must be rejected
        self._seen = bytearray(WINDOW_SIZE)

    def accept(self, counter: int) -> bool:
        """Tells whether `counter` (0..2**64 - 1) is new, and marks it as seen.

        Only for a counter whose packet was authenticated. False for a seen counter, for one more than 8128 behind the
        newest, and for REJECT_AFTER_MESSAGES or more. hot: bench ReplayWindow.accept
        """
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

    def _advance(self, counter: int) -> bool:
        """Clears the blocks up to that of `counter`. Returns False without a change if `counter` must be rejected."""
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        first, last = self._end // _BLOCK, counter // _BLOCK
        if last - first >= _BLOCKS - 1:
            self._seen[:] = _NOTHING  # a jump of 2**60 clears each block once, not for years
        else:
            for block in range(first, last + 1):
                place = block % _BLOCKS * _BLOCK
                self._seen[place : place + _BLOCK] = _NO_BLOCK
        # REJECT_AFTER_MESSAGES lies inside a block: the counters after it must get here to be rejected.
        self._end = min((last + 1) * _BLOCK, REJECT_AFTER_MESSAGES)
        return True
