"""Configures the supervisord of one interface, and speaks to it. `inside` is our part in it."""

import configparser
import http.client
import os
import socket
import sys
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stagewire.environment import Environment
from stagewire.linux import uids
from stagewire.process import holders
from stagewire_cli import processes

WORKERS_GROUP = "device-service"
_RPC_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Process:
    """Describes one process as supervisord sees it. `started` is in unix s; `state` is supervisord's word."""

    group: str
    name: str
    state: str
    pid: int
    started: int
    log: Path | None


class Supervision:
    """Writes one supervisord's configuration, and calls its methods."""

    GONE: Final = "its supervisord is gone"
    """Beginning of the warning for a missing supervisord."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.configuration = environment.run / processes.CONFIGURATION
        self.pid_file = environment.run / "supervisord.pid"
        self.socket = environment.run / "supervisor.sock"

    def write_configuration(self, *, foreground: bool = False) -> None:
        """Writes the programs of the top-level file, with folders of this interface's own. Raises OSError.

        In the background they log to files. In the foreground they log to standard output, as in the top-level file.
        """
        # supervisord's own %-expansions must stay as they are.
        parser = configparser.RawConfigParser(inline_comment_prefixes=None)
        with template().open() as file:
            parser.read_file(file)
        parser["supervisord"]["pidfile"] = str(self.pid_file)
        parser["unix_http_server"]["file"] = str(self.socket)
        parser["supervisorctl"]["serverurl"] = f"unix://{self.socket}"
        if not foreground:
            self._log_to_files(parser)
        # A later `supervisord -c` then needs this file alone.
        ours = {name: value for name, value in self.variables().items() if name.startswith("STAGEWIRE_")}
        quoted = [f'{name}="{value.replace("%", "%%")}"' for name, value in ours.items() if '"' not in value]
        parser["supervisord"]["environment"] = ",".join(quoted)
        fresh = self.configuration.with_suffix(".new")
        with fresh.open("w") as file:
            parser.write(file)
        fresh.replace(self.configuration)

    def _log_to_files(self, parser: configparser.RawConfigParser) -> None:
        log = self._environment.log
        parser["supervisord"].update(
            {"nodaemon": "false", "logfile": str(log / "supervisord.log"), "logfile_maxbytes": "10MB",
             "logfile_backups": "1", "childlogdir": str(log)}
        )  # fmt: skip
        for section in parser.sections():
            if section.startswith("program:"):
                # supervisord can only rotate a file that a single process writes to.
                process = parser[section].get("process_name", section.removeprefix("program:"))
                process = process.replace("%(program_name)s", section.removeprefix("program:"))
                parser[section].update(
                    {"stdout_logfile": f"{log}/{process}.log", "stdout_logfile_maxbytes": "10MB",
                     "stdout_logfile_backups": "1"}
                )  # fmt: skip

    def variables(self) -> dict[str, str]:
        """Returns the environment of supervisord and its programs."""
        environment = self._environment
        return os.environ | {
            "STAGEWIRE_INTERFACE": environment.interface,
            "STAGEWIRE_CONFIG": str(environment.config),
            "STAGEWIRE_RUN_DIR": str(environment.run.parent),
            "STAGEWIRE_STATE_DIR": str(environment.state.parent),
            "STAGEWIRE_LOG_DIR": str(environment.log.parent),
            "STAGEWIRE_WORKERS": str(environment.workers),
            "STAGEWIRE_SPARES": str(environment.spares),
            "STAGEWIRE_PIPES": environment.pipes,
            **uids.variables(environment),
            "STAGEWIRE_WG_DIR": str(environment.wg),
            "STAGEWIRE_MANAGED": str(int(environment.managed)),
            # supervisord wants a folder for temporary files; a read-only root may have no other.
            "TMPDIR": str(environment.run),
        }

    def processes(self) -> list[Process] | None:
        """Lists all processes; None when this supervisord doesn't answer."""
        answer = self._call("supervisor.getAllProcessInfo")
        return None if answer is None else _processes(answer)

    def look(self) -> tuple[list[Process] | None, dict[str, int]]:
        """Returns `processes`, and how many of each group the kernel's filter has killed; None and {} without an answer."""
        calls = ("supervisor.getAllProcessInfo", "stagewire.killed_by_filter")
        asked = [{"methodName": each, "params": []} for each in calls]
        answers = self._call("system.multicall", asked) or [None, None]
        # A plain supervisord does not know the second; its answer is a fault then.
        found, killed = answers
        known = isinstance(killed, dict) and "faultCode" not in killed
        return _processes(found) if isinstance(found, list) else None, dict(killed) if known else {}

    def add(self, group: str, count: int) -> None:
        """Makes a group run at least `count` processes."""
        for name in self._call("stagewire.add", group, count) or []:
            self._call("supervisor.startProcess", name, False)

    def spares(self) -> int:
        """Returns the wanted number of spares of each program; 0 when supervisord doesn't answer."""
        return int(self._call("stagewire.spares") or 0)

    def does_without(self) -> str | None:
        """Says what the host denies to root's programs, empty for nothing; None when no supervisord of ours answers."""
        answer = self._call("stagewire.does_without")
        return answer if isinstance(answer, str) else None

    def stop(self, process: Process) -> None:
        """Tells a process to end, and doesn't wait for it."""
        self._call("supervisor.stopProcess", f"{process.group}:{process.name}", False)

    def drop(self, process: Process) -> bool:
        """Takes a process out of its group if it has ended; says whether it had."""
        return bool(self._call("stagewire.drop", process.group, process.name))

    def is_there(self) -> bool:
        """Says whether this supervisord, or a plain one, has the interface."""
        return bool(holders.present(self._environment.run, holders.SUPERVISORD, holders.OTHER_SUPERVISORD))

    @property
    def gone(self) -> str:
        """Returns the warning for a missing supervisord."""
        program = Path(sys.executable).parent / "supervisord"
        again = f"run `{program} -c {self.configuration}`, or `stagewire down` and `up`"
        return f"{self.GONE}, so a stage that ends stays down: {again}"

    def pid(self) -> int | None:
        """Returns supervisord's pid while it lives, also when its run folder was wiped."""
        return next(iter(self.pids()), None)

    def pids(self) -> list[int]:
        """Lists all living supervisords with this configuration; there should be one at most."""
        return processes.supervisords(self.configuration)

    def _call(self, method: str, *arguments: Any) -> Any:
        if not self.socket.exists():
            return None
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(self.socket)) as proxy:
                return getattr(proxy, method)(*arguments)
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return None


def _processes(answer: list[dict[str, Any]]) -> list[Process]:
    return [
        Process(
            info["group"], info["name"], info["statename"], info["pid"], info["start"],
            Path(info["stdout_logfile"]) if info["stdout_logfile"] else None,
        )
        for info in answer
    ]  # fmt: skip


class _Connection(http.client.HTTPConnection):
    """Speaks HTTP over a Unix socket, with a time limit: supervisor's own transport has none."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_RPC_TIMEOUT)
        self._path = path

    def connect(self) -> None:
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
    """Returns the path of `supervisord.conf`: in `root/` beside this module in a wheel, at the root of a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "root"
    return (installed if installed.exists() else here.parents[1]) / "supervisord.conf"
