"""Sets up the demo's two gateways: a namespace each, a veth pair between them, all files below one directory."""

import base64
import contextlib
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from key_service.homes import home_of
from lab.namespaces import Link, Namespace, veth
from lab.stagewire import Gateway, executable
from lab.wireguard_go import KeyPair, Peer, new_key_pair

INTERFACE: Final = "wg0"
PORT: Final = 51820
WORKERS: Final = 2
SPARES: Final = 1
SIDES: Final = ("a", "b")
PARENT: Final = Path("/run")
"""Only root can make a name there. It is short, as the paths of pipes must be."""
DIRECTORY_PREFIX: Final = "sw-demo-"
ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Side:
    """Describes one gateway. `outer` is its address on the veth, the others are in the tunnel."""

    label: str
    namespace: Namespace
    keys: KeyPair
    outer: str
    inner4: str
    inner6: str
    gateway: Gateway

    @property
    def directory(self) -> Path:
        """Returns the folder of its configuration, pipes, state and logs."""
        return self.gateway.config_path.parent

    def processes(self) -> dict[tuple[str, int], int]:
        """Returns the pids of the holders by stage and number."""
        return self.gateway.held()

    def spares(self) -> list[int]:
        """Returns the pids of the spares."""
        return sorted({*self.gateway.processes()} - {*self.gateway.held().values()})

    def peer(self) -> dict[str, Any]:
        """Returns what its status says of the other side."""
        peer: dict[str, Any] = self.gateway.status()["peers"][0]
        return peer


def _keys_that_move() -> KeyPair:
    """Makes keys of a peer whose home worker changes when `stagewire scale` adds one. A third of all keys do."""
    while True:
        keys = new_key_pair()
        if home_of(base64.b64decode(keys.public), WORKERS + 1) == WORKERS:
            return keys


class Network:
    """Builds nothing at first; `build` and `start` do. Leaving the context removes it all."""

    def __init__(self, removing: Callable[[], AbstractContextManager[None]]) -> None:
        """Takes `removing`, a context that is entered while the network is removed."""
        self._removing = removing
        self.directory = PARENT / f"{DIRECTORY_PREFIX}{os.getpid()}"
        self._stack, self._kept = contextlib.ExitStack(), False
        keys = [_keys_that_move() for _ in SIDES]
        self.a, self.b = (self._side(number, keys[number], keys[1 - number]) for number in (0, 1))
        self.sides = (self.a, self.b)
        self.link: Link

    def _side(self, number: int, keys: KeyPair, others: KeyPair) -> Side:
        label, mine, theirs = SIDES[number], number + 1, 2 - number
        namespace = Namespace(f"demo-{label}")
        interface = [
            "[Interface]",
            f"PrivateKey = {keys.private}",
            f"ListenPort = {PORT}",
            f"Address = 10.9.0.{mine}/24, fd09::{mine}/64",
        ]
        peer = Peer(
            others.public,
            [f"10.9.0.{theirs}/32", f"fd09::{theirs}/128"],
            f"192.0.2.{theirs}:{PORT}",
            name=f"gateway {SIDES[1 - number]}",
        )
        text = "\n".join([*interface, "", peer.section(), ""])
        gateway = Gateway(namespace, INTERFACE, self.directory / label, text, WORKERS, SPARES)
        return Side(label, namespace, keys, f"192.0.2.{mine}", f"10.9.0.{mine}", f"fd09::{mine}", gateway)

    def __enter__(self) -> Self:
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        for side in self.sides:
            self._stack.callback(side.namespace.close)
        self._stack.callback(self._down)
        return self

    def _down(self) -> None:
        """Takes both gateways down at once: each mostly waits."""
        with ThreadPoolExecutor() as threads:
            for side in self.sides:
                if side.namespace.exists():
                    threads.submit(side.gateway.close)

    def __exit__(self, *_: object) -> None:
        if self._kept:
            return
        for number in (*ENDING_SIGNALS, signal.SIGALRM):  # a second signal would leave half of it behind
            signal.signal(number, signal.SIG_IGN)
        with self._removing():
            self._stack.close()

    def build(self) -> None:
        """Makes the directory, the namespaces and the wire."""
        for side in self.sides:
            side.directory.mkdir(parents=True)
            side.namespace.__enter__()  # __enter__ put its end on the stack
        self.link = veth(self.a.namespace, self.b.namespace, [f"{self.a.outer}/24"], [f"{self.b.outer}/24"])

    def start(self, side: Side) -> float:
        """Runs `stagewire up`. Returns the seconds that it needed."""
        begun = time.monotonic()
        side.gateway.__enter__()  # __enter__ put its end on the stack
        return time.monotonic() - begun

    def keep(self) -> None:
        """Leaves everything as it is when the context ends, with a script on each side that enters it."""
        for side in self.sides:
            script = side.directory / "in"
            programs = shlex.quote(str(executable("stagewire").parent))
            script.write_text(f'#!/bin/sh\nPATH={programs}:$PATH\nexport PATH\nexec {entering(side)} "$@"\n')
            script.chmod(0o755)
        self._kept = True


def environment(side: Side) -> dict[str, str]:
    """Returns the variables that the gateway's operator sets."""
    gateway = side.gateway
    return {
        "STAGEWIRE_RUN_DIR": str(gateway.run_directory),
        "STAGEWIRE_STATE_DIR": str(gateway.state_directory),
        "STAGEWIRE_LOG_DIR": str(gateway.log_directory),
    }


def entering(side: Side) -> str:
    """Returns the start of a shell command that acts in the gateway's namespace and environment."""
    variables = [f"{name}={value}" for name, value in environment(side).items()]
    return shlex.join(["ip", "netns", "exec", side.namespace.name, "env", *variables])


def remove_kept() -> list[str]:
    """Removes what earlier runs kept, or left behind when they were killed. Returns the removed names."""
    removed = []
    for path in sorted(Path("/run/netns").glob("sw-*-demo-[ab]")):
        pid, label = path.name.removeprefix("sw-").split("-", 1)
        if not _plays(pid):
            namespace = Namespace(label)
            namespace.name = path.name
            namespace.close()
            removed.append(path.name)
    for path in sorted(PARENT.glob(f"{DIRECTORY_PREFIX}*")):
        if not _plays(path.name.removeprefix(DIRECTORY_PREFIX)):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(str(path))
    return removed


def _plays(pid: str) -> bool:
    """Tells whether the demo with this pid still runs."""
    try:
        return b"lab.demo" in (Path("/proc") / pid / "cmdline").read_bytes()
    except OSError:
        return False
