"""Collects what one visit to a device or a socket reads into a train for each worker, and sends the trains.

tun- and conn-service both do so: each worker has a pipe of its own, and a worker that takes nothing for WORKER_PATIENCE
must not stop the others, whose packets come out of the same device or socket.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from stagewire.loop import Loop, Source
from stagewire.pipe.names import Pipe
from stagewire.pipe.pipes import Pipes
from stagewire.pipe.send_queue import SendQueue
from stagewire.pipe.trains import REST
from stagewire.reasons import Reasons

WORKER_PATIENCE: Final = 0.15
"""s that a worker may take nothing before its packets are dropped; less hits a worker that got no CPU."""


class Builder(Protocol):
    """Makes a train where its packets are read (`train_builder`)."""

    count: int

    @property
    def full(self) -> bool:
        """Tells whether the train should be sent before more is read."""

    def room(self) -> memoryview:
        """Returns the place for the next packets."""

    def finish(self, now: float, age: int = 0) -> memoryview:
        """Returns the train, and begins the next in the same place."""


B = TypeVar("B", bound=Builder)


class ToWorkers(Generic[B]):
    """Has a Builder and a SendQueue for each worker."""

    def __init__(self, loop: Loop, pipes: Pipes, pipe: Pipe, make: Callable[[], B], counters: Reasons) -> None:
        """Connects to no worker yet. `make` returns a new Builder."""
        self._loop = loop
        self._pipes = pipes
        self._pipe = pipe
        self.make = make
        self._counters = counters
        self._sources: Sequence[Source] = ()
        self._queues: list[SendQueue] = []
        self._builders: dict[int, B] = {}
        self.last = 0
        """The worker whose train the last packet joined; the next packet is read to where it will most likely stay."""
        self.alone = False
        """Set by a visit that took one packet and looked for no other; the next visit takes all there is."""
        self.age = 0
        """ms that the visit's first packet has waited for the visit, if its source tells."""
        self._visited = 0.0

    def __len__(self) -> int:
        return len(self._queues)

    # --- packets -------------------------------------------------------------------------------------------

    def visit(self, now: float) -> bool:
        """Begins a visit; tells whether its first packet goes on alone, because the source has rested."""
        rested = now > self._visited + REST and not self.alone
        self._visited, self.alone, self.age = now, False, 0
        return rested

    def builder(self, worker: int) -> B:
        """Returns the train that is being made for a worker. hot: bench traffic"""
        builder = self._builders.get(worker)
        if builder is None:
            builder = self._builders[worker] = self.make()
        return builder

    def send(self, now: float) -> None:
        """Sends every train that was begun. hot: bench traffic"""
        queues = self._queues
        for worker, builder in self._builders.items():
            count = builder.count
            if not count:
                continue
            train = builder.finish(now, self.age)
            if worker < len(queues):
                queues[worker].offer(train, count, now)
            else:
                self._drop(worker, "unknown_worker", train, count)

    def _drop(self, worker: int, reason: str, _train: object, packets: int) -> None:
        self._counters.note(reason, packets, place=bytes([worker & 0xFF]))

    # --- pipes ---------------------------------------------------------------------------------------------

    def connect(self, workers: int) -> None:
        """Connects to so many workers. What waits for those that stay, goes on waiting."""
        first = not self._queues  # a worker that joins later has still to start, and until then its packets grow old
        while len(self._queues) > workers:
            self._queues.pop().close()
            self._builders.pop(len(self._queues), None)
        if self.last >= workers:
            self.last = 0
        self._queues += [
            SendQueue(
                self._loop,
                self._pipes.sender(self._loop, self._pipe, number),
                self._counters,
                "worker_full",
                self._sources,
                WORKER_PATIENCE,
                expected=first,
                count=partial(self._drop, number),
            )
            for number in range(len(self._queues), workers)
        ]

    def throttle(self, sources: Sequence[Source]) -> None:
        """Names the sources that wait while much is held for a worker."""
        self._sources = sources
        for queue in self._queues:
            queue.throttle(sources)
