"""Runs any program that starts as wireguard-go does: `PROGRAM -f INTERFACE`, then `wg setconf` and `ip`."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from lab.namespaces import Namespace
from lab.wait import until
from lab.wireguard_go import KeyPair, Peer, WireguardGo

CONFIGURE_TIMEOUT = 120
"""s that `wg setconf` may take, with 10,000 peers."""


class Implementation(WireguardGo):
    """Runs such a program with its interface, addresses and routes. It logs only errors."""

    def __init__(
        self,
        program: str | Path,
        namespace: Namespace,
        keys: KeyPair,
        addresses: Sequence[str],
        peers: Sequence[Peer] = (),
        listen_port: int | None = None,
        core: int | None = None,
        env: Mapping[str, str] | None = None,
        routes: bool = True,
    ) -> None:
        """Takes `core`, the only core that it may run on, and `env`, which adds to its environment.

        Without `routes` the interface's own networks must cover all its peers.
        """
        super().__init__(namespace, keys, addresses, peers, listen_port)
        self._program, self._core, self._env, self._routes = program, core, env or {}, routes
        self.text = setconf_text(keys, listen_port, peers)
        """The input of `wg setconf`."""

    def __enter__(self) -> Self:
        pinned = [] if self._core is None else ["taskset", "-c", str(self._core)]
        self._log = tempfile.TemporaryFile()
        self._process = self.namespace.popen(
            *pinned, self._program, "-f", self.interface, env={"LOG_LEVEL": "error", **self._env}, output=self._log
        )
        try:
            until(self._answers, 60, f"{self._program} to serve {self.interface}")
            self._configure()
        except BaseException:
            self.close()
            raise
        return self

    def _configure(self) -> None:
        self.reconfigure(self.text)
        # One process sets all: a process for each route would be slow with thousands of peers.
        lines = [
            f"address add {address} dev {self.interface}{' nodad' * (':' in address)}" for address in self._addresses
        ]
        lines.append(f"link set {self.interface} mtu {self._mtu} up")
        if self._routes:
            prefixes = (allowed for peer in self._peers for allowed in peer.allowed_ips)
            lines += [f"route replace {prefix} dev {self.interface}" for prefix in prefixes]
        self.namespace.run("ip", "-batch", "-", input="\n".join([*lines, ""]), timeout=CONFIGURE_TIMEOUT)

    def kill(self) -> None:
        """Ends the program at once, before many are closed in turn."""
        if self._process.poll() is None:
            self._process.kill()

    def reconfigure(self, text: str) -> None:
        """Runs `wg setconf`."""
        self.namespace.run("wg", "setconf", self.interface, "/dev/stdin", input=text, timeout=CONFIGURE_TIMEOUT)


def setconf_text(keys: KeyPair, listen_port: int | None, peers: Sequence[Peer]) -> str:
    """Returns a configuration as `wg setconf` reads it."""
    lines = ["[Interface]", f"PrivateKey = {keys.private}"]
    if listen_port:
        lines.append(f"ListenPort = {listen_port}")
    return "\n".join([*lines, *(peer.section() for peer in peers), ""])
