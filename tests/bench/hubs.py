"""Runs a gateway whose peers are wireguard-go: one peer, one among 10,000 configured, or 50 at once.

Only the gateway's own cost counts: the other ends are the same for every contestant.
"""

import base64
import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.bench import cost, loads, tcp, udp
from tests.bench.contestants import (
    INNER4,
    OUTER,
    PATIENCE,
    PORT,
    REFERENCE,
    SETTLE,
    SPARES,
    STAGEWIRE,
    WORKERS,
    Entry,
    Tunnel,
    at_once,
    freeze,
    pings,
    thaw,
)
from tests.bench.cost import Bill, Meter
from tests.bench.programs import Implementation, setconf_text
from tests.bench.rows import REPORTING, SILENT

from key_service.peer_reports import INTERVAL, REPORTED
from lab.hub import Spoke
from lab.namespaces import Namespace, veth
from lab.stagewire import executable
from lab.wait import until
from lab.wireguard_go import KeyPair, Peer, new_key_pair

PEERS: Final = 10_000
MANY: Final = 50
TCP_PORT: Final = 5202
BESIDE: Final = ("key-service", "status-service")
"""Programs that no packet passes, and that reports keep busy."""
_numbers = itertools.count(1)


@dataclass(slots=True)
class Hub:
    """Holds a gateway that is up as a bare interface, which `wg` configures."""

    name: str
    namespace: Namespace
    clients: Namespace
    program: Implementation
    keys: KeyPair
    peers: Sequence[Peer]
    last: str
    """The inner address of its last peer."""

    def rest(self) -> None:
        """Stops the gateway and its peers."""
        freeze((self.namespace, self.clients))

    def wake(self) -> None:
        """Waits until its last peer's packets flow and the stages have caught up."""
        thaw((self.namespace, self.clients))
        until(lambda: pings(self.namespace, self.last), PATIENCE, f"packets through {self.name}")
        time.sleep(SETTLE)

    def tunnel(self, sent: bool = False) -> Tunnel:
        """Returns the hub as a tunnel, towards the clients or from them. Only the gateway's cost counts."""
        meter = Meter(self.namespace, self.program.interface, sent)
        ends = (self.namespace, self.clients) if sent else (self.clients, self.namespace)
        return Tunnel(self.name, *ends, (meter,))


def bare(
    program: str,
    namespace: Namespace,
    directory: Path,
    keys: KeyPair,
    addresses: Sequence[str],
    peers: Sequence[Peer],
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Implementation:
    """Returns any contestant's program as a bare interface: Stagewire stands in for wireguard-go there."""
    folder = directory / f"h{next(_numbers)}"
    folder.mkdir()
    names = {"RUN": "run", "STATE": "state", "LOG": "log"}
    env = {f"STAGEWIRE_{name}_DIR": str(folder / each) for name, each in names.items()}
    env |= {"STAGEWIRE_WORKERS": str(WORKERS), "STAGEWIRE_SPARES": str(SPARES), **variables}
    path = executable("stagewire") if program == STAGEWIRE else program
    return Implementation(path, namespace, keys, addresses, peers, PORT, env=env, routes=False)


def _fillers(count: int) -> list[Peer]:
    """Makes peers that never speak, with an IPv4 and an IPv6 prefix each. Any 32 bytes are a public key."""
    return [
        Peer(
            base64.b64encode((number + 2).to_bytes(32, "little")).decode(),
            [f"100.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32", f"fd98:{number:x}::/48"],
        )
        for number in range(count)
    ]


# --- 10,000 peers ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def of_sizes(chosen: Sequence[Entry], directory: Path, peers: int) -> Iterator[list[Hub]]:
    """Brings up each program twice: with one peer, and with `peers` more that never speak."""
    with ExitStack() as stack:
        found = []
        for entry in chosen:
            for count in (0, peers):
                name = sized(entry.name, count)
                found.append(stack.enter_context(_one(entry, name, directory, _fillers(count))))
        yield found


def sized(name: str, peers: int) -> str:
    """Names the contestant with this number of silent peers."""
    return f"{name}, {peers:,} peers" if peers else f"{name}, 1 peer"


@contextlib.contextmanager
def _one(
    entry: Entry,
    name: str,
    directory: Path,
    fillers: Sequence[Peer],
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Hub]:
    with ExitStack() as stack:
        label = f"benchh{next(_numbers)}"
        far, near = (stack.enter_context(Namespace(f"{label}{side}")) for side in "ab")
        veth(far, near, [f"{OUTER[0]}/24"], [f"{OUTER[1]}/24"])
        keys, theirs = new_key_pair(), new_key_pair()
        client = Peer(theirs.public, [f"{INNER4[0]}/32"], f"{OUTER[0]}:{PORT}")
        hub = Peer(keys.public, [f"{INNER4[1]}/32"], f"{OUTER[1]}:{PORT}")
        stack.enter_context(Implementation(REFERENCE, far, theirs, [f"{INNER4[0]}/24"], [hub], PORT))
        # Its prefix is the interface's own network. The silent peers need no route.
        program = bare(str(entry.b), near, directory, keys, [f"{INNER4[1]}/24"], [], variables)
        stack.enter_context(program)
        peers = [*fillers, client]
        program.reconfigure(setconf_text(keys, PORT, peers))
        until(lambda: pings(near, INNER4[0]), PATIENCE, f"packets through {name}")
        stack.callback(thaw, (near, far))
        yield Hub(name, near, far, program, keys, peers, INNER4[0])


@contextlib.contextmanager
def with_and_without_reports(directory: Path, peers: int) -> Iterator[list[Hub]]:
    """Brings up Stagewire twice with `peers` silent peers: its stages report what they count, or nothing.

    A new gateway first reports all its peers, some a second. The measurement is about what comes then.
    """
    entry, fillers = Entry(STAGEWIRE, STAGEWIRE, STAGEWIRE), _fillers(peers)
    with ExitStack() as stack:
        found = [
            stack.enter_context(_one(entry, name, directory, fillers, {"STAGEWIRE_TELEMETRY": on}))
            for name, on in ((REPORTING, "1"), (SILENT, "0"))
        ]
        time.sleep(peers / REPORTED * INTERVAL + SETTLE)
        yield found


def load(hub: Hub) -> tcp.Values:
    """Loads all peers: `setconf` until `wg` returns, `ready` until the last peer's packets flow (s)."""
    hub.program.reconfigure(setconf_text(hub.keys, PORT, []))
    until(lambda: not pings(hub.namespace, INNER4[0]), PATIENCE, "the peers to go")
    text = setconf_text(hub.keys, PORT, hub.peers)
    begun = time.monotonic()
    hub.program.reconfigure(text)
    configured = time.monotonic() - begun
    until(lambda: pings(hub.namespace, INNER4[0]), PATIENCE, "the last peer's packets")
    ready = time.monotonic() - begun
    memory = cost.memory(hub.namespace)
    return {"setconf": configured, "ready": ready, "memory": float(sum(memory.values()))}, {}


# --- 50 peers ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def with_many(chosen: Sequence[Entry], directory: Path, count: int) -> Iterator[list[Hub]]:
    """Brings up each program with `count` peers, each a wireguard-go."""
    with ExitStack() as stack:
        yield [stack.enter_context(_many(entry, directory, count)) for entry in chosen]


@contextlib.contextmanager
def _many(entry: Entry, directory: Path, count: int) -> Iterator[Hub]:
    with ExitStack() as stack:
        label = f"benchm{next(_numbers)}"
        near, far = (stack.enter_context(Namespace(f"{label}{side}")) for side in "ab")
        veth(near, far, [f"{OUTER[0]}/24"], [f"{OUTER[1]}/24"])
        keys = new_key_pair()
        spokes = [Spoke(number, OUTER[1]) for number in range(1, count + 1)]
        peers = [Peer(spoke.keys.public, [spoke.networks[0]], f"{OUTER[1]}:{spoke.port}") for spoke in spokes]
        addresses = [f"{spoke.gateway_inner[0]}/24" for spoke in spokes]
        program = stack.enter_context(bare(str(entry.b), near, directory, keys, addresses, peers))
        clients = [
            Implementation(
                *(REFERENCE, far, spoke.keys, [f"{spoke.inner[0]}/32"]),
                [Peer(keys.public, [f"{spoke.gateway_inner[0]}/32"], f"{OUTER[0]}:{PORT}")],
                spoke.port,
            )
            for spoke in spokes
        ]
        stack.enter_context(at_once(clients))
        for client in clients:  # ends all at once, before each is closed in turn
            stack.callback(client.kill)
        with ThreadPoolExecutor(8) as threads:
            reach = partial(until, timeout=PATIENCE, what=f"packets through {entry.name}")
            waits = [threads.submit(reach, partial(pings, near, spoke.inner[0])) for spoke in spokes]
        for wait in waits:
            wait.result()
        stack.callback(thaw, (near, far))
        yield Hub(entry.name, near, far, program, keys, peers, spokes[-1].inner[0])


def _inner(hub: Hub) -> list[str]:
    return [Spoke(number).inner[0] for number in range(1, len(hub.peers) + 1)]


def tcp_to_all(hub: Hub, seconds: float) -> tcp.Values:
    """Sends a stream to each peer: `goodput` in bit/s, `fairness` (Jain's index, 1: all the same), and the cost."""
    tunnel = hub.tunnel(sent=True)
    before = tunnel.read()
    how = (TCP_PORT, seconds, *_inner(hub))
    counted, _ = loads.between(hub.clients, hub.namespace, "tests.bench.tcp_load", [TCP_PORT], how, seconds)
    bill = Bill.between(before, tunnel.read())
    shares = counted["connections"]
    values = {"goodput": sum(shares) * 8 / seconds, "fairness": fairness(shares), **bill.values()}
    whole = [8 * each for each in counted["seconds"][1:-1]]
    return values, {"seconds": whole}


def fairness(shares: Sequence[float]) -> float:
    """Computes Jain's index: 1 if all shares are equal, 1/n if one share is all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def udp_to_all(hub: Hub, size: int, rate: float, seconds: float) -> tcp.Values:
    """Sends packets to each peer in turn, which makes the shortest trains."""
    values, curves = udp.measure(hub.tunnel(sent=True), size, rate, seconds, _inner(hub))
    values.pop("reordered")  # the numbers run through all peers, and order holds only within one
    return values, curves


def tcp_one(hub: Hub, seconds: int) -> tcp.Values:
    """Sends one stream from the peer that speaks."""
    return tcp.measure(hub.tunnel(), tcp.Shape(), seconds)


def told(hub: Hub, seconds: int) -> tcp.Values:
    """Does the same. `beside` is the share of the gateway's CPU time that key- and status-service take."""
    before = cost.ran(hub.namespace)
    values, curves = tcp_one(hub, seconds)
    used = cost.ran(hub.namespace)
    used.subtract(before)
    return {**values, "beside": sum(used[name] for name in BESIDE) / used.total()}, curves
