"""Does the same faults to Debian's wireguard-go in the gateway's place: one process, which an init starts again."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from tests.chaos.drive import Outcome
from tests.chaos.house import House
from tests.chaos.scene import Scene

from lab.wait import NeverHappened, until

NOTICED: Final = 1.0
"""s after which an init would kill a hung wireguard-go, which has no watchdog of its own."""
BACK_WITHIN: Final = 40.0
SETTLED: Final = 1.5
REPLAYS: Final = 40


def compare(scene: Scene, count: int, say: Callable[[str], None]) -> dict[str, list[Outcome]]:
    """Takes Stagewire down and does each fault `count` times to wireguard-go."""
    house = scene.house
    house.gateway.close()
    found: dict[str, list[Outcome]] = {"kill": [], "hang": []}
    with ExitStack() as stack:
        try:
            daemon = stack.enter_context(house.network.reference())
            until(lambda: _flowing(house), BACK_WITHIN, "traffic through wireguard-go")
            for number in range(1, count + 1):
                for name, outcomes in found.items():
                    begun, first = time.time(), house.record.ticks
                    os.kill(daemon.pid, signal.SIGSTOP if name == "hang" else signal.SIGKILL)
                    house.pace(NOTICED if name == "hang" else 0)
                    if name == "hang":
                        os.kill(daemon.pid, signal.SIGKILL)
                    daemon.close()
                    daemon = stack.enter_context(house.network.reference())
                    outcome = _outcome(house, name, number, begun, first)
                    outcomes.append(outcome)
                    say(f"wireguard-go, {name}: {outcome.outage * 1000:.0f} ms, {outcome.lost} lost; {outcome.note}")
        except NeverHappened as late:
            say(f"wireguard-go: {late}")
    return found


def _flowing(house: House) -> bool:
    now = time.time()
    return all(house.record.alive(flow, 0.1, now) for flow in range(house.record.flows))


def _outcome(house: House, name: str, number: int, begun: float, first: int) -> Outcome:
    record = house.record
    strange = record.get("strange")
    until(lambda: _flowing(house), BACK_WITHIN, f"traffic after {name} {number}")
    whole = time.time() - begun
    played = house.watch.replay(REPLAYS)
    house.pace(SETTLED)
    last = record.ticks - int(0.3 / 0.0016)
    outages = house.outages(begun)
    answered = record.get("strange") - strange
    delays = record.delays(first, last)
    worst, lost = max(outages.values()), sum(record.lost(flow, first, last) for flow in range(record.flows))
    return Outcome(
        f"wireguard-go {name}", number, begun, time.time() - begun, f"{answered} of {played} replays answered",
        worst, 0.0, worst, 0.0, lost, 0, outages, float(delays.max()) if len(delays) else 0.0,
        record.stalls(first, last), whole, {}, [],
    )  # fmt: skip
