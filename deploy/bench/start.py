"""From nothing to the first packet, and what a gateway then holds in memory: one gateway alone, its peer already there."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import cost, tcp
from bench.contestants import INNER4, OUTER, PATIENCE, PORT, REFERENCE, Entry, Tunnel, end, pings
from bench.cost import Meter
from bench.programs import Implementation
from lab.namespaces import Namespace, veth
from lab.stagewire import Gateway
from lab.wait import until
from lab.wireguard_go import KeyPair, Peer, new_key_pair


@dataclass(slots=True)
class Place:
    """Where a gateway is to start: `near`. Its peer, a wireguard-go, runs in `far`."""

    name: str
    program: str
    near: Namespace
    far: Namespace
    keys: Sequence[KeyPair]
    directory: Path

    def rest(self) -> None:
        """Nothing runs there that has a heartbeat."""

    def wake(self) -> None:
        """It never rested."""


@contextlib.contextmanager
def places(chosen: Sequence[Entry], directory: Path) -> Iterator[list[Place]]:
    """One for each program."""
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
    """`first_packet` in s from the command; `memory` in bytes (PSS) of all processes after two seconds of TCP."""
    begun = time.monotonic()
    with end(place.program, place.near, place.directory, 0, place.keys) as ready:
        until(lambda: pings(place.near, INNER4[1]), PATIENCE, "the first packet")
        values = {"first_packet": time.monotonic() - begun}
        device = ready.name if isinstance(ready, Gateway) else ready.interface
        tunnel = Tunnel(place.name, place.near, place.far, (Meter(place.near, device),))
        tcp.measure(tunnel, tcp.Shape(4, both=True), 2)
        by_program = cost.memory(place.near)
    values |= {f"memory/{name}": float(size) for name, size in by_program.items()}
    return {**values, "memory": float(sum(by_program.values()))}, {}
