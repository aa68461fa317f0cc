"""Runs a gateway with 500 peers that all speak. One process is all of them, so they cost the machine little."""

import contextlib
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import loads, udp
from tests.bench.contestants import OUTER, PORT, Entry
from tests.bench.cost import Bill, Meter, Reading
from tests.bench.handshakes import Gateway, gateway_of_many, key_and_pair, peers_of
from tests.bench.tcp import Values

from lab.namespaces import stop

PEERS: Final = 500


@dataclass(slots=True)
class Crowd:
    """Holds a gateway that is up, and what its peers' process needs to know."""

    gateway: Gateway
    target: bytes
    seed: bytes
    inner: Sequence[str]

    @property
    def name(self) -> str:
        return self.gateway.name

    def rest(self) -> None:
        """Stops the gateway."""
        self.gateway.rest()

    def wake(self) -> None:
        """Lets the gateway go on."""
        self.gateway.wake()


@contextlib.contextmanager
def crowds(chosen: Sequence[Entry], directory: Path, count: int = PEERS) -> Iterator[list[Crowd]]:
    """Brings up each contestant as the gateway of `count` peers."""
    seed = secrets.token_bytes(32)
    target, keys = key_and_pair()
    peers = peers_of(seed, count)
    inner = [peer.allowed_ips[0].partition("/")[0] for peer in peers]
    with ExitStack() as stack:
        found = []
        for number, entry in enumerate(chosen):
            gateway = gateway_of_many(stack, f"benchc{number}", entry, directory, keys, peers)
            gateway.near.run("ip", "route", "add", "10.200.0.0/16", "dev", gateway.device)
            found.append(Crowd(gateway, target, seed, inner))
        yield found


def measure(crowd: Crowd, size: int, rate: float, seconds: float) -> Values:
    """Sends packets to each peer in turn: the figures of `udp`, and the gateway's cost."""
    gateway = crowd.gateway
    meters = (Meter(gateway.near, gateway.device, sent=True),)
    who = (crowd.target.hex(), crowd.seed.hex(), len(crowd.inner), OUTER[1], PORT, size)
    counting = loads.start(gateway.far, "tests.bench.crowd_load", *who)
    try:
        before = Reading.of(meters)
        how = (udp.PORT, size, rate, seconds, *crowd.inner)
        said = loads.run(gateway.near, "tests.bench.udp_load", "source", *how, seconds=seconds)
        counted = loads.finish(counting)
        bill = Bill.between(before, Reading.of(meters))
    finally:
        stop(counting, patience=1)
    if counted["peers"] < len(crowd.inner):
        raise RuntimeError(f"{crowd.name}: only {counted['peers']} of {len(crowd.inner)} peers got a packet")
    values = udp.figures(json.loads(said), counted, size) | bill.values()
    values.pop("reordered")  # the numbers run through all peers
    return values, {}
