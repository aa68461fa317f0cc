"""Turns a loop by hand in tests."""

from collections.abc import Callable

from lab.wait import until
from stagewire.deadlines import Alarm
from stagewire.loop import Loop, boot_time


def turn_until(loop: Loop, condition: Callable[[], object], what: str) -> None:
    """Turns the loop until a condition holds. An idle turn takes a millisecond."""

    soon = Alarm(loop, lambda _now: None)

    def once() -> object:
        soon.set(boot_time() + 0.001)
        loop._turn()
        soon.set(None)
        return condition()

    until(once, 5, what)
