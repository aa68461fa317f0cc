"""Keeps the list of what `stagewire up` did besides starting services: its network namespace, its hooks, its DNS.

`up` writes each step before it takes it, one JSON object a line, to `<run>/command/done`. Only root enters that folder,
because the hooks in the list run as root. `down`, a failed `up` and the next `up` after a crash undo the list. The present
configuration file does not matter for that.
"""

import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from stagewire.config import InterfaceConfig
from stagewire_cli.networks import Identity

FOLDER: Final = "command"
_FILE: Final = "done"
PRE_UP: Final = "pre_up"
DNS: Final = "dns"
POST_UP: Final = "post_up"


@dataclass(frozen=True, slots=True)
class Plan:
    """Describes how to take an interface down, by its file at `up` or at the last reload."""

    pre_down: tuple[str, ...] = ()
    post_down: tuple[str, ...] = ()
    save_config: bool = False
    pre_up: tuple[str, ...] = ()
    post_up: tuple[str, ...] = ()
    dns: tuple[str, ...] | None = None
    """The entries of `DNS`; None if an earlier version wrote the list."""

    @classmethod
    def of(cls, interface: InterfaceConfig) -> "Plan":
        ups = interface.pre_up, interface.post_up
        return cls(interface.pre_down, interface.post_down, interface.save_config, *ups, tuple(interface.dns))


@dataclass(slots=True)
class Done:
    """Carries the list's present state.

    `dns` is resolvconf(8)'s name for the interface, or empty. `network` is the namespace in which the services run.
    `dns_failure` says why the servers of `DNS` aren't set; it is empty if they are, or if there are none.
    """

    plan: Plan
    steps: set[str] = field(default_factory=set)
    dns: str = ""
    network: Identity | None = None
    dns_failure: str = ""


class DoneList:
    """Reads and writes the list of one interface. Each method may raise OSError."""

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER
        self._path = self._folder / _FILE

    def begin(self, plan: Plan) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self.remember(plan)

    def remember(self, plan: Plan) -> None:
        """Notes a new plan, which replaces the former one."""
        self._append({"plan": asdict(plan)})

    def place(self, network: Identity) -> None:
        """Notes the network namespace of the services."""
        self._append({"network": asdict(network)})

    def note(self, step: str, name: str = "") -> None:
        """Notes a step before it is taken; `name` is resolvconf(8)'s name for the interface."""
        self._append({"did": step, "name": name})

    def note_dns_failure(self, failure: str) -> None:
        """Notes why the DNS servers aren't set, or an empty text before they are set anew."""
        self._append({"dns_failure": failure})

    def undone(self, step: str) -> None:
        """Notes that a step is undone, or that nothing more can undo it."""
        self._append({"undone": step})

    def read(self) -> Done | None:
        """Returns the list; None when it is missing, or when not only root can write it."""
        try:
            if not _is_ours(self._folder) or not _is_ours(self._path):
                return None
            lines = self._path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return None
        found: Done | None = None
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, RecursionError):  # a crash may cut the last line short
                found = _with_line(found, json.loads(line))
        return found

    def copy(self) -> bytes:
        """Returns the file's bytes; none when there is no file."""
        return self._path.read_bytes() if self._path.exists() else b""

    def restore(self, copy: bytes) -> None:
        """Writes the file again from a copy, after the run folder was wiped."""
        if copy and not self._path.exists():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._write(copy)

    def _append(self, entry: dict[str, Any]) -> None:
        self._write(json.dumps(entry).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def _with_line(found: Done | None, entry: dict[str, Any]) -> Done | None:
    match entry:
        case {"plan": dict(plan)}:
            pre_up, post_up = (tuple(plan.get(name, ())) for name in ("pre_up", "post_up"))
            dns = None if plan.get("dns") is None else tuple(plan["dns"])
            downs = tuple(plan["pre_down"]), tuple(plan["post_down"])
            fresh = Plan(*downs, bool(plan["save_config"]), pre_up, post_up, dns)
            if found is None:
                return Done(fresh)
            found.plan = fresh
        case {"network": {"boot": str(boot), "device": int(device), "inode": int(inode), "cookie": int(cookie)}}:
            if found is not None:
                found.network = Identity(boot, device, inode, cookie)
        case {"did": str(step), "name": str(name)} if found is not None:
            found.steps.add(step)
            found.dns = name if step == DNS else found.dns
        case {"dns_failure": str(failure)} if found is not None:
            found.dns_failure = failure
        case {"undone": str(step)} if found is not None:
            found.steps.discard(step)
            found.dns = "" if step == DNS else found.dns
    return found


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    others = stat.S_IRWXG | stat.S_IRWXO
    return found.st_uid == os.geteuid() and not found.st_mode & others and not stat.S_ISLNK(found.st_mode)
