"""supervisord for one interface: its configuration, what we add to it, and how to speak to it.

supervisord's configuration can count processes but not cores, and knows no default for a variable that isn't set. So
`supervisord.conf` names as many processes of each program as there may ever be, and an RPC interface of ours, which
supervisord makes before it starts anything, leaves as many as are wanted; later it adds some or takes some away.
"""

import configparser
import http.client
import os
import socket
import sys
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagewire.environment import Environment, EnvironmentMistake
from stagewire.ipc import slots

WORKERS_GROUP = "device-service"
GROUPS = ("key-service", "conn-service", WORKERS_GROUP, "tun-service", "status-service")
EXIT_MISTAKE = 2
_RPC_TIMEOUT = 5.0


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


def make(supervisord: Any, **_settings: str) -> Programs:
    """Called by supervisord before it starts the programs."""
    # Programs are installed beside supervisord, whose folder need not be on anybody's PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        environment = Environment.read(os.environ)
    except EnvironmentMistake as mistake:
        # Whatever is raised here, SystemExit included, supervisord shows as tracebacks and hides behind a line of its own.
        sys.stderr.write(f"stagewire: {mistake}\n")
        sys.stderr.flush()
        os._exit(EXIT_MISTAKE)
    workers = slots.wanted_workers(environment.run, environment.workers)
    counts = {group: (workers if group == WORKERS_GROUP else 1) + environment.spares for group in GROUPS}
    return Programs(supervisord, counts)


@dataclass(frozen=True, slots=True)
class Process:
    """One process as supervisord sees it. `started` is in unix s; `state` is supervisord's word."""

    group: str
    name: str
    state: str
    pid: int
    started: int
    log: Path | None


class Supervision:
    """The supervisord of one interface."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.configuration = environment.run / "supervisord.conf"
        self.pid_file = environment.run / "supervisord.pid"
        self._socket = environment.run / "supervisor.sock"

    def write_configuration(self) -> None:
        """The top-level file's programs, with folders of this interface's own, in the background, logging to files."""
        # Our conf has no %%; supervisord's own expansions must go through as they are.
        parser = configparser.RawConfigParser(inline_comment_prefixes=None)
        with template().open() as file:
            parser.read_file(file)
        log = self._environment.log
        parser["supervisord"].update(
            {"nodaemon": "false", "logfile": str(log / "supervisord.log"), "pidfile": str(self.pid_file),
             "logfile_maxbytes": "10MB", "logfile_backups": "1", "childlogdir": str(log)}
        )  # fmt: skip
        parser["unix_http_server"]["file"] = str(self._socket)
        parser["supervisorctl"]["serverurl"] = f"unix://{self._socket}"
        for section in parser.sections():
            if section.startswith("program:"):
                # Every process writes to a file of its own, which alone supervisord can rotate.
                process = parser[section].get("process_name", section.removeprefix("program:"))
                process = process.replace("%(program_name)s", section.removeprefix("program:"))
                parser[section].update(
                    {"stdout_logfile": f"{log}/{process}.log", "stdout_logfile_maxbytes": "10MB",
                     "stdout_logfile_backups": "1"}
                )  # fmt: skip
        with self.configuration.open("w") as file:
            parser.write(file)

    def variables(self) -> dict[str, str]:
        """What its programs read from the environment."""
        environment = self._environment
        return os.environ | {
            "STAGEWIRE_INTERFACE": environment.interface,
            "STAGEWIRE_CONFIG": str(environment.config),
            "STAGEWIRE_RUN_DIR": str(environment.run.parent),
            "STAGEWIRE_STATE_DIR": str(environment.state.parent),
            "STAGEWIRE_LOG_DIR": str(environment.log.parent),
            "STAGEWIRE_WORKERS": str(environment.workers),
            "STAGEWIRE_SPARES": str(environment.spares),
            "STAGEWIRE_WG_DIR": str(environment.wg),
            "STAGEWIRE_MANAGED": str(int(environment.managed)),
        }

    def processes(self) -> list[Process] | None:
        """All programs, or None when this supervisord isn't there."""
        answer = self._call("supervisor.getAllProcessInfo")
        if answer is None:
            return None
        return [
            Process(
                info["group"], info["name"], info["statename"], info["pid"], info["start"],
                Path(info["stdout_logfile"]) if info["stdout_logfile"] else None,
            )
            for info in answer
        ]  # fmt: skip

    def add(self, group: str, count: int) -> None:
        """Has a group run at least `count` processes."""
        for name in self._call("stagewire.add", group, count) or []:
            self._call("supervisor.startProcess", name, False)

    def stop(self, process: Process) -> None:
        """Has a process end, and doesn't wait for it."""
        self._call("supervisor.stopProcess", f"{process.group}:{process.name}", False)

    def drop(self, process: Process) -> None:
        """Has a process no more, that has ended."""
        self._call("stagewire.drop", process.group, process.name)

    def shut_down(self) -> None:
        """Tells it to stop everything and itself."""
        self._call(
            "supervisor.stopAllProcesses"
        )  # at once; shutting down it stops them one after another, up to a second each
        self._call("supervisor.shutdown")

    def pid(self) -> int | None:
        """Its pid while it lives."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if lives(pid) else None

    def _call(self, method: str, *arguments: Any) -> Any:
        if not self._socket.exists():
            return None
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(self._socket)) as proxy:
                return getattr(proxy, method)(*arguments)
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return None


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket. supervisor's own transport has no time limit, and a hung supervisord would hang us."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_RPC_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """To the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: tuple[str, dict[str, str]] | str) -> http.client.HTTPConnection:
        connection = _Connection(self._path)
        self._connection = host, connection  # where `close` finds it
        return connection


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie of a parent that doesn't wait has ended all the same.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def template() -> Path:
    """`supervisord.conf`, from a wheel or from a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "supervisord.conf"
    return installed if installed.exists() else here.parents[1] / "supervisord.conf"
