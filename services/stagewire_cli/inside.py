"""What we add to supervisord: an RPC interface, `stagewire`, which it makes before it starts anything.

- *As many processes as are wanted.* supervisord's configuration can count processes but not cores, and knows no default
  for a variable that isn't set. So `supervisord.conf` names as many processes of each program as there may ever be, and
  we leave as many as are wanted; later some are added or taken away.
- *A run folder that was wiped is made again*, with what supervisord had in it: its socket, its pid file, its configuration.
- *Orphans are replaced.* What a supervisord that was killed has left goes on working, and may hold all the places. They
  are told to end, those that wait first, each at work only when a process of ours waits to take its place.
"""

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from supervisor import events

from stagewire import privileges
from stagewire.environment import Environment, EnvironmentMistake
from stagewire.ipc import slots
from stagewire_cli import processes
from stagewire_cli.processes import parent
from stagewire_cli.supervision import WORKERS_GROUP, Supervision

GROUPS: Final = ("status-service", "key-service", "conn-service", "tun-service", WORKERS_GROUP)
"""In the order in which orphans are replaced: workers need all the others for their sessions."""
EXIT_MISTAKE: Final = 2
ORPHANS_FOR: Final = 20
"""Looks, one a second, that found none after which there are none: they are from before our start."""


class SecondEvent(events.TickEvent):  # type: ignore[misc]
    """supervisord's own come every 5 s at most."""

    period = 1


class Programs:
    """The RPC interface `stagewire` of our supervisord. Its methods are what may be called."""

    def __init__(self, supervisord: Any, counts: dict[str, int]) -> None:
        self._groups = supervisord.process_groups
        self._not_wanted: dict[str, dict[str, Any]] = {}
        for group, count in counts.items():
            processes = self._groups[group].processes
            surplus = sorted(processes)[count:]
            self._not_wanted[group] = {name: processes.pop(name) for name in surplus}

    def add(self, group: str, count: int) -> list[str]:
        """Gives a group `count` processes in all if it has fewer; returns the new ones' names, which are to be started."""
        processes, waiting = self._groups[group].processes, self._not_wanted[group]
        names = sorted(waiting)[: max(0, count - len(processes))]
        for name in names:
            processes[name] = waiting.pop(name)
        return [f"{group}:{name}" for name in names]

    def drop(self, group: str, name: str) -> bool:
        """Takes a process that has ended out of its group; says whether it did."""
        processes = self._groups[group].processes
        if name not in processes or processes[name].pid:
            return False
        self._not_wanted[group][name] = processes.pop(name)
        return True


class Upkeep:
    """Looks after the run folder and after orphans, once a second, and when a process has ended."""

    def __init__(self, supervisord: Any, environment: Environment) -> None:
        self.programs: Programs
        self._supervisord = supervisord
        self._environment = environment
        self._supervision = Supervision(environment)
        self._looks_left = ORPHANS_FOR
        self._complaint = ""

    def look(self, _event: Any) -> None:
        """Never raises: supervisord would go on without us."""
        if self._supervisord.options.mood <= 0:  # it is ending, or starting anew
            return
        complaint = ""
        try:
            self._mend_folder()
            self._replace_orphans()
        except Exception as error:  # noqa: BLE001 - whatever it is, the services matter more
            complaint = f"stagewire: {self._environment.run}: {error}"
        if complaint and complaint != self._complaint:
            self._supervisord.options.logger.error(complaint)
        self._complaint = complaint

    # --- the folder ----------------------------------------------------------------------------------------

    def _mend_folder(self) -> None:
        supervision, options = self._supervision, self._supervisord.options
        if Path(options.configfile) != supervision.configuration:
            return  # a plain one, whose files are elsewhere
        link = self._environment.run / "config"
        # supervisord leaves an empty pid file where there was no room for more.
        has_pid = supervision.pid_file.exists() and supervision.pid_file.stat().st_size > 0
        if has_pid and supervision.configuration.exists() and supervision.socket.exists():
            return
        if not self._complaint:
            options.logger.warn(f"{self._environment.run} was wiped; making it again")
        privileges.make_folder(self._environment.run, None, 0o710)
        if not supervision.configuration.exists():
            supervision.write_configuration()
        if self._environment.managed and not link.is_symlink():
            link.symlink_to(self._environment.config)
        if not supervision.socket.exists():
            options.close_httpservers()
            options.httpservers = ()
            options.httpservers = options.make_http_servers(self._supervisord)
        if not has_pid:
            options.write_pidfile()

    # --- orphans -------------------------------------------------------------------------------------------

    def _replace_orphans(self) -> None:
        if not self._looks_left:
            return
        self._looks_left -= 1
        ours = {
            process.pid for group in self._supervisord.process_groups.values() for process in group.processes.values()
        }
        run = self._environment.run
        strangers = [pid for pid in processes.all_pids() if pid not in ours and self._is_orphan(pid)]
        left = slots.contenders(run, among=strangers)
        at_work = slots.held(run) if left else {}
        for group in GROUPS if left else ():
            stage = group.removesuffix("-service")
            holding = {pid for (name, _), pid in at_work.items() if name == stage}
            orphans = set(slots.contenders(run, stage, left))
            if not orphans:
                continue
            self._looks_left = ORPHANS_FOR
            if not set(slots.contenders(run, stage, ours)) - holding:
                continue  # nobody of ours waits yet
            if idle := orphans - holding:
                self._end(idle)
            else:
                self._end(sorted(orphans)[:1])
                return  # one at a time

    def _is_orphan(self, pid: int) -> bool:
        """Whether its parent has died: it is init's now, or that of whoever init has set in its place, as we are."""
        reapers = {1} if self._supervisord.options.nodaemon else {1, os.getppid()}
        return parent(pid) in reapers - {os.getpid()}

    def _end(self, pids: Iterable[int]) -> None:
        for pid in pids:
            self._supervisord.options.logger.info(f"ends {pid}, which an earlier supervisord has left")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


_made: list[tuple[Any, Upkeep]] = []
"""supervisord makes its interfaces anew with each server; the programs are the same."""


def make(supervisord: Any, **_settings: str) -> Programs:
    """Called by supervisord before it starts the programs."""
    for known, upkeep in _made:
        if known is supervisord:
            return upkeep.programs
    # Programs are installed beside supervisord, whose folder need not be on anybody's PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # What `stagewire up` has written into its configuration, of which supervisord itself tells only its children.
    os.environ.update(getattr(supervisord.options.configroot.supervisord, "environment", None) or {})
    try:
        environment = Environment.read(os.environ)
    except EnvironmentMistake as mistake:
        # Whatever is raised here, SystemExit included, supervisord shows as tracebacks and hides behind a line of its own.
        sys.stderr.write(f"stagewire: {mistake}\n")
        sys.stderr.flush()
        os._exit(EXIT_MISTAKE)
    workers = slots.wanted_workers(environment.run, environment.workers)
    counts = {group: (workers if group == WORKERS_GROUP else 1) + environment.spares for group in GROUPS}
    upkeep = Upkeep(supervisord, environment)
    upkeep.programs = Programs(supervisord, counts)
    _made[:] = [(supervisord, upkeep)]
    if SecondEvent not in events.TICK_EVENTS:
        events.TICK_EVENTS.append(SecondEvent)
    events.subscribe(SecondEvent, upkeep.look)
    events.subscribe(events.ProcessStateExitedEvent, upkeep.look)
    events.subscribe(events.SupervisorRunningEvent, lambda _event: privileges.let_other_sessions_go_first())
    return upkeep.programs
