"""Starts services as forks of supervisord, which has imported their modules once (docs/decisions/028).

supervisord forks for each program, and the new process executes it. `Forks` takes the place of this last step: the new
process calls the program's `main`. It imports nothing, and shares memory with all others. It executes as before if

- the program is key-service, whose memory no other process has seen, or isn't one of ours;
- a variable that acts at a program's start isn't as supervisord got it;
- a file that was imported has changed: an upgrade must run the new code;
- a fault has killed a process of its group. Forks have one layout of addresses, and a second guess must find another;
- the kernel can't show what the process is called.
"""

import gc
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from supervisor import events

from stagewire.process.giving_back import SHARER
from stagewire.proto.kernel import rule
from stagewire.stages import STAGES
from stagewire_cli import afresh
from stagewire_cli.priorities import NICE

_APART: Final = "key-service"
_SERVICES: Final = tuple(stage for stage in STAGES if f"{stage}-service" != _APART)
_LATER: Final = (
    "host_service.service", "stagewire.linux.pipe_trains", "stagewire.linux.tun_trains", "stagewire.linux.udp_batch",
    "stagewire.linux.udp_trains", "stagewire.proto.kernel.admission", "stagewire.proto.kernel.macs",
)  # fmt: skip
"""Modules that a service's `main` imports."""
_ACT_AT_START: Final = ("GLIBC_TUNABLES", "LD_", "MALLOC_", "OPENSSL_", "PYTHON")
"""Beginnings of variables that the loader, a library or Python reads at a program's start."""
_FAULTS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
)
"""Signals that end a process after a fault in its memory or a forbidden system call."""

_LOOKED_FOR: Final = 0.1
"""s that a look at the files counts: many programs start at once."""

Stamp = tuple[int, int, int, int]


class Forks:
    """Takes over how one supervisord executes programs."""

    def __init__(self, options: Any, imported: "Imported") -> None:
        """Takes supervisord's options, by which it executes programs and waits for them."""
        self._imported = imported
        self._pids = options.pidhistory
        self._execute, self._wait = options.execve, options.waitpid
        self._faulty: set[str] = set()
        options.execve, options.waitpid = self._start, self._waitpid
        events.subscribe(events.ProcessStateStartingEvent, self._before_fork)

    def _before_fork(self, event: Any) -> None:
        if event.process.group.config.name != _APART:  # which starts on another processor while this one imports
            with suppress(OSError):  # then programs are executed
                self._imported.look()

    def _start(self, filename: str, words: Sequence[str], variables: dict[str, str]) -> None:
        """Runs in the new process. Returns never, or raises OSError."""
        service = self._imported.service(words, variables)
        if service is not None and variables.get("SUPERVISOR_GROUP_NAME") not in self._faulty:
            with suppress(OSError):
                afresh.become([sys.executable, service.script, *service.arguments], variables)
                os.nice(service.niceness)
                afresh.run(service.main)
        self._execute(filename, words, variables)

    def _waitpid(self) -> tuple[int | None, int | None]:
        pid, status = self._wait()
        if pid and os.WIFSIGNALED(status) and os.WTERMSIG(status) in _FAULTS and pid in self._pids:
            self._faulty.add(self._pids[pid].group.config.name)
        return pid, status


class Service(NamedTuple):
    """Describes a service that this process can run itself. `main` returns the exit status."""

    script: str
    arguments: Sequence[str]
    niceness: int
    main: Callable[[], int]


class Imported:
    """Knows which services' modules this process has imported, and from which files."""

    def __init__(self) -> None:
        self._variables = _acting(os.environ)
        self._services: dict[str, tuple[str, Callable[[], int]]] = {}
        self._files: dict[str, Stamp] = {}
        self._looked = -math.inf
        self._changed = False

    def look(self) -> None:
        """Imports all modules but key-service's, or else looks for changes of their files.

        Runs in supervisord before a fork. It opens nothing else, and starts no thread.
        """
        if not self._files:
            self._import_all()
        elif not self._changed and time.monotonic() > self._looked + _LOOKED_FOR:
            self._changed = any(_stamp(file) != stamp for file, stamp in self._files.items())
            self._looked = time.monotonic()

    def _import_all(self) -> None:
        gc.disable()
        try:
            for stage in _SERVICES:
                with suppress(Exception):  # the program then says by itself what is wrong
                    self._import(f"{stage}-service", f"{stage}_service.__main__")
            for module in _LATER:
                with suppress(ImportError):
                    import_module(module)
        finally:
            gc.enable()
        scripts = {script for script, _ in self._services.values()}
        self._files = {file: _stamp(file) for file in scripts | _files()}
        self._looked = time.monotonic()
        with suppress(ImportError, OSError):
            sharer, _ = rule.load(os.environ.get("STAGEWIRE_KERNEL", ""), SHARER)
            if sharer is not None:
                sharer.share()
        gc.freeze()  # a collection would write to each object, and so give each process pages of its own

    def _import(self, name: str, module: str) -> None:
        main, script = import_module(module).main, Path(sys.executable).with_name(name)
        with script.open() as file:
            if file.readline().strip() == f"#!{sys.executable}":
                self._services[name] = str(script), main

    def service(self, words: Sequence[str], variables: Mapping[str, str]) -> Service | None:
        """Returns the service that a command line names, None if it must be executed."""
        niceness = 0
        if (line := " ".join(words)).startswith(NICE):
            niceness, words = int(NICE.split()[-1]), line.removeprefix(NICE).split()
        script, main = self._services.get(words[0], ("", None))
        if main is None or not self._files or self._changed or _acting(variables) != self._variables:
            return None
        if shutil.which(words[0], path=variables.get("PATH", os.defpath)) != script:
            return None
        return Service(script, words[1:], niceness, main)


def _acting(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith(_ACT_AT_START)}


def _files() -> set[str]:
    """Lists the files of all imported modules, and the program and libraries in this process's memory."""
    found = {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    lines = Path("/proc/self/maps").read_text().splitlines()
    return found | {words[5] for line in lines if len(words := line.split(maxsplit=5)) > 5 and words[5].startswith("/")}


def _stamp(file: str) -> Stamp:
    """Tells one content of a file from another."""
    try:
        found = os.stat(file)  # noqa: PTH116 - hundreds of them, each time
    except OSError:
        return 0, 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
