"""supervisord for one interface: its configuration, and how to speak to it. What we add to it is in `inside`."""

import configparser
import http.client
import os
import socket
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagewire.environment import Environment
from stagewire_cli import processes
from stagewire_cli.processes import lives

WORKERS_GROUP = "device-service"
_RPC_TIMEOUT = 5.0


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
        self.socket = environment.run / "supervisor.sock"

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
        parser["unix_http_server"]["file"] = str(self.socket)
        parser["supervisorctl"]["serverurl"] = f"unix://{self.socket}"
        for section in parser.sections():
            if section.startswith("program:"):
                # Every process writes to a file of its own, which alone supervisord can rotate.
                process = parser[section].get("process_name", section.removeprefix("program:"))
                process = process.replace("%(program_name)s", section.removeprefix("program:"))
                parser[section].update(
                    {"stdout_logfile": f"{log}/{process}.log", "stdout_logfile_maxbytes": "10MB",
                     "stdout_logfile_backups": "1"}
                )  # fmt: skip
        # So that it needs nothing but this file when it is to be started again.
        ours = {name: value for name, value in self.variables().items() if name.startswith("STAGEWIRE_")}
        quoted = [f'{name}="{value.replace("%", "%%")}"' for name, value in ours.items() if '"' not in value]
        parser["supervisord"]["environment"] = ",".join([parser["supervisord"]["environment"], *quoted])
        fresh = self.configuration.with_suffix(".new")
        with fresh.open("w") as file:
            parser.write(file)
        fresh.replace(self.configuration)

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

    def drop(self, process: Process) -> bool:
        """Has a process no more, if it has ended; says whether it had."""
        return bool(self._call("stagewire.drop", process.group, process.name))

    def shut_down(self) -> None:
        """Tells it to stop everything and itself."""
        self._call(
            "supervisor.stopAllProcesses"
        )  # at once; shutting down it stops them one after another, up to a second each
        self._call("supervisor.shutdown")

    def pid(self) -> int | None:
        """Its pid while it lives, also when its run folder was wiped."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            pid = 0
        if pid and lives(pid) and processes.is_supervisord(pid, self.configuration):
            return pid
        return next(iter(self.pids()), None)

    def pids(self) -> list[int]:
        """Of all supervisords that were started with this configuration and live; it should be one."""
        return processes.supervisords(self.configuration)

    def _call(self, method: str, *arguments: Any) -> Any:
        if not self.socket.exists():
            return None
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(self.socket)) as proxy:
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


def template() -> Path:
    """`supervisord.conf`, from a wheel or from a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "supervisord.conf"
    return installed if installed.exists() else here.parents[1] / "supervisord.conf"
