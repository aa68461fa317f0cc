"""TCP through a limit, by a virtual clock: it finds the rate, both ways at once, and a full stream delays nobody else.

The sender here grows by a packet each round trip and shrinks to 0.7 at a loss: slower than Linux's own.
"""

import heapq
import random
from collections.abc import Callable
from itertools import count

import pytest

from stagewire.proto.shaping import BURST, GRAIN, Limits
from stagewire.reasons import Reasons

SIZE, ACK = 1420, 52
SECONDS, WARM = 12.0, 4.0
WINDOW = 64 * 1024
"""Bytes that a receiver lets be under way at least: what Linux has for a new stream."""
WITHIN = 0.05
NEVER = float("inf")


class World:
    """A gateway's limits of one peer, the far end of each flow, and the time."""

    def __init__(self, rates: tuple[int, int], *, rtt: float, late: float = 0.0) -> None:
        """Takes the round trip of the path (s), and by how much the worker wakes too late at most (s)."""
        self.now, self.limits = 0.0, Limits(rates, None, Reasons(), 0.0)
        self.rtt, self.late = rtt, late
        self.rng = random.Random(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._arrives: dict[tuple[bytes, bool], Callable[[int], None]] = {}
        self._due = NEVER

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def arrives(self, port: int, to_peer: bool, action: Callable[[int], None]) -> None:
        self._arrives[port.to_bytes(2), to_peer] = action

    def send(self, port: int, to_peer: bool, number: int, size: int) -> None:
        ends = bytes([10, 0, 0, 1, 10, 0, 0, 2] if to_peer else [10, 0, 0, 2, 10, 0, 0, 1])
        packet = b"\x45" + bytes(8) + b"\x06" + bytes(2) + ends + port.to_bytes(2) * 2 + number.to_bytes(8)
        packet += bytes(size - len(packet))
        self.at(self.now + self.rtt / 2, lambda: self._come(packet, to_peer))

    def _come(self, packet: bytes, to_peer: bool) -> None:
        take = self.limits.to_peer if to_peer else self.limits.from_peer
        self._pass(take([packet], 0, self.now), to_peer)

    def _pass(self, packets: list[bytes], to_peer: bool) -> None:
        for packet in packets:
            self._arrives[packet[20:22], to_peer](int.from_bytes(packet[24:32]))
        due = self.limits.next_deadline()
        if due is not None and due < self._due:
            self._due = due
            self.at(max(due, self.now) + self.rng.uniform(0, self.late), self._wake)

    def _wake(self) -> None:
        self._due = NEVER
        self._pass(self.limits.to_peer((), 0, self.now), True)
        self._pass(self.limits.from_peer((), 0, self.now), False)


class Stream:
    """A TCP stream that always has something to send, with acknowledgements of each second packet."""

    def __init__(self, world: World, port: int, to_peer: bool, begins: float = 0.0) -> None:
        self._world, self._port, self._to_peer = world, port, to_peer
        self._window, self._threshold, self._until = 10.0, NEVER, 0
        self._most = int(WINDOW + 2 * world.limits.rates[not to_peer] / 8 * world.rtt) // SIZE
        self._next = self._acked = self._seen = 0
        self._out: dict[int, None] = {}
        self._arrived: list[int] = []
        self._heard = 0.0
        self.passed = 0
        world.arrives(port, to_peer, self._come)
        world.arrives(port, not to_peer, self._acknowledged)
        world.at(begins, self._send)
        world.at(begins + 0.2, self._timeout)

    def _send(self) -> None:
        while len(self._out) < min(self._most, int(self._window)):
            self._out[self._next] = None
            self._world.send(self._port, self._to_peer, self._next, SIZE)
            self._next += 1

    def _come(self, number: int) -> None:
        self._arrived.append(number)
        self.passed += SIZE
        if len(self._arrived) % 2 == 0 or number != self._arrived[-2:][0] + 1:
            self._world.send(self._port, not self._to_peer, len(self._arrived), ACK)

    def _acknowledged(self, upto: int) -> None:
        self._heard = self._world.now
        for number in self._arrived[self._seen : upto]:
            self._out.pop(number, None)
            self._acked = max(self._acked, number)
            self._window += 1 if self._window < self._threshold else 1 / self._window
        self._seen = max(self._seen, upto)
        lost = [number for number in self._out if number < self._acked - 3]
        if lost and lost[-1] >= self._until:
            self._window = self._threshold = max(2.0, self._window * 0.7)
            self._until = self._next
        for number in lost:  # what is sent again has a number of its own
            del self._out[number]
        self._send()

    def _timeout(self) -> None:
        if self._world.now - self._heard > 1.0:
            self._window, self._threshold, self._until = 1.0, max(2.0, self._window / 2), self._next
            self._out.clear()
            self._heard = self._world.now
            self._send()
        self._world.at(self._world.now + 0.2, self._timeout)


def share(world: World, rate: int, *streams: Stream) -> float:
    """What the streams had of a rate, after the first seconds."""
    world.run(WARM)
    before = sum(each.passed for each in streams)
    world.run(SECONDS)
    return 8 * (sum(each.passed for each in streams) - before) / (SECONDS - WARM) / rate


RATES = [500_000, 2_000_000, 20_000_000]


@pytest.mark.parametrize("late", [0.0, 0.05])
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("rtt", [0.001, 0.05])
@pytest.mark.parametrize("rate", RATES)
def test_tcp_has_its_rate(rate: int, rtt: float, streams: int, late: float) -> None:
    world = World((rate, rate), rtt=rtt, late=late)
    found = share(world, rate, *(Stream(world, port, True) for port in range(streams)))
    assert 1 - WITHIN <= found <= 1 + BURST / (SECONDS - WARM) + 0.001


@pytest.mark.parametrize("rates", [(5_000_000, 1_000_000), (20_000_000, 20_000_000)])
@pytest.mark.parametrize("rtt", [0.001, 0.05])
def test_tcp_has_its_rates_both_ways_at_once(rates: tuple[int, int], rtt: float) -> None:
    world = World(rates, rtt=rtt, late=0.02)
    streams = Stream(world, 1, True), Stream(world, 2, False)
    world.run(WARM)
    before = [each.passed for each in streams]
    world.run(SECONDS)
    down, up = (
        8 * (each.passed - at) / (SECONDS - WARM) / rate for each, at, rate in zip(streams, before, rates, strict=True)
    )
    assert down >= 1 - WITHIN
    # The acknowledgements of the one take their part of the other's way.
    assert up + rates[0] * ACK / (2 * SIZE) / rates[1] >= 1 - WITHIN


class Calls:
    """Sends a small packet each 50 ms, and knows the longest that one took beyond the path."""

    def __init__(self, world: World, port: int, to_peer: bool) -> None:
        self._world, self._port, self._to_peer = world, port, to_peer
        self._sent: list[float] = []
        self.longest = 0.0
        world.arrives(port, to_peer, self._come)
        world.at(0.0, self._send)

    def _send(self) -> None:
        self._sent.append(self._world.now)
        self._world.send(self._port, self._to_peer, len(self._sent) - 1, 120)
        self._world.at(self._world.now + 0.05, self._send)

    def _come(self, number: int) -> None:
        self.longest = max(self.longest, self._world.now - self._sent[number] - self._world.rtt / 2)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("to_peer", [True, False])
def test_a_call_waits_for_no_stream(rate: int, to_peer: bool) -> None:
    world = World((rate, rate), rtt=0.02)
    streams = [Stream(world, port, to_peer) for port in range(4)]
    call = Calls(world, 9, to_peer)
    world.run(WARM)
    call.longest = 0.0
    assert share(world, rate, *streams) > 1 - 2 * WITHIN
    assert call.longest <= 2 * SIZE * 8 / rate + GRAIN + 0.001, "a packet that is on its way, and a look"


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_stream_goes_on_at_another_rate_at_once(factor: float) -> None:
    rate = 4_000_000
    world = World((rate, rate), rtt=0.01)
    stream = Stream(world, 1, True)
    world.run(WARM)
    rate = int(rate * factor)
    to_peer, from_peer = world.limits.change((rate, rate), 0, world.now)
    assert to_peer == from_peer == [], "what waits goes on waiting"
    for second in range(1, 7):
        before = stream.passed
        world.run(WARM + second)
        assert 0.9 <= 8 * (stream.passed - before) / rate <= 1.15, f"second {second}"
