"""Turns a loop by hand in tests."""

from collections.abc import Callable

from lab.wait import until
from stagewire.loop import Loop, Once, boot_time


def turn_until(loop: Loop, condition: Callable[[], object], what: str) -> None:
    """Turns the loop until a condition holds. An idle turn takes a millisecond."""

    def once() -> object:
        loop.add_timed(soon := Once(boot_time() + 0.001, lambda _now: None))
        loop._turn()
        loop.remove_timed(soon)
        return condition()

    until(once, 5, what)
