"""Drives a Stagewire gateway in a namespace by its own commands."""

import contextlib
import json
import os
import signal as signals
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from lab import loaded
from lab.namespaces import STARTED_IN, Namespace, checked
from lab.wait import until
from stagewire.environment import Environment
from stagewire.linux import uids
from stagewire.process import slots
from stagewire_cli import show

SOCKET_PATH_LIMIT: Final = 107
"""Bytes in the path of a Unix socket."""
DEGRADED: Final = 4
"""Exit status of `stagewire status` when not everything works."""
LOADED: Final = frozenset(
    ["down", "reload", "status", "save", "peer", "doctor", "why", "metrics", "restart", "apply", "confirm"]
)
"""Commands that need no interpreter of their own: they leave no process behind, and heed nothing of their start."""
commands_are_loaded = False
"""Whether `Gateway.command` runs them by `lab.loaded`. Tests set it."""
LONGEST_SOCKET_NAME: Final = 40
"""Bytes left for the names of the sockets in the run directory."""


class KilledByFilter(AssertionError):  # noqa: N818 - which processes died is the message
    """Says that the kernel's filter killed processes: a system call is missing in `linux/sandbox.py`."""


def expect_no_sigsys(said: str, expected: int = 0) -> None:
    """Raises KilledByFilter with the lines of supervisord and `stagewire run`, if there are more than expected."""
    lines = [
        line for line in said.splitlines() if "terminated by SIGSYS" in line or "the kernel's filter killed" in line
    ]
    if len(lines) > expected:
        raise KilledByFilter("\n".join(lines))


class Gateway:
    """Runs `stagewire up` to `stagewire down`, with all its files beneath `directory`.

    Its end raises KilledByFilter if the filter killed more processes than `sigsys_expected`.
    """

    def __init__(
        self,
        namespace: Namespace,
        name: str,
        directory: Path,
        config_text: str,
        workers: int = 2,
        spares: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Takes a `directory` with a short path (see the fixture `lab_directory`): the pipes are Unix sockets.

        A gateway without spares is up in half the time, and only tests of deaths need spares.
        """
        self.namespace, self.name = namespace, name
        self.config_path = directory / f"{name}.conf"
        self._config_text = config_text
        self.sigsys_expected = 0
        self.run_directory, self.state_directory, self.log_directory, self.wg_directory = (
            directory / each for each in ("run", "state", "log", "wg")
        )
        if len(os.fsencode(self.run_directory / name)) + LONGEST_SOCKET_NAME > SOCKET_PATH_LIMIT:
            raise ValueError(f"{self.run_directory / name} is too long a path for Unix sockets")
        self.env: dict[str, str] = {
            "STAGEWIRE_RUN_DIR": str(self.run_directory),
            "STAGEWIRE_STATE_DIR": str(self.state_directory),
            "STAGEWIRE_LOG_DIR": str(self.log_directory),
            # Gateways of one name in several namespaces would share the usual place.
            "STAGEWIRE_WG_DIR": str(self.wg_directory),
            "STAGEWIRE_WORKERS": str(workers),
            "STAGEWIRE_SPARES": str(spares),
            **(env or {}),
        }

    def __enter__(self) -> Self:
        self.write_config(self._config_text)
        for directory in (self.run_directory, self.state_directory, self.log_directory):
            directory.mkdir(exist_ok=True)
        try:
            self.up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the gateway down. Processes that stay are killed with the namespace."""
        with contextlib.suppress(subprocess.TimeoutExpired, FileNotFoundError):
            self.command("down", self.name, check=False)
        self.expect_no_sigsys()

    def cut_off(self) -> None:
        """Ends every process at once, much sooner than an orderly `stagewire down`.

        The interface stays until its namespace goes.
        """
        try:
            supervisord = int((self.run_directory / self.name / "supervisord.pid").read_text())
            children = Path(f"/proc/{supervisord}/task/{supervisord}/children").read_text().split()
        except FileNotFoundError:
            self.expect_no_sigsys()
            return
        # supervisord comes first, or it would start new ones. The last are the orphans of an earlier supervisord.
        processes = [supervisord, *map(int, children), *self.processes()]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signals.SIGKILL)
        until(lambda: not {*processes} & {*self.namespace.pids()}, 5, f"the processes of {self.name} to end")
        self.expect_no_sigsys()

    def expect_no_sigsys(self) -> None:
        """Raises KilledByFilter as the function does, by what the logs say."""
        expect_no_sigsys("".join(self.logs().values()), self.sigsys_expected)

    def write_config(self, text: str) -> None:
        """Writes the configuration file, which holds the private key, readable by root alone."""
        with os.fdopen(os.open(self.config_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    def up(self) -> None:
        """Runs `stagewire up FILE`. From then on `uids.uid_of` tells this gateway's uids."""
        self.command("up", str(self.config_path), timeout=180)
        uids.look(Environment.read(self.env, self.name))

    def down(self) -> None:
        """Runs `stagewire down NAME`. Raises RuntimeError if it fails."""
        self.command("down", self.name)

    def status(self) -> dict[str, Any]:
        """Returns what `stagewire status --json NAME` prints. Raises RuntimeError if the interface is not up.

        Asks the services from this process: the command would take 0.3 s of CPU, nearly all for the interpreter's start.
        """
        found = show.gather(Environment.read({**os.environ, **self.env}, self.name))
        if found is None:
            raise RuntimeError(f"{self.name} is not up")
        return dict(json.loads(json.dumps(found)))

    def status_by_command(self) -> dict[str, Any]:
        """Runs `stagewire status --json NAME`. The interface may be degraded. Raises RuntimeError if it is not up."""
        asked = self.command("status", "--json", self.name, check=False)
        if asked.returncode not in {0, DEGRADED}:
            raise RuntimeError(f"stagewire status --json {self.name} exited {asked.returncode}: {asked.stderr.strip()}")
        return dict(json.loads(asked.stdout))

    def command(self, *arguments: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Runs `stagewire <arguments>` in the namespace and the gateway's environment."""
        variables = {**os.environ, STARTED_IN: self.namespace.name, **self.env}
        if not (commands_are_loaded and arguments[0] in LOADED and loaded.suits(variables)):
            return self.program(*arguments, check=check, timeout=timeout)
        words: tuple[str | Path, ...] = (executable("stagewire"), *arguments)
        result = loaded.run(words, variables, timeout, namespace=self.namespace.name)
        return checked(result) if check else result

    def program(self, *arguments: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """Runs a command as `command` does, and always by a new interpreter."""
        return self.namespace.run(executable("stagewire"), *arguments, check=check, timeout=timeout, env=self.env)

    def supervisorctl(
        self, *arguments: str, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Runs `supervisorctl <arguments>` with the gateway's supervisord."""
        configuration = self.run_directory / self.name / "supervisord.conf"
        return self.namespace.run(
            executable("supervisorctl"),
            "-c",
            configuration,
            *arguments,
            check=check,
            timeout=timeout,
            env=self.env,
        )

    def pid(self, stage: str | None = None, number: int = 0) -> int:
        """Returns the holder's pid of `stage` (tun, device, conn, key, status, host, resolver), or supervisord's."""
        if stage is None:
            return int((self.run_directory / self.name / "supervisord.pid").read_text())
        pid = self.held().get((stage, number))
        if pid is None:
            raise RuntimeError(f"no {stage}-service {number} is at work")
        return pid

    def held(self) -> dict[tuple[str, int], int]:
        """Returns the holders' pids by stage and number."""
        return slots.held(self.run_directory / self.name)

    def processes(self) -> list[int]:
        """Returns the pids of holders and spares."""
        return slots.contenders(self.run_directory / self.name)

    def kill(self, stage: str, signal: int, number: int = 0) -> int:
        """Sends a signal to the holder of `stage`. Returns its pid."""
        pid = self.pid(stage, number)
        os.kill(pid, signal)
        return pid

    def logs(self) -> dict[str, str]:
        """Returns the text of each file in the log directory, by its name."""
        files = sorted(path for path in self.log_directory.rglob("*") if path.is_file())
        return {str(path.relative_to(self.log_directory)): path.read_text(errors="replace") for path in files}


def executable(name: str) -> Path:
    """Returns a command installed beside the running Python."""
    return Path(sys.executable).parent / name
