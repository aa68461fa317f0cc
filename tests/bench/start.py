"""Measures the time from the command to the first packet, a gateway's memory, and its cost while nothing passes."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import cost, tcp
from tests.bench.contestants import INNER4, OUTER, PATIENCE, PORT, REFERENCE, Entry, Tunnel, end, pings
from tests.bench.cost import Meter
from tests.bench.programs import Implementation

from lab.namespaces import Namespace, veth
from lab.stagewire import Gateway
from lab.wait import until
from lab.wireguard_go import KeyPair, Peer, new_key_pair

QUIET: Final = 20.0
"""s from the traffic's end until nothing of it goes on: a keepalive comes after ten, and spares get ready again."""
IDLE: Final = 5.0
"""s that a gateway is watched while nothing passes."""


@dataclass(slots=True)
class Place:
    """Names where a gateway will start: `near`. Its peer, a wireguard-go, runs in `far`."""

    name: str
    program: str
    near: Namespace
    far: Namespace
    keys: Sequence[KeyPair]
    directory: Path

    def rest(self) -> None:
        """Does nothing: no gateway runs between the measurements."""

    def wake(self) -> None:
        """Does nothing: it never rests."""


@contextlib.contextmanager
def places(chosen: Sequence[Entry], directory: Path) -> Iterator[list[Place]]:
    """Makes a place for each program."""
    with ExitStack() as stack:
        found = []
        for number, entry in enumerate(chosen):
            near, far = (stack.enter_context(Namespace(f"benchs{number}{side}")) for side in "ab")
            veth(near, far, [f"{OUTER[0]}/24"], [f"{OUTER[1]}/24"])
            keys = [new_key_pair(), new_key_pair()]
            peer = Peer(keys[0].public, [f"{INNER4[0]}/32"])
            stack.enter_context(Implementation(REFERENCE, far, keys[1], [f"{INNER4[1]}/24"], [peer], PORT))
            found.append(Place(entry.name, str(entry.a), near, far, keys, directory / f"s{number}"))
        yield found


def measure(place: Place) -> tcp.Values:
    """Returns `first_packet` in s from the command, memory in bytes (PSS), and `cost.idle`.

    `memory` is at the end of two seconds of TCP, `memory_idle` after QUIET s without.
    """
    begun = time.monotonic()
    with end(place.program, place.near, place.directory, 0, place.keys) as ready:
        until(lambda: pings(place.near, INNER4[1]), PATIENCE, "the first packet")
        values = {"first_packet": time.monotonic() - begun}
        device = ready.name if isinstance(ready, Gateway) else ready.interface
        tunnel = Tunnel(place.name, place.near, place.far, (Meter(place.near, device),))
        tcp.measure(tunnel, tcp.Shape(4, both=True), 2)
        by_program = cost.memory(place.near)
        time.sleep(QUIET)
        values |= cost.idle(place.near, IDLE)
        values["memory_idle"] = float(sum(cost.memory(place.near).values()))
    values |= {f"memory/{name}": float(size) for name, size in by_program.items()}
    return {**values, "memory": float(sum(by_program.values()))}, {}
