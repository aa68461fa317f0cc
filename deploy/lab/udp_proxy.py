"""Proxies UDP in user space: it loses, duplicates, reorders, damages and replays datagrams, reproducibly.

    client <--> front | proxy | back <--> target       forward: client to target; backward: target to client

Each direction draws from a generator of its own, the same number of times for each datagram. So the fate of the nth datagram
of a direction depends on the seed alone, not on timing or on other faults' probabilities.
"""

import contextlib
import heapq
import itertools
import math
import random
import secrets
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self

from lab.namespaces import Namespace
from lab.wait import Bell

Direction = Literal["forward", "backward"]

QUIET: Final = 0.05
"""s without a datagram after which a direction lets its held datagrams go."""
BATCH: Final = 64  # datagrams taken from one side before the other has its turn


@dataclass(frozen=True, slots=True)
class Faults:
    """Lists the faults of a direction's datagrams: probabilities from 0 to 1, each judged on its own."""

    loss: float = 0
    duplicate: float = 0
    reorder: float = 0
    reorder_by: int = 4  # how many datagrams of its direction may overtake a reordered one
    corrupt: float = 0
    truncate: float = 0
    delay: float = 0  # seconds, for every datagram


class Recorded(NamedTuple):
    """Holds a datagram as it arrived at the proxy. `time` is time.monotonic()."""

    direction: Direction
    time: float
    data: bytes


class _Lane:
    """Carries one direction, with its faults, its luck and its held datagrams."""

    def __init__(self, seed: str, send: Callable[[bytes], None]) -> None:
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._send = send
        self._last = 0.0
        self._held: list[tuple[int, bytes]] = []  # a heap: (arrival it waits for, datagram)
        self._delayed: deque[tuple[float, bytes]] = deque()

    def take(self, data: bytes, now: float) -> None:
        """Passes a datagram: corrupts, truncates, loses or duplicates, reorders, delays, sends."""
        faults, counts, draw = self.faults, self.counts, self._random.random
        lose, corrupt, where, truncate, cut, duplicate, *late, depth = [draw() for _ in range(9)]
        counts["received"] += 1
        self._last = now
        if data and corrupt < faults.corrupt:
            counts["corrupted"] += 1
            bit = int(where * len(data) * 8)
            data = data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
        if data and truncate < faults.truncate:
            counts["truncated"] += 1
            data = data[: max(1, int(cut * len(data)))]
        copies = 0 if lose < faults.loss else 2 if duplicate < faults.duplicate else 1
        counts[("lost", "single", "duplicated")[copies]] += 1
        for copy in range(copies):
            if late[copy] < faults.reorder:
                counts["reordered"] += 1
                wait_for = counts["received"] + 1 + int(depth * faults.reorder_by)
                heapq.heappush(self._held, (wait_for, data))
            else:
                self._leave(data, now)
        while self._held and self._held[0][0] <= counts["received"]:
            self._leave(heapq.heappop(self._held)[1], now)

    def _leave(self, data: bytes, now: float) -> None:
        if self.faults.delay or self._delayed:  # datagrams that wait already go first, even when the delay is 0 again
            self._delayed.append((now + self.faults.delay, data))
        else:
            self._send(data)

    def release(self, now: float) -> float:
        """Sends datagrams whose time has come. Returns when to be called next."""
        if now >= self._last + QUIET:
            while self._held:
                self._leave(heapq.heappop(self._held)[1], now)
        while self._delayed and self._delayed[0][0] <= now:
            self._send(self._delayed.popleft()[1])
        quiet = self._last + QUIET if self._held else math.inf
        return min(quiet, self._delayed[0][0] if self._delayed else math.inf)


class UdpProxy:
    """Stands between a client, whose peer seems to be `listen`, and `target`, whose peer seems to be `back`.

    The last sender to `listen` is the client, so it may roam. Give `client` if the target is to speak first.
    """

    def __init__(
        self,
        namespace: Namespace,
        listen: tuple[str, int],
        target: tuple[str, int],
        back: tuple[str, int] | None = None,
        client: tuple[str, int] | None = None,
        seed: int | None = None,
        record: int = 200_000,
    ) -> None:
        """Takes `back`, its address towards the target. It remembers the last `record` datagrams."""
        self.seed = secrets.randbits(32) if seed is None else seed
        self.listen, self.target, self.client = listen, target, client
        self._namespace = namespace
        self._back_address = back or ("::" if ":" in target[0] else "0.0.0.0", 0)
        self._recorded: deque[Recorded] = deque(maxlen=record)
        self.forward = _Lane(f"{self.seed} forward", lambda data: self._send(self._back, self.target, data))
        self.backward = _Lane(f"{self.seed} backward", lambda data: self._send(self._front, self.client, data))

    def __enter__(self) -> Self:
        print(f"UdpProxy seed {self.seed}")
        self._front = self._namespace.udp_socket(*self.listen)
        self._back = self._namespace.udp_socket(*self._back_address)
        self.listen, self.back_port = self._front.getsockname()[:2], self._back.getsockname()[1]
        self._bell = Bell()
        self._thread = threading.Thread(target=self._run, name="udp-proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bell.ring()
        self._thread.join()
        for opened in (self._front, self._back, self._bell):
            opened.close()

    def set_faults(self, faults: Faults) -> None:
        """Sets the same faults for both directions. For one, set the `faults` of `forward` or `backward`."""
        self.forward.faults = self.backward.faults = faults

    def recorded(self, direction: Direction | None = None) -> list[Recorded]:
        """Returns the datagrams so far, as they were before any fault."""
        return [each for each in self._recorded.copy() if direction in (None, each.direction)]

    def replay(self, records: Iterable[Recorded], port: int | None = None, rate: float = 4000) -> None:
        """Sends datagrams again, unharmed, from the usual port or another (0 for any)."""
        due = time.monotonic()  # sent all at once they would overflow the receiver's socket and test nothing
        for direction, group in itertools.groupby(records, key=lambda each: each.direction):
            source = usual = self._back if direction == "forward" else self._front
            if port is not None:
                source = self._namespace.udp_socket(usual.getsockname()[0], port)
            for each in group:
                time.sleep(max(0, due - time.monotonic()))
                self._send(source, self.target if direction == "forward" else self.client, each.data)
                due += 1 / rate
            if source is not usual:
                source.close()

    def _send(self, source: socket.socket, destination: tuple[str, int] | None, data: bytes) -> None:
        with contextlib.suppress(OSError):  # without a route or room a network would lose it too
            if destination is not None:
                source.sendto(data, destination)

    def _run(self) -> None:
        poll = select.poll()
        for waited_for in (self._front, self._back, self._bell):
            poll.register(waited_for, select.POLLIN)
        while not self._bell.rung:
            due = min(lane.release(time.monotonic()) for lane in (self.forward, self.backward))
            poll.poll(None if due == math.inf else max(0, math.ceil((due - time.monotonic()) * 1000)))
            self._drain("forward", self._front, self.forward)
            self._drain("backward", self._back, self.backward)

    def _drain(self, direction: Direction, source: socket.socket, lane: _Lane) -> None:
        for _ in range(BATCH):
            try:
                data, sender = source.recvfrom(65535, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            now = time.monotonic()
            if direction == "forward":
                self.client = sender
            self._recorded.append(Recorded(direction, now, data))
            lane.take(data, now)
