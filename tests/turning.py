"""A loop that a test turns by hand."""

from collections.abc import Callable

from lab.wait import until
from stagewire.ipc.loop import Loop, Once, boot_time


def turn_until(loop: Loop, condition: Callable[[], object], what: str) -> None:
    """Turns it until something is so; a turn without anything to do takes a millisecond."""

    def once() -> object:
        loop.add_timed(soon := Once(boot_time() + 0.001, lambda _now: None))
        loop._turn()
        loop.remove_timed(soon)
        return condition()

    until(once, 5, what)
