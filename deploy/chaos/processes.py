"""Who is there: the gateway's processes, which of them are at work, and what they hold."""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.namespaces import Namespace
from stagewire.ipc import slots

STAGES: Final = ("tun", "device", "conn", "key", "status")
SUPERVISORD: Final = "supervisord"
Slot = tuple[str, int]
"""A stage and its number."""


@dataclass(frozen=True, slots=True)
class Held:
    """What all processes have together. `memory` is in bytes: each page counted once, shared ones in parts (PSS)."""

    processes: int
    descriptors: int
    memory: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The processes of one moment: role by pid, who holds which slot, and who has come so far as to wait for one."""

    roles: dict[int, str]
    held: dict[Slot, int]
    ready: frozenset[int] = frozenset()

    def of(self, role: str) -> set[int]:
        """The pids of a stage's processes, spares included, or of supervisord."""
        return {pid for pid, each in self.roles.items() if each == role}

    def active(self, role: str, number: int = 0) -> int | None:
        """The process at work in a place."""
        return self.held.get((role, number))

    def services(self) -> set[int]:
        """All but supervisord."""
        return {pid for pid, role in self.roles.items() if role != SUPERVISORD}

    def counts(self) -> Counter[str]:
        """How many processes each role has that are at work or wait."""
        return Counter(role for pid, role in self.roles.items() if pid in self.ready)


class Processes:
    """Those in a gateway's namespace; `run` is the interface's folder."""

    def __init__(self, namespace: Namespace, run: Path) -> None:
        self._run = run
        self._network = namespace.path.stat().st_ino

    def snapshot(self) -> Snapshot:
        """As it is now. Takes a few milliseconds."""
        roles = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and (role := self._role(int(entry.name))):
                roles[int(entry.name)] = role
        held = {slot: pid for slot, pid in slots.held(self._run).items() if pid in roles}
        return Snapshot(roles, held, frozenset(pid for pid in roles if self._ready(pid, roles[pid])))

    def _ready(self, pid: int, role: str) -> bool:
        """Whether it has opened a slot: one that has only been started would take over no sooner than it is up."""
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
            if Path(f"/proc/{pid}/ns/net").stat().st_ino != self._network:
                return None
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            names = [word.rpartition(b"/")[2].decode(errors="replace") for word in words[:2]]
            for name in reversed(names):
                stage = name.removesuffix("-service")
                if name == SUPERVISORD or (stage in STAGES and stage != name):
                    return stage
        return None

    def resources(self) -> Held:
        """Descriptors and memory of all processes together."""
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
