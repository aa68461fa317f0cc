"""Extends supervisord by an RPC interface, `stagewire`, which supervisord makes before it starts any program.

- *It counts processes.* supervisord can't count cores, and has no default for an unset variable. So `supervisord.conf`
  names as many processes of each program as there may ever be. We keep as many as are wanted, and add or remove some later.
- *It makes a wiped run folder again*, with supervisord's socket, pid file and configuration.
- *It starts spares last*, when every stage is at work. Otherwise a start would take twice as long.
- *It ends all programs at once.* supervisord itself hears a signal within a second, and stops one group after another.
- *It counts the processes that the kernel's filter killed* (`by_filter`).
- *It replaces orphans.* Processes of a killed supervisord work on and may hold all slots. We tell their spares to end
  first, then each holder when a process of ours waits in its place.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from supervisor import dispatchers, events

from stagewire import files, logs
from stagewire.config import accepted
from stagewire.environment import Environment, EnvironmentMistake, search_path
from stagewire.linux import privileges, sandbox, uids
from stagewire.linux.uids import UidsRefused
from stagewire.process import holders, signals, slots, worker_count
from stagewire.process.holders import Presence
from stagewire_cli import output, parting, predecessors, processes
from stagewire_cli.by_filter import KilledByFilter
from stagewire_cli.done import DoneList
from stagewire_cli.failures import Failed
from stagewire_cli.forked import Forks, Imported
from stagewire_cli.keeper_watch import KeeperWatch
from stagewire_cli.priorities import NICE, Priorities
from stagewire_cli.supervision import WORKERS_GROUP, Supervision
from stagewire_cli.wakeup import Wakeup
from stagewire_cli.writer_door import WriterDoor

GROUPS: Final = (
    "status-service", "resolver-service", "host-service", "key-service", "conn-service", "tun-service", WORKERS_GROUP,
)  # fmt: skip
"""Groups in the order in which orphans are replaced: workers need all others for their sessions."""
EXIT_REFUSED: Final = 1
EXIT_MISTAKE: Final = 2
SPARES_AFTER: Final = 30
"""Looks, one a second, after which spares start even if a stage is not at work."""
END_WITHIN: Final = 0.7
"""s that programs get to end, before an ending supervisord kills them."""
ORPHANS_FOR: Final = 20
"""Looks, one a second, without an orphan that end the search: no new orphans come."""
ORPHANS_RARELY: Final = 5
"""Looks after which a fresh start searches again."""

output.open_standard()  # supervisord imports us before it opens anything, its own log included


class SecondEvent(events.TickEvent):  # type: ignore[misc]
    """Comes each second; supervisord's own tick events come every 5 s at most."""

    period = 1


class Programs:
    """Serves the RPC interface `stagewire` of our supervisord: clients may call its public methods."""

    def __init__(self, supervisord: Any, counts: dict[str, int], spares: int = 0) -> None:
        """Leaves each group as many processes as `counts` says; `add_spares` adds the spares later."""
        self._by_filter = KilledByFilter(supervisord.options)
        self._counts = counts
        self._spares = spares
        self._groups = supervisord.process_groups
        self._not_wanted: dict[str, dict[str, Any]] = {}
        for group, count in counts.items():
            processes = self._groups[group].processes
            surplus = sorted(processes)[count:]
            self._not_wanted[group] = {name: processes.pop(name) for name in surplus}

    def add(self, group: str, count: int) -> list[str]:
        """Gives a group `count` processes in all if it has fewer; returns the names of those to start."""
        processes, waiting = self._groups[group].processes, self._not_wanted[group]
        names = sorted(waiting)[: max(0, count - len(processes))]
        for name in names:
            processes[name] = waiting.pop(name)
        return [f"{group}:{name}" for name in names]

    def spares(self) -> int:
        """Returns the wanted number of spares of each program."""
        return self._spares

    def add_spares(self) -> None:
        """Adds the spares; supervisord starts each process that it has never started."""
        for group, count in self._counts.items():
            self.add(group, count + self._spares)

    def drop(self, group: str, name: str) -> bool:
        """Takes an ended process out of its group; says whether it did."""
        processes = self._groups[group].processes
        if name not in processes or processes[name].pid:
            return False
        self._not_wanted[group][name] = processes.pop(name)
        return True

    def does_without(self) -> str:
        """Says what this host denies to root's programs now, such as since swap was added; empty for nothing."""
        return sandbox.does_without()

    def killed_by_filter(self) -> dict[str, int]:
        """Returns how many processes of each group the kernel's filter has killed."""
        return dict(self._by_filter.groups)


class Upkeep:
    """Looks after the run folder, spares and orphans, once a second and when a process has ended."""

    def __init__(self, supervisord: Any, environment: Environment) -> None:
        self.programs: Programs
        self._supervisord = supervisord
        self._environment = environment
        self._supervision = Supervision(environment)
        self._done = DoneList(environment.run)
        self._copy_of_done = b""
        """The list that `stagewire up` wrote, in case the folder is wiped."""
        self._looks_left = ORPHANS_FOR
        self._rarely = 1
        self._spares_within = SPARES_AFTER
        self.priorities = Priorities(supervisord, self._places)
        self._complaint = ""
        ours = Path(supervisord.options.configfile) == self._supervision.configuration
        self._kind = holders.SUPERVISORD if ours else holders.OTHER_SUPERVISORD
        self._presence: Presence | None = None
        self._going: Presence | None = None
        self._kill_at = math.inf

    def expect_no_orphans(self) -> None:
        """Looks for orphans rarely: none was here as this supervisord began, but one may come from a wiped run folder."""
        self._rarely = ORPHANS_RARELY

    def be_present(self) -> None:
        """Takes the lock in the run folder by which supervisord is known, and again after a fork. Raises OSError."""
        privileges.make_folder(self._environment.run, None, 0o710)
        if self._presence is None:
            self._presence = Presence(self._environment.run, self._kind)
        else:
            self._presence.renew()

    def end_all(self) -> None:
        """Tells all programs at once to end, unless supervisord starts anew."""
        if self._supervisord.options.mood < 0:
            with suppress(OSError):
                self._going = Presence(self._environment.run, holders.GOING)
            self._kill_at = time.monotonic() + END_WITHIN
            self._signal_all(signal.SIGTERM)

    def kill_late(self) -> None:
        """Kills programs that haven't ended in time."""
        if time.monotonic() >= self._kill_at:
            self._kill_at = math.inf
            self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: int) -> None:
        for process in self._processes():
            if process.pid:
                privileges.let_idle_threads_run(process.pid)
                with suppress(ProcessLookupError):  # the pid of a child stays ours until we wait for it
                    os.kill(process.pid, number)

    def _processes(self) -> Iterator[Any]:
        for group in self._supervisord.process_groups.values():
            yield from group.processes.values()

    def look(self, _event: Any) -> None:
        """Mends whatever needs it. Never raises, because supervisord would go on without us."""
        if self._supervisord.options.mood <= 0:  # supervisord is ending, or starting anew
            return
        complaint = ""
        try:
            self._mend_folder()
            if self._environment.run.is_dir() and not (self._presence and self._presence.in_place()):
                self.be_present()
            self._add_spares()
            if self.priorities.in_haste and self._all_at_work():
                self.priorities.be_nice(True)
            self._replace_orphans()
        except Exception as error:  # noqa: BLE001 - no error of ours may cost the services
            complaint = f"stagewire: {self._environment.run}: {error}"
        if complaint and complaint != self._complaint:
            self._supervisord.options.logger.error(complaint)
        self._complaint = complaint

    def is_plain(self) -> bool:
        """Says whether this supervisord has a configuration that no command of ours wrote."""
        return Path(self._supervisord.options.configfile) != self._supervision.configuration

    # --- the folder ----------------------------------------------------------------------------------------

    def _mend_folder(self) -> None:
        supervision, options = self._supervision, self._supervisord.options
        if self.is_plain():
            return  # a plain supervisord's files are elsewhere
        link = self._environment.run / "config"
        # On a full disk, supervisord leaves an empty pid file.
        has_pid = supervision.pid_file.exists() and supervision.pid_file.stat().st_size > 0
        if has_pid and supervision.configuration.exists() and supervision.socket.exists():
            self._copy_of_done = self._done.copy() or self._copy_of_done
            return
        if not self._complaint:
            options.logger.warn(f"{self._environment.run} was wiped; making it again")
        privileges.make_folder(self._environment.run, None, 0o710)
        if not supervision.configuration.exists():
            supervision.write_configuration(foreground=options.nodaemon)
        self._done.restore(self._copy_of_done)
        if self._environment.managed and not link.is_symlink():
            link.symlink_to(self._environment.config)
        if not supervision.socket.exists():
            options.close_httpservers()
            options.httpservers = ()
            options.httpservers = options.make_http_servers(self._supervisord)
        if not has_pid:
            options.write_pidfile()

    # --- spares --------------------------------------------------------------------------------------------

    def _add_spares(self) -> None:
        if not self._spares_within:
            return
        self._spares_within -= 1
        if not self._spares_within or self._all_at_work():
            self._spares_within = 0
            self.priorities.be_nice(True)
            self.programs.add_spares()

    def _all_at_work(self) -> bool:
        wanted = {(group.removesuffix("-service"), number) for group in GROUPS for number in range(self._places(group))}
        return wanted <= slots.held(self._environment.run).keys()

    def _places(self, group: str) -> int:
        if group != WORKERS_GROUP:
            return 1
        return worker_count.wanted(self._environment.run, self._environment.workers)

    # --- orphans -------------------------------------------------------------------------------------------

    def _replace_orphans(self) -> None:
        if not self._looks_left:
            return
        self._looks_left -= 1
        if self._looks_left % self._rarely:
            return
        ours = {process.pid for process in self._processes()}
        run = self._environment.run
        left = {pid for pid in slots.contenders(run) if pid not in ours and self._is_orphan(pid)}
        at_work = slots.held(run) if left else {}
        for group in GROUPS if left else ():
            stage = group.removesuffix("-service")
            holding = {pid for (name, _), pid in at_work.items() if name == stage}
            contenders = set(slots.contenders(run, stage))
            orphans = contenders & left
            if not orphans:
                continue
            self._looks_left, self._rarely = ORPHANS_FOR, 1
            if not contenders & ours - holding:
                continue  # no spare of ours waits yet
            if idle := orphans - holding:
                self._end(idle)
            else:
                self._end(sorted(orphans)[:1])
                return  # one at a time

    def _is_orphan(self, pid: int) -> bool:
        """Says whether a process has lost its parent: init has adopted it, or `stagewire run`, which is our parent."""
        reapers = {1} if self.is_plain() else {1, os.getppid()}
        return holders.parent(pid) in reapers - {os.getpid()}

    def _end(self, pids: Iterable[int]) -> None:
        for pid in pids:
            self._supervisord.options.logger.info(f"ends {pid}, which an earlier supervisord has left")
            signals.send(pid, signal.SIGTERM, lambda pid: pid in slots.contenders(self._environment.run))


def _can_be_read(path: Path) -> bool:
    """Says whether the file has no mistake. Otherwise a supervisord that starts anew (SIGHUP) keeps the text in force.

    Another process reads it: our programs share our memory, and few of them may see its keys.
    """
    # supervisord has closed the descriptors of its handler, and no program of ours runs.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reader = os.fork()
    if reader == 0:
        try:
            from stagewire import config  # costs memory, and is seldom needed

            privileges.hide_memory()
            config.load(path)
            os._exit(0)
        finally:
            os._exit(EXIT_MISTAKE)
    try:
        return os.waitpid(reader, 0)[1] == 0
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _forget_what_was_in_force(environment: Environment) -> None:
    """Drops the accepted text if no stage is at work: a fresh start reads the configuration file."""
    kept = accepted.path(environment.run)
    if os.path.lexists(kept) and not slots.contenders(environment.run):
        files.clear(kept)


_made: list[tuple[Any, Upkeep]] = []
"""Our supervisord with its upkeep: it calls `make` again for each server that it opens."""
_imported: Final = Imported()
"""Stays the same when supervisord starts anew in this process."""


def make(supervisord: Any, **_settings: str) -> Programs:
    """Makes the RPC interface; supervisord calls this before it starts the programs."""
    for known, upkeep in _made:
        if known is supervisord:
            return upkeep.programs
    # Programs are installed beside supervisord, whose folder need not be in PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), search_path(os.environ.get("PATH"))])
    # supervisord passes the variables that `stagewire up` wrote into its configuration to its children only.
    os.environ.update(getattr(supervisord.options.configroot.supervisord, "environment", None) or {})
    try:
        environment = Environment.read(os.environ)
    except EnvironmentMistake as mistake:
        _end_with(str(mistake), EXIT_MISTAKE)
    plain = Path(supervisord.options.configfile) != Supervision(environment).configuration
    try:
        if plain and not _made and not processes.find(environment):  # otherwise `up` has checked this
            predecessors.refuse_anothers_device(environment)
        uids.claim(environment, afresh=plain and not slots.contenders(environment.run))
    except (Failed, UidsRefused) as refused:
        _end_with(f"{environment.interface}: {refused}", EXIT_REFUSED)
    except OSError as error:
        _end_with(f"{error.filename}: {error.strerror}", EXIT_REFUSED)
    os.environ.update(uids.variables(environment))
    upkeep = Upkeep(supervisord, environment)
    if not _made or _can_be_read(environment.config):
        _forget_what_was_in_force(environment)
    workers = worker_count.wanted(environment.run, environment.workers)
    counts = {group: workers if group == WORKERS_GROUP else 1 for group in GROUPS}
    for group in supervisord.process_groups.values():
        for process in group.processes.values():
            output.lend(process)
            if not privileges.may_raise_priority():  # a nice process could never raise its priority again
                process.config.command = process.config.command.removeprefix(NICE)
    upkeep.programs = Programs(supervisord, counts, environment.spares)
    # It cleans what a stage writes into its log, but only of the usual escapes.
    dispatchers.stripEscapes = logs.cleaned_output
    supervisord.options.strip_ansi = True
    Forks(supervisord.options, _imported)
    _made[:] = [(supervisord, upkeep)]
    _begin(supervisord, upkeep, environment)
    return upkeep.programs


def _end_with(text: str, status: int) -> NoReturn:
    # supervisord would show any exception, SystemExit included, as tracebacks and a line of its own.
    sys.stderr.write(f"stagewire: {text}\n")
    sys.stderr.flush()
    os._exit(status)


def _begin(supervisord: Any, upkeep: Upkeep, environment: Environment) -> None:
    """Subscribes to supervisord's events."""
    fresh, wakeup = not slots.contenders(environment.run), Wakeup(supervisord, upkeep.kill_late)
    keeper, writer = KeeperWatch(supervisord, environment), WriterDoor(supervisord, environment)

    def on_running(_event: Any) -> None:
        with suppress(OSError):  # on a full disk, `look` tries again each second
            upkeep.be_present()
        wakeup.watch()
        if upkeep.is_plain() or not supervisord.options.nodaemon:  # `stagewire run` tidies up itself
            parting.tidy_at_end(environment)
        if environment.managed:
            writer.open()
            events.subscribe(SecondEvent, writer.look)
        else:
            keeper.watch()
        if lacking := sandbox.does_without():
            supervisord.options.logger.warn(f"{environment.interface} {lacking}")
        upkeep.priorities.be_nice(not fresh)  # in a fresh start no stage carries packets yet

    def on_exit(event: Any) -> None:
        upkeep.priorities.on_exit(event)
        if upkeep.priorities.in_haste:  # otherwise the one that takes the place needs the processors now
            wakeup.on_exit(event)

    def on_stopping(_event: Any) -> None:
        upkeep.end_all()
        wakeup.turn()

    with suppress(OSError):
        upkeep.be_present()
    if fresh:
        upkeep.expect_no_orphans()
    if SecondEvent not in events.TICK_EVENTS:
        events.TICK_EVENTS.append(SecondEvent)
    events.subscribe(SecondEvent, upkeep.look)
    events.subscribe(events.ProcessStateExitedEvent, on_exit)
    events.subscribe(events.ProcessStateExitedEvent, upkeep.look)
    events.subscribe(events.SupervisorRunningEvent, on_running)
    events.subscribe(events.SupervisorStoppingEvent, on_stopping)
