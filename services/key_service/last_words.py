"""Reports the last bytes as key-service ends: asks every worker, then tells status-service all that has changed.

Workers report each second. Without their last words, an order to end would cost the history that second.
"""

from collections.abc import Callable

from key_service.hub import Hub, Member
from stagewire.control.telemetry import CountLast
from stagewire.stages import WORKER


class LastWords:
    """Knows which workers have reported their last traffic. `say` reports what has changed, and that nothing follows."""

    def __init__(self, hub: Hub, say: Callable[[], None]) -> None:
        self._hub, self._say = hub, say
        self._counted: dict[int, int] = {}
        """Generations of workers that have said their last unasked, by number."""
        self._awaited: set[tuple[int, int]] | None = None

    def begin(self, _now: float) -> None:
        """Asks the workers that have not said their last unasked."""
        workers = [each for number in self._hub.numbers(WORKER) if (each := self._hub.member(WORKER, number))]
        self._awaited = {
            (each.number, each.generation)
            for each in workers
            if self._counted.get(each.number) != each.generation and self._hub.send(each.identity, CountLast())
        }
        self._look()

    def on_counted(self, member: Member) -> None:
        """Takes a worker's word that it has reported all its traffic."""
        if self._awaited is None:
            self._counted[member.number] = member.generation
        elif not self.heard():
            self._awaited.discard((member.number, member.generation))
            self._look()

    def heard(self) -> bool:
        """Tells whether every worker has spoken."""
        return not self._awaited

    def _look(self) -> None:
        if self.heard():
            self._say()
