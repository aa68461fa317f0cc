"""Runs a Stagewire gateway that many tests share: each has a peer of its own, with its own keys and inner networks.

Peer number n has 10.66.n.0/24 and fd66:n::/64. There .1 is the gateway's, .2 the peer's, which listens on port 51820
+ n.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from lab.namespaces import Namespace
from lab.pulse import PulseReport
from lab.stagewire import Gateway
from lab.traffic import StreamReport
from lab.wait import NeverHappened, until
from lab.wireguard_go import KeyPair, Peer, WireguardGo, new_key_pair, new_preshared_key

PORT: Final = 51820
MAX_TRAIN: Final = 64
"""Most packets that a pipe drops together when they are too old."""


@dataclass(frozen=True, slots=True)
class Spoke:
    """Describes a peer of the shared gateway, as both sides configure it."""

    number: int
    host: str | None = None
    """The peer's address (IPv6 in brackets) or name as the gateway has it; None if the peer must initiate."""
    at_port: int | None = None
    """The port in the endpoint, if it is not the peer's own."""
    psk: bool = False
    keepalive: int | None = None
    """s; the gateway's PersistentKeepalive."""
    response_timestamp: bool = False
    name: str = ""
    """The peer's name in the gateway's configuration."""
    allowed_ips: Sequence[str] = ()
    """Beyond the peer's own networks."""
    keys: KeyPair = field(default_factory=new_key_pair)
    preshared_key: str = field(default_factory=new_preshared_key, repr=False)

    @property
    def port(self) -> int:
        """Returns the port where the peer listens."""
        return PORT + self.number

    @property
    def inner(self) -> tuple[str, str]:
        """Returns the peer's own addresses, IPv4 and IPv6."""
        return f"10.66.{self.number}.2", f"fd66:{self.number}::2"

    @property
    def gateway_inner(self) -> tuple[str, str]:
        """Returns the gateway's addresses towards the peer."""
        return f"10.66.{self.number}.1", f"fd66:{self.number}::1"

    @property
    def networks(self) -> tuple[str, str]:
        """Returns the networks that hold both sides' addresses."""
        return f"10.66.{self.number}.0/24", f"fd66:{self.number}::/64"

    def peer(self) -> Peer:
        """Returns the peer's section in the gateway's configuration."""
        return Peer(
            self.keys.public,
            [*self.networks, *self.allowed_ips],
            f"{self.host}:{self.at_port or self.port}" if self.host else None,
            self.preshared_key if self.psk else None,
            self.keepalive,
            self.response_timestamp,
            self.name,
        )


class Hub:
    """Runs the shared gateway. `lines` are added to its [Interface] section."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        spokes: Mapping[str, Spoke],
        *lines: str,
        name: str = "wg0",
        port: int = PORT,
        keys: KeyPair | None = None,
    ) -> None:
        self.namespace, self.spokes, self.name, self.port = namespace, spokes, name, port
        self._directory = directory
        self._unexplained = 0
        self._far: dict[str, Namespace] = {}
        """The namespaces of the other sides, by name."""
        self.keys = keys or new_key_pair()
        addresses = [
            f"{address}/{length}"
            for spoke in spokes.values()
            for address, length in zip(spoke.gateway_inner, (24, 64), strict=True)
        ]
        self.config = configuration(self.keys, port, addresses, [spoke.peer() for spoke in spokes.values()], *lines)
        self.gateway = Gateway(namespace, name, directory, self.config)

    def __enter__(self) -> Self:
        self._directory.mkdir(exist_ok=True)
        self.gateway.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.cut_off()

    def wireguard_go(
        self,
        spoke: Spoke,
        namespace: Namespace,
        host: str | None = None,
        *,
        at_port: int | None = None,
        keepalive: int | None = None,
        mtu: int = 1420,
        allowed_ips: Sequence[str] = (),
    ) -> WireguardGo:
        """Returns the other side of a spoke. Without `host`, the gateway must speak first."""
        self._far[namespace.name] = namespace
        here, there = spoke.inner, spoke.gateway_inner
        gateway = Peer(
            self.keys.public,
            [f"{there[0]}/32", f"{there[1]}/128", *allowed_ips],
            f"{host}:{at_port or self.port}" if host else None,
            spoke.preshared_key if spoke.psk else None,
            keepalive,
        )
        return WireguardGo(namespace, spoke.keys, [f"{here[0]}/32", f"{here[1]}/128"], [gateway], spoke.port, mtu)

    def peer(self, spoke: Spoke) -> dict[str, Any]:
        """Returns what `stagewire status --json` says of a peer."""
        found = (peer for peer in self.gateway.status()["peers"] if peer["public_key"] == spoke.keys.public)
        return dict(next(found))

    def counters(self) -> Counter[str]:
        """Adds up the counters of all services. They may be a second old."""
        total: Counter[str] = Counter()
        for service in self.gateway.status()["services"]:
            total.update(service["counters"])
        return total

    def starved(self) -> int:
        """Counts the most packets that were dropped because a process got no CPU in time, here or at the other side.

        An idle machine drops none.
        """
        counters = self.counters()
        trains = MAX_TRAIN * counters["train_too_old"]
        theirs = sum(each.udp_overflows() for each in self._far.values() if each.exists())
        return trains + theirs + sum(counters[pipe] for pipe in ("worker_full", "conn_full", "tun_full"))

    def expect_whole(self, *reports: StreamReport | PulseReport, lost: int = 0) -> None:
        """Fails if a packet is doubled, damaged, or lost beyond `lost`.

        Forgives losses that the gateway counts as starved.
        """
        for report in reports:
            if report.duplicates or (isinstance(report, StreamReport) and report.foreign):
                raise AssertionError(f"doubled or damaged: {report}")
            self._unexplained += max(0, report.lost - lost)
        if self._unexplained:
            try:
                until(lambda: self._unexplained <= self.starved(), 3, f"an explanation of what was lost: {reports}")
            except NeverHappened as never:
                raise NeverHappened(f"{never}; the gateway counts {dict(+self.counters())}") from None


def configuration(keys: KeyPair, port: int, addresses: Sequence[str], peers: Sequence[Peer], *lines: str) -> str:
    """Returns a wg-quick file."""
    interface = [
        "[Interface]",
        f"PrivateKey = {keys.private}",
        f"ListenPort = {port}",
        f"Address = {', '.join(addresses)}",
    ]
    return "\n".join([*interface, *lines, *(peer.section() for peer in peers), ""])


@contextlib.contextmanager
def together(*contexts: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Enters and leaves all contexts at once: each gateway needs seconds to come up, and again to end."""
    entered = []
    with ThreadPoolExecutor(len(contexts)) as pool:
        attempts = [(context, pool.submit(context.__enter__)) for context in contexts]
        try:
            for context, attempt in attempts:
                if attempt.exception() is None:
                    entered.append(context)
            for _, attempt in attempts:
                attempt.result()
            yield
        finally:
            for leaving in [pool.submit(context.__exit__, None, None, None) for context in entered]:
                leaving.result()
