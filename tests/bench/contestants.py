"""Brings up the contestants: tunnels between two namespaces of their own, all at once.

While one is measured, the others stand still. Every tunnel has the same addresses, as no two share a namespace. Load
comes from the end `a`.
"""

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from tests.bench.cost import Meter, Reading
from tests.bench.programs import Implementation

from lab.hub import configuration
from lab.namespaces import Link, Namespace, add_addresses, veth
from lab.stagewire import Gateway
from lab.wait import until
from lab.wireguard_go import KeyPair, Peer, new_key_pair

T = TypeVar("T")

STAGEWIRE: Final = "stagewire"
LIBZMQ: Final = "stagewire, libzmq"
REFERENCE: Final = "wireguard-go"
CEILING: Final = "veth"
ONE_END: Final = "stagewire at one end"
WORKERS: Final = 2
SPARES: Final = 1
"""The default."""
PATIENCE: Final = 60
"""s; an idle machine needs a moment."""
SETTLE: Final = 1.1
"""s after a rest in which heartbeats arrive again, and stages that seemed silent say hello."""
PORT: Final = 51820
INTERFACE: Final = "wg0"
OUTER: Final = ("192.0.2.1", "192.0.2.2")
INNER4: Final = ("10.9.0.1", "10.9.0.2")
INNER6: Final = ("fd09::1", "fd09::2")


@dataclass(frozen=True, slots=True)
class Entry:
    """Describes a contestant before it is up: the program at each end, or None for the bare wire."""

    name: str
    a: str | None
    b: str | None


def entries(peer: str | None) -> list[Entry]:
    """Lists all contestants. `peer` is the path of a further program, started as wireguard-go is."""
    found = [
        Entry(STAGEWIRE, STAGEWIRE, STAGEWIRE),
        Entry(REFERENCE, REFERENCE, REFERENCE),
        Entry(CEILING, None, None),
        Entry(ONE_END, STAGEWIRE, REFERENCE),
    ]
    if peer:
        name = Path(peer).name
        taken = {entry.name for entry in found}
        found.append(Entry(f"{name} (BENCH_PEER)" if name in taken else name, peer, peer))
    return found


class Contestant(Protocol):
    """Rests while another contestant is measured: a gateway's heartbeats alone need CPU."""

    @property
    def name(self) -> str:
        """Returns the contestant's name in the report."""

    def rest(self) -> None:
        """Stands still until woken."""

    def wake(self) -> None:
        """Returns when it is ready to be measured."""


def freeze(namespaces: Sequence[Namespace]) -> None:
    """Stops all processes of the namespaces at once. The processes do not notice."""
    _signal(namespaces, signal.SIGSTOP)


def thaw(namespaces: Sequence[Namespace]) -> None:
    """Continues all processes. To a gateway it is as if the machine had been suspended."""
    _signal(namespaces, signal.SIGCONT)


def _signal(namespaces: Sequence[Namespace], number: signal.Signals) -> None:
    for pid in [pid for namespace in namespaces if namespace.exists() for pid in namespace.pids()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass(slots=True)
class Tunnel:
    """Holds a contestant that is up. `meters` are of the ends whose cost counts."""

    name: str
    a: Namespace
    b: Namespace
    meters: tuple[Meter, ...]

    def rest(self) -> None:
        freeze((self.a, self.b))

    def wake(self) -> None:
        """Waits until packets flow and the stages have caught up."""
        thaw((self.a, self.b))
        until(self.answers, PATIENCE, f"packets through {self.name}")
        time.sleep(SETTLE)

    def read(self) -> Reading:
        """Reads its meters."""
        return Reading.of(self.meters)

    def answers(self) -> bool:
        """Tells whether a ping comes through, in IPv4 and IPv6."""
        return all(pings(self.a, address) for address in (INNER4[1], INNER6[1]))


def pings(namespace: Namespace, address: str) -> bool:
    """Tells whether a ping is answered within a second."""
    return namespace.run("ping", "-n", "-c", "1", "-W", "1", address, check=False).returncode == 0


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Makes a folder with a path short enough for Unix sockets, open to the services' users."""
    directory = Path(tempfile.mkdtemp(prefix="sw-bench-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def stagewire_end(
    namespace: Namespace, directory: Path, text: str, workers: int = WORKERS, **env: str
) -> Iterator[Gateway]:
    """Runs a gateway that ends at once with its context, not in order."""
    directory.mkdir(exist_ok=True)
    gateway = Gateway(namespace, INTERFACE, directory, text, workers, SPARES, env)
    try:
        gateway.__enter__()
        yield gateway
    finally:
        gateway.cut_off()


def end(
    program: str, namespace: Namespace, directory: Path, number: int, keys: Sequence[KeyPair]
) -> AbstractContextManager[Any]:
    """Returns an end of a tunnel of two. `number` is 0 or 1, `keys` are both ends'."""
    mine, theirs = keys[number], keys[1 - number]
    addresses = [f"{INNER4[number]}/24", f"{INNER6[number]}/64"]
    other = 1 - number
    peer = Peer(theirs.public, [f"{INNER4[other]}/32", f"{INNER6[other]}/128"], f"{OUTER[other]}:{PORT}")
    if program in {STAGEWIRE, LIBZMQ}:
        pipes = "libzmq" if program == LIBZMQ else "direct"
        text = configuration(mine, PORT, addresses, [peer])
        return stagewire_end(namespace, directory, text, STAGEWIRE_PIPES=pipes)
    return Implementation(program, namespace, mine, addresses, [peer], PORT)


def _device(ready: object, link: Link, number: int) -> str:
    if isinstance(ready, Gateway):
        return ready.name
    if isinstance(ready, Implementation):
        return ready.interface
    return (link.a_interface, link.b_interface)[number]


@contextlib.contextmanager
def up(entry: Entry, label: str, directory: Path) -> Iterator[Tunnel]:
    """Brings a contestant up and waits until packets flow. `label` names its namespaces."""
    with ExitStack() as stack:
        spaces = [stack.enter_context(Namespace(f"{label}{side}")) for side in "ab"]
        link = veth(spaces[0], spaces[1], [f"{OUTER[0]}/24"], [f"{OUTER[1]}/24"])
        keys = [new_key_pair(), new_key_pair()]
        meters = []
        for number, program in enumerate((entry.a, entry.b)):
            ready: object = None
            if program is None:
                device = _device(None, link, number)
                add_addresses(spaces[number], device, [f"{INNER4[number]}/24", f"{INNER6[number]}/64"])
            else:
                folder = directory / f"{label}{'ab'[number]}"
                ready = stack.enter_context(end(program, spaces[number], folder, number, keys))
            meters.append(Meter(spaces[number], _device(ready, link, number)))
        tunnel = Tunnel(entry.name, spaces[0], spaces[1], tuple(meters))
        until(tunnel.answers, PATIENCE, f"packets through {entry.name}")
        stack.callback(thaw, spaces)  # a stopped process would not act on a request to end
        yield tunnel


@contextlib.contextmanager
def all_up(chosen: Sequence[Entry], directory: Path) -> Iterator[list[Tunnel]]:
    """Brings all up at the same time, as each mostly waits."""
    with at_once([up(entry, f"bench{number}", directory) for number, entry in enumerate(chosen)]) as tunnels:
        yield tunnels


@contextlib.contextmanager
def at_once(contexts: Sequence[AbstractContextManager[T]], threads: int = 8) -> Iterator[list[T]]:
    """Enters all contexts at the same time. Leaves each entered one, also when others failed or a signal came."""
    attempts: list[Future[T]] = []

    def leave() -> None:
        with ExitStack() as stack:
            for context, attempt in zip(contexts, attempts, strict=False):
                if not attempt.cancelled() and attempt.exception() is None:
                    stack.push(context)

    with ExitStack() as stack:
        stack.callback(leave)
        pool = ThreadPoolExecutor(threads)
        stack.callback(pool.shutdown, cancel_futures=True)  # waits for contexts that are being entered
        attempts.extend(pool.submit(context.__enter__) for context in contexts)
        yield [attempt.result() for attempt in attempts]
