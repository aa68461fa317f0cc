"""Says what every transport of trains promises, whether `direct` or `libzmq`.

whole         A train arrives whole or not at all.
in order      Trains of one sender arrive in the order in which it sent them.
bounded       A pipe holds no more than its `names.Limits`. A full pipe refuses a train, and says when there is room.
never old     A sender keeps nothing for a reader that isn't there: the train is refused.
paused        A reader that the loop pauses takes nothing, so its senders find the pipe full.
apart         A sender that talks nonsense harms its own connection, and holds up nobody else.
stopped       A loop that stops takes first what has reached it; with `direct` that is all that was sent.
taken over    A killed reader loses what it had in hand. `direct` loses nothing else: the successor reads on where the dead
              process stopped. `libzmq` also loses all that waited in the pipe, at both ends.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from stagewire.linux.uids import Place
from stagewire.loop import Source
from stagewire.pipe.trains import Data, Part

Frame = tuple[Data, int, int]
"""(data, start, end) of a train, which may lie in its sender's memory until the handler returns."""
Handler = Callable[[Sequence[Frame], float], None]
"""Gets at least one train."""


OfPlace = Callable[[Place | None], Handler]
"""Returns the Handler of one speaker's trains. None stands for root, and for all where all share a uid."""


class Sender(Protocol):
    """Sends trains to one reader, that may come and go."""

    most_held: int
    """Bytes that a SendQueue has held back for the reader, at most since this was last set to 0."""

    @property
    def waiting(self) -> int:
        """Counts the bytes that the reader hasn't taken yet, with the kernel's administration; 0 if nobody knows."""

    @property
    def connected(self) -> bool:
        """Tells whether there is a reader. With libzmq, a full pipe looks like none."""

    def send(self, *parts: Part) -> bool:
        """Sends a train, all of it or nothing; tells which. The parts are the caller's again at once."""

    def send_each(self, trains: Sequence[bytes]) -> int:
        """Sends short trains, each as `send` does, until the pipe is full. Returns how many."""

    def when_room(self, waiter: Callable[[float], None] | None) -> None:
        """Calls `waiter` while there is room; None: no longer."""

    def close(self) -> None:
        """Hangs up. The reader still gets what was sent."""


class Receiver(Protocol):
    """Welcomes all senders of one pipe, and hands their trains to a Handler."""

    @property
    def source(self) -> Source:
        """Names the whole pipe to the loop, which pauses and resumes it."""

    def close(self) -> None:
        """Hangs up on every sender."""
