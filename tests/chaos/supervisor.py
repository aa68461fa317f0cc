"""Speaks to the gateway's supervisord as supervisorctl does, without starting a program."""

import xmlrpc.client
from typing import Any, Final

from supervisor.xmlrpc import SupervisorTransport

from lab.stagewire import Gateway, executable
from lab.wait import until
from lab.wireguard_go import SOCKETS

STOPPED_WITHIN: Final = 30.0


class Supervisor:
    """Speaks to one interface's supervisord."""

    def __init__(self, gateway: Gateway, workers: int, spares: int) -> None:
        self._gateway, self._workers, self._spares = gateway, workers, spares
        self._run = gateway.run_directory / gateway.name

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of its `supervisor` interface. Raises OSError or xmlrpc.client.Error."""
        transport = SupervisorTransport(None, None, f"unix://{self._run / 'supervisor.sock'}")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def programs(self) -> list[str]:
        """Lists all programs as supervisorctl names them: `group:name`."""
        return [f"{info['group']}:{info['name']}" for info in self.call("getAllProcessInfo")]

    def pids(self) -> dict[str, int]:
        """Returns the pid of each program, 0 for none."""
        return {f"{info['group']}:{info['name']}": info["pid"] for info in self.call("getAllProcessInfo")}

    def of(self, stage: str) -> list[str]:
        """Lists a stage's programs."""
        return [name for name in self.programs() if name.startswith(f"{stage}-service")]

    def stop(self, names: list[str]) -> None:
        """Stops these programs, and returns when they are stopped. Raises NeverHappened."""
        until(lambda: self._stopped(names), STOPPED_WITHIN, f"{len(names)} programs to stop")

    def _stopped(self, names: list[str]) -> bool:
        # It asks repeatedly: supervisord cannot stop a program that has just died, and then starts it again.
        states = {f"{info['group']}:{info['name']}": info["statename"] for info in self.call("getAllProcessInfo")}
        left = [name for name in names if states[name] != "STOPPED"]
        for name in left:
            if states[name] != "STOPPING":
                self._tolerantly("stopProcess", name, False)
        return not left

    def start(self, names: list[str]) -> None:
        """Starts these programs. Returns at once."""
        for name in names:
            self._tolerantly("startProcess", name, False)

    def restart(self, names: list[str]) -> None:
        """Acts as `supervisorctl restart`."""
        self.stop(names)
        self.start(names)

    def _tolerantly(self, method: str, *arguments: Any) -> None:
        """Calls a method, and accepts that the program is started, or down, already."""
        try:
            self.call(method, *arguments)
        except xmlrpc.client.Fault:
            return

    def start_again(self) -> None:
        """Starts a killed supervisord as `stagewire up` does."""
        gateway = self._gateway
        env = {
            "STAGEWIRE_INTERFACE": gateway.name,
            "STAGEWIRE_CONFIG": str(gateway.config_path),
            "STAGEWIRE_RUN_DIR": str(gateway.run_directory),
            "STAGEWIRE_STATE_DIR": str(gateway.state_directory),
            "STAGEWIRE_LOG_DIR": str(gateway.log_directory),
            "STAGEWIRE_WG_DIR": str(SOCKETS),
            "STAGEWIRE_WORKERS": str(self._workers),
            "STAGEWIRE_SPARES": str(self._spares),
        }
        gateway.namespace.run(executable("supervisord"), "-c", self._run / "supervisord.conf", env=env, timeout=20)
