"""Builds the network: a gateway, a router, and peers behind it, each in a network namespace of its own.

    gateway 192.0.2.1 ── 192.0.2.254 router 198.51.100.x ── peers 1 to 4 (Debian's wireguard-go)

Worker 0 is home to peers 1 and 2, worker 1 to peers 3 and 4. The gateway has the endpoints of all but the last in its
configuration and must learn that one. A fifth peer, on the router, is no daemon: it only shakes hands to see whether the
gateway answers. The gateway has no default route, so a packet without a tunnel has no way out.
"""

import base64
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from tests.chaos.handshake import Prober
from tests.chaos.replay import FORGED_NETWORK, down, up
from tests.chaos.stream import Flow, make_flow

from key_service.homes import home_of
from lab.hub import Spoke
from lab.namespaces import Namespace, veth
from lab.stagewire import Gateway
from lab.wg import WgHub
from lab.wireguard_go import SOCKETS, KeyPair, Peer, WireguardGo, new_key_pair

PEERS: Final = 4
WORKERS: Final = 2
SPARES: Final = 1
PROBER: Final = 9
TRANSFERRING: Final = 2
"""The peer at the other end of the TCP connection."""
TCP_PORT: Final = 7900
GATEWAY, ROUTER = "192.0.2.1", "192.0.2.254"
DISK: Final = 96
"""MiB of the file system with all files of the gateway; its own, so that it can be full."""
RUN: Final = Path("/run")
"""Only root can make a name there. It is short, as the paths of pipes must be."""
NAMED: Final = "sw-chaos-"
"""Prefix of a run's folder; the pid follows."""


def _raw(public: str) -> bytes:
    return base64.b64decode(public)


def keys_at_home(worker: int) -> KeyPair:
    """Makes a key pair whose home is this worker, among WORKERS of them."""
    while True:
        keys = new_key_pair()
        if home_of(_raw(keys.public), WORKERS) == worker:
            return keys


class Network:
    """Holds namespaces, peers and the gateway, from the start of the context to its end."""

    def __init__(self) -> None:
        self.directory = RUN / f"{NAMED}{os.getpid()}"
        self.gateway, self.router = Namespace("gw"), Namespace("net")
        self.hosts = {number: Namespace(f"p{number}") for number in range(1, PEERS + 1)}
        self.spokes = {
            number: Spoke(
                number,
                host=None if number == PEERS else self.outer(number),
                keys=keys_at_home((number - 1) * WORKERS // PEERS),
            )
            for number in self.hosts
        }
        self.prober_spoke = Spoke(PROBER)
        self.peers: dict[int, WireguardGo] = {}
        self.stack = ExitStack()
        every = {str(spoke.number): spoke for spoke in (*self.spokes.values(), self.prober_spoke)}
        self.hub = WgHub(self.gateway, self.directory, every)
        wg = {"STAGEWIRE_WG_DIR": str(SOCKETS)}
        self.hub.gateway = Gateway(
            self.gateway, self.hub.name, self.directory, self.hub.config, WORKERS, spares=SPARES, env=wg
        )
        self.prober: Prober

    @staticmethod
    def outer(peer: int) -> str:
        """Returns a peer's address on the outer network."""
        return str(ip_address("198.51.100.0") + 16 * peer + 1)

    def __enter__(self) -> Self:
        with self.stack:
            self._build()
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _build(self) -> None:
        self.stack.enter_context(_disk(self.directory))
        for namespace in (self.gateway, self.router, *self.hosts.values()):
            self.stack.enter_context(namespace)
        self.router.sysctl("net.ipv4.ip_forward", 1)
        self.gateway.sysctl("net.ipv4.ip_forward", 1)
        self.link = veth(self.gateway, self.router, [f"{GATEWAY}/24"], [f"{ROUTER}/24"])
        for network in ("198.51.100.0/24", f"{FORGED_NETWORK}0/24"):
            self.gateway.run("ip", "route", "add", network, "via", ROUTER)
        self.router.run("ip", "route", "add", "blackhole", f"{FORGED_NETWORK}0/24")
        for number, host in self.hosts.items():
            here, there = self.outer(number), str(ip_address(self.outer(number)) + 13)
            veth(host, self.router, [f"{here}/28"], [f"{there}/28"])
            host.run("ip", "route", "add", "default", "via", there)
        self.prober = Prober(self.router, ROUTER, self.prober_spoke, self.hub.keys.public, (GATEWAY, self.hub.port))

    def homes(self, workers: int) -> dict[int, int]:
        """Returns the home of each peer among `workers` workers."""
        return {number: home_of(_raw(spoke.keys.public), workers) for number, spoke in self.spokes.items()}

    def start_peers(self) -> None:
        """Starts the peers' daemons."""
        for number, host in self.hosts.items():
            daemon = self.hub.wireguard_go(self.spokes[number], host, GATEWAY)
            self.peers[number] = self.stack.enter_context(daemon)

    def places(self) -> dict[int, tuple[str, int]]:
        """Returns the outer address and port of each peer and of the prober."""
        peers = {number: (self.outer(number), spoke.port) for number, spoke in self.spokes.items()}
        return {**peers, PROBER: self.prober.place}

    def flows(self) -> list[Flow]:
        """Opens the streams' sockets; the tunnels' addresses must be there."""
        flows = []
        for number, host in self.hosts.items():
            there, here = self.spokes[number].inner[0], self.spokes[number].gateway_inner[0]
            flows.append(make_flow(down(number), number, up=False, ends=(self.gateway, here, host, there)))
            flows.append(make_flow(up(number), number, up=True, ends=(host, there, self.gateway, here)))
        return flows

    def reference(self) -> WireguardGo:
        """Returns Debian's wireguard-go in the gateway's place, with its key, addresses and peers."""
        addresses = [f"{address}/24" for spoke in self.spokes.values() for address in spoke.gateway_inner[:1]]
        peers = [
            Peer(spoke.keys.public, spoke.networks[:1], f"{self.outer(number)}:{spoke.port}")
            for number, spoke in self.spokes.items()
        ]
        return WireguardGo(self.gateway, self.hub.keys, addresses, peers, self.hub.port)


def sweep() -> None:
    """Removes folders of runs that were killed."""
    for left in RUN.glob(f"{NAMED}*"):
        if not Path("/proc", left.name.removeprefix(NAMED)).exists():
            _take_away(left)


def _take_away(directory: Path) -> None:
    subprocess.run(["umount", "-l", str(directory)], check=False, capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _disk(directory: Path) -> Iterator[None]:
    sweep()
    _take_away(directory)  # an earlier process may have had this pid
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m,mode=755", "sw-chaos", str(directory)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
        yield
    finally:
        _take_away(directory)
