"""A Stagewire gateway in a namespace, driven through its own commands and nothing else."""

import contextlib
import json
import os
import signal as signals
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from lab.namespaces import Namespace
from lab.wait import until
from stagewire.ipc import slots

SOCKET_PATH_LIMIT: Final = 107
"""Bytes in the path of a Unix socket."""
LONGEST_SOCKET_NAME: Final = 40
"""Room left for the names of the sockets in the run directory."""


class Gateway:
    """`stagewire up` to `stagewire down`, with everything it writes beneath `directory`."""

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
        """`directory` wants a short path (see the fixture `lab_directory`): the pipes are Unix sockets.

        Without spares, which what isn't about deaths can do without, a gateway is up in half the time.
        """
        self.namespace, self.name = namespace, name
        self.config_path = directory / f"{name}.conf"
        self._config_text = config_text
        self.run_directory, self.state_directory, self.log_directory, self.wg_directory = (
            directory / each for each in ("run", "state", "log", "wg")
        )
        if len(os.fsencode(self.run_directory / name)) + LONGEST_SOCKET_NAME > SOCKET_PATH_LIMIT:
            raise ValueError(f"{self.run_directory / name} is too long a path for Unix sockets")
        self.env: dict[str, str] = {
            "STAGEWIRE_RUN_DIR": str(self.run_directory),
            "STAGEWIRE_STATE_DIR": str(self.state_directory),
            "STAGEWIRE_LOG_DIR": str(self.log_directory),
            # Of its own, as gateways of one name in several namespaces share the usual place.
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
        """Takes the gateway down if it can be; what doesn't go by itself is killed with the namespace."""
        with contextlib.suppress(subprocess.TimeoutExpired, FileNotFoundError):
            self.command("down", self.name, check=False)

    def cut_off(self) -> None:
        """Ends every process at once, in a small part of the time that `stagewire down` takes to do it in order.

        The interface stays until its namespace goes.
        """
        try:
            supervisord = int((self.run_directory / self.name / "supervisord.pid").read_text())
            children = Path(f"/proc/{supervisord}/task/{supervisord}/children").read_text().split()
        except FileNotFoundError:
            return
        # In this order, or it would start new ones; and what a supervisord that was killed has left.
        processes = [supervisord, *map(int, children), *self.processes()]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signals.SIGKILL)
        until(lambda: not {*processes} & {*self.namespace.pids()}, 5, f"the processes of {self.name} to end")

    def write_config(self, text: str) -> None:
        """(Re)places the configuration file, which holds the private key, so only root may read it."""
        with os.fdopen(os.open(self.config_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    def up(self) -> None:
        """`stagewire up FILE`."""
        self.command("up", str(self.config_path), timeout=60)

    def down(self) -> None:
        """`stagewire down NAME`; raises when it fails."""
        self.command("down", self.name)

    def status(self) -> dict[str, Any]:
        """`stagewire status --json NAME`."""
        answer = json.loads(self.command("status", "--json", self.name).stdout)
        if not isinstance(answer, dict):
            raise TypeError(f"stagewire status --json answered {answer!r}")
        return answer

    def command(self, *arguments: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        """`stagewire <arguments>` in the namespace and the gateway's environment."""
        return self.namespace.run(executable("stagewire"), *arguments, check=check, timeout=timeout, env=self.env)

    def supervisorctl(
        self, *arguments: str, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """`supervisorctl <arguments>` to the gateway's supervisord."""
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
        """The process that is at work as `stage` (tun, device, conn, key, status), or supervisord."""
        if stage is None:
            return int((self.run_directory / self.name / "supervisord.pid").read_text())
        pid = self.held().get((stage, number))
        if pid is None:
            raise RuntimeError(f"no {stage}-service {number} is at work")
        return pid

    def held(self) -> dict[tuple[str, int], int]:
        """The processes at work by stage and number."""
        return slots.held(self.run_directory / self.name)

    def processes(self) -> list[int]:
        """The processes at work and those that wait."""
        return slots.contenders(self.run_directory / self.name)

    def kill(self, stage: str, signal: int, number: int = 0) -> int:
        """Sends a signal to the process at work as `stage` and returns the pid it had."""
        pid = self.pid(stage, number)
        os.kill(pid, signal)
        return pid

    def logs(self) -> dict[str, str]:
        """The text of each file in the log directory, by its name."""
        files = sorted(path for path in self.log_directory.rglob("*") if path.is_file())
        return {str(path.relative_to(self.log_directory)): path.read_text(errors="replace") for path in files}


def executable(name: str) -> Path:
    """A command installed beside the running Python."""
    return Path(sys.executable).parent / name
