"""The demo's two gateways: a network namespace each, a veth pair between them, everything below one directory."""

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
"""Only root can make a name there, and it is short, which the pipes' paths must be."""
DIRECTORY_PREFIX: Final = "sw-demo-"
ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Side:
    """One gateway with its addresses: `outer` on the veth, the others in the tunnel."""

    label: str
    namespace: Namespace
    keys: KeyPair
    outer: str
    inner4: str
    inner6: str
    gateway: Gateway

    @property
    def directory(self) -> Path:
        """Where its configuration, pipes, state and logs are."""
        return self.gateway.config_path.parent

    def processes(self) -> dict[tuple[str, int], int]:
        """The pids of those at work by stage and number."""
        return self.gateway.held()

    def spares(self) -> list[int]:
        """The pids of those that wait."""
        return sorted({*self.gateway.processes()} - {*self.gateway.held().values()})

    def peer(self) -> dict[str, Any]:
        """What its status says of the other side."""
        peer: dict[str, Any] = self.gateway.status()["peers"][0]
        return peer


def _keys_that_move() -> KeyPair:
    """Of a peer that another worker is home to when there is one more: one in three is."""
    while True:
        keys = new_key_pair()
        if home_of(base64.b64decode(keys.public), WORKERS + 1) == WORKERS:
            return keys


class Network:
    """Nothing at first, then what `build` and `start` made; leaving the context removes it all."""

    def __init__(self, removing: Callable[[], AbstractContextManager[None]]) -> None:
        """`removing` is entered while all is removed."""
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
        peer = Peer(others.public, [f"10.9.0.{theirs}/32", f"fd09::{theirs}/128"], f"192.0.2.{theirs}:{PORT}")
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
        """Both at once: most of it is waiting."""
        with ThreadPoolExecutor() as threads:
            for side in self.sides:
                if side.namespace.exists():
                    threads.submit(side.gateway.close)

    def __exit__(self, *_: object) -> None:
        if self._kept:
            return
        for number in (*ENDING_SIGNALS, signal.SIGALRM):  # whoever is impatient now would leave half of it behind
            signal.signal(number, signal.SIG_IGN)
        with self._removing():
            self._stack.close()

    def build(self) -> None:
        """The directory, the namespaces and the wire."""
        for side in self.sides:
            side.directory.mkdir(parents=True)
            side.namespace.__enter__()  # its end is on the stack already
        self.link = veth(self.a.namespace, self.b.namespace, [f"{self.a.outer}/24"], [f"{self.b.outer}/24"])

    def start(self, side: Side) -> float:
        """`stagewire up`; returns the seconds that it took."""
        begun = time.monotonic()
        side.gateway.__enter__()  # its end is on the stack already
        return time.monotonic() - begun

    def keep(self) -> None:
        """Leaves everything as it is when the context ends, with a script on each side to enter it by."""
        for side in self.sides:
            script = side.directory / "in"
            programs = shlex.quote(str(executable("stagewire").parent))
            script.write_text(f'#!/bin/sh\nPATH={programs}:$PATH\nexport PATH\nexec {entering(side)} "$@"\n')
            script.chmod(0o755)
        self._kept = True


def environment(side: Side) -> dict[str, str]:
    """What the gateway's operator has to set, beyond what everybody has."""
    gateway = side.gateway
    return {
        "STAGEWIRE_RUN_DIR": str(gateway.run_directory),
        "STAGEWIRE_STATE_DIR": str(gateway.state_directory),
        "STAGEWIRE_LOG_DIR": str(gateway.log_directory),
    }


def entering(side: Side) -> str:
    """The start of a shell command that acts in the gateway's namespace and environment."""
    variables = [f"{name}={value}" for name, value in environment(side).items()]
    return shlex.join(["ip", "netns", "exec", side.namespace.name, "env", *variables])


def remove_kept() -> list[str]:
    """Removes what earlier runs kept, or left behind when they were killed. Returns what that was."""
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
    """Whether the demo with this pid is still running its show."""
    try:
        return b"lab.demo" in (Path("/proc") / pid / "cmdline").read_bytes()
    except OSError:
        return False
