"""Runs gateways that Debian's `wg` speaks to: `stagewire up FILE` and a bare `stagewire INTERFACE`.

All network namespaces share the usual place of their sockets, so each interface has a unique name on the machine.
"""

import base64
import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, Self

from lab.hub import PORT, Hub, Spoke, together
from lab.namespaces import Namespace, Topology, add_addresses
from lab.stagewire import Gateway
from lab.wait import until
from lab.wireguard_go import SOCKETS, Dump, parse_dump

TIMEOUT: Final = 60
GATEWAY: Final = {4: Topology.B4, 6: f"[{Topology.B6}]"}
"""Host part of the endpoint of a gateway in B."""
INNER: Final = {4: 0, 6: 1}
"""Index of a family among a spoke's two inner addresses."""
_WG: Final = {"STAGEWIRE_WG_DIR": str(SOCKETS)}
_numbers = itertools.count(1)


def unique_name() -> str:
    """Returns an interface's name that no other process uses; at most 15 characters."""
    return f"sw{os.getpid()}h{next(_numbers)}"


class Bare(Gateway):
    """Runs `stagewire INTERFACE`, which has no configuration until a program sets it through its socket."""

    def __init__(
        self, namespace: Namespace, directory: Path, workers: int = 1, env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(namespace, unique_name(), directory, "", workers, env={**_WG, **(env or {})})

    @property
    def socket(self) -> Path:
        """Returns the socket's path, where `wg` looks for it."""
        return SOCKETS / f"{self.name}.sock"

    def up(self) -> None:
        self.command(self.name)

    def gone(self) -> bool:
        """Tells whether process, socket, run directory and device are all gone."""
        named = [pid for pid in self.namespace.pids() if self.name in _command_line(pid)]
        link = self.namespace.run("ip", "link", "show", self.name, check=False).returncode == 0
        run = self.run_directory / self.name
        return not (named or link or run.exists() or self.socket.exists())

    def close(self) -> None:
        """Ends every process at once. The keeper sees that and removes the rest."""
        self.cut_off()
        with contextlib.suppress(AssertionError):
            until(self.gone, 10, f"{self.name} to clean up")
        self.socket.unlink(missing_ok=True)


def is_ready(gateway: Gateway) -> bool:
    """Tells whether every stage is at work."""
    with contextlib.suppress(RuntimeError, OSError):
        return bool(gateway.status()["ready"])
    return False


def _command_line(pid: int) -> str:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return environment.decode(errors="replace")


def over_both_families(first: int, of_ipv6: Mapping[str, Any]) -> dict[str, Spoke]:
    """Returns a peer over IPv4 and the next over IPv6, both in A. `of_ipv6` adds to the second."""
    return {
        "over IPv4": Spoke(first, Topology.A4),
        "over IPv6": Spoke(first + 1, f"[{Topology.A6}]", **of_ipv6),
    }


@contextlib.contextmanager
def both_kinds(namespace: Namespace, directory: Path, **of_ipv6: Any) -> Iterator[dict[str, "WgHub"]]:
    """Runs a gateway of each kind, "up" and "bare", with equal peers that differ only in number."""
    hubs = {
        "up": WgHub(namespace, directory / "u", over_both_families(1, of_ipv6)),
        "bare": BareHub(namespace, directory / "d", over_both_families(11, of_ipv6)),
    }
    with together(*hubs.values()):
        yield hubs


class WgHub(Hub):
    """Runs `stagewire up` and its spokes, within reach of `wg`."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        spokes: Mapping[str, Spoke],
        *lines: str,
        port: int = PORT,
        workers: int = 2,
        spares: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(namespace, directory, spokes, *lines, name=unique_name(), port=port)
        self.gateway = Gateway(namespace, self.name, directory, self.config, workers, spares, {**_WG, **(env or {})})

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        (SOCKETS / f"{self.name}.sock").unlink(missing_ok=True)

    def over(self, family: int) -> Spoke:
        """Returns the peer whose outer packets are IPv4's or IPv6's."""
        return self.spokes[f"over IPv{family}"]

    def wg(self, *arguments: str, data: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `wg <arguments>`, with `data` at its /dev/stdin."""
        return self.namespace.run("wg", *arguments, input=data, check=check, timeout=TIMEOUT)

    def set(self, *arguments: str, data: str | None = None) -> None:
        """Runs `wg set <interface> <arguments>`."""
        self.wg("set", self.name, *arguments, data=data)

    def show(self, field: str) -> str:
        """Runs `wg show <interface> <field>`."""
        return self.wg("show", self.name, field).stdout

    def dump(self) -> Dump:
        """Returns the current state as `wg show` knows it."""
        return parse_dump(self.show("dump"))

    def section(self, spoke: Spoke) -> str:
        """Returns a spoke as `wg setconf` reads it."""
        return spoke.peer().section() + "\n"

    def stripped(self) -> str:
        """Returns the configuration without the settings that only wg-quick knows."""
        return "".join(f"{line}\n" for line in self.config.splitlines() if not line.startswith("Address"))


class BareHub(WgHub):
    """Runs a bare interface, which `wg setconf` and `ip` configure, as wg-quick would."""

    def __init__(
        self, namespace: Namespace, directory: Path, spokes: Mapping[str, Spoke], *, port: int = PORT + 100
    ) -> None:
        super().__init__(namespace, directory, spokes, port=port)
        self.bare = Bare(namespace, directory)
        self.gateway, self.name = self.bare, self.bare.name

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.wg("setconf", self.name, "/dev/stdin", data=self.stripped())
            self.address(self.namespace)
        except BaseException:
            self.bare.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.bare.close()

    def address(self, namespace: Namespace) -> None:
        """Gives the interface its addresses, in its current namespace."""
        for spoke in self.spokes.values():
            pairs = zip(spoke.gateway_inner, spoke.networks, strict=True)
            inner = [f"{address}/{ip_network(network).prefixlen}" for address, network in pairs]
            add_addresses(namespace, self.name, inner)
        namespace.run("ip", "link", "set", self.name, "mtu", "1420", "up")


@contextlib.contextmanager
def connected(name: str) -> Iterator[socket.socket]:
    """Connects to an interface's socket as a client other than `wg`."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(SOCKETS / f"{name}.sock"))
        client.settimeout(TIMEOUT)
        yield client


def say(name: str, text: str | bytes) -> bytes:
    """Sends a text and the end. Returns the whole answer."""
    with connected(name) as client:
        client.sendall(text.encode() if isinstance(text, str) else text)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def hexadecimal(key: str) -> str:
    """Converts a key from base64 to the socket's hexadecimal."""
    return base64.b64decode(key).hex()
