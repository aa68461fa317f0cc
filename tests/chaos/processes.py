"""Finds the gateway's processes, the holders among them, and their resources."""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.namespaces import Namespace, is_inside
from stagewire.process import slots
from stagewire.stages import STAGES

SUPERVISORD: Final = "supervisord"
Slot = tuple[str, int]
"""A stage and its number."""


@dataclass(frozen=True, slots=True)
class Held:
    """Adds up all processes' resources. `memory` is in bytes: each page counts once, a shared one in parts (PSS)."""

    processes: int
    descriptors: int
    memory: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Lists the processes of one moment: role by pid, holder by slot, and the pids that hold or await a slot."""

    roles: dict[int, str]
    held: dict[Slot, int]
    ready: frozenset[int] = frozenset()

    def of(self, role: str) -> set[int]:
        """Returns the pids of a stage's processes, spares included, or of supervisord."""
        return {pid for pid, each in self.roles.items() if each == role}

    def active(self, role: str, number: int = 0) -> int | None:
        """Returns the slot's holder."""
        return self.held.get((role, number))

    def services(self) -> set[int]:
        """Returns the pids of all processes but supervisord."""
        return {pid for pid, role in self.roles.items() if role != SUPERVISORD}

    def counts(self) -> Counter[str]:
        """Counts each role's holders and spares."""
        return Counter(role for pid, role in self.roles.items() if pid in self.ready)


class Processes:
    """Finds the processes in a gateway's namespace. `run` is the interface's folder."""

    def __init__(self, namespace: Namespace, run: Path) -> None:
        self._run = run
        self._namespace = namespace

    def snapshot(self) -> Snapshot:
        """Lists the current processes, which needs a moment."""
        roles = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and (role := self._role(int(entry.name))):
                roles[int(entry.name)] = role
        held = {slot: pid for slot, pid in slots.held(self._run).items() if pid in roles}
        return Snapshot(roles, held, frozenset(pid for pid in roles if self._ready(pid, roles[pid])))

    def _ready(self, pid: int, role: str) -> bool:
        """Tells whether it has opened a slot: only then can it take over at once."""
        if role == SUPERVISORD:
            return True
        prefix = str(self._run / slots.PREFIX)
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if str(link.readlink()).startswith(prefix):
                        return True
        return False

    def _role(self, pid: int) -> str | None:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            names = [word.rpartition(b"/")[2].decode(errors="replace") for word in words[:2]]
            for name in reversed(names):
                stage = name.removesuffix("-service")
                if name == SUPERVISORD or (stage in STAGES and stage != name):
                    return stage if is_inside(pid, self._namespace) else None
        return None

    def resources(self) -> Held:
        """Adds up the descriptors and memory of all processes."""
        descriptors = memory = count = 0
        for pid in self.snapshot().roles:
            with suppress(OSError):
                count += 1
                descriptors += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
                memory += _memory(pid)
        return Held(count, descriptors, memory)


def _memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
