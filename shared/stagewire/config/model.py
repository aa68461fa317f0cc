"""Describes a configuration, and the mistakes in one."""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal

from stagewire.config.mistakes import Mistake

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface
Table = int | Literal["auto", "off"]
Exit = Literal["off", "on", "routed-ipv6", "routed"]


@dataclass(frozen=True, slots=True)
class HostPort:
    """Names a peer's place. `host` is an address (IPv6 without brackets) or a DNS name, not looked up."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Says what a client's own configuration holds, beyond keys and addresses. Empty and None: not said.

    `allowed_ips` is what the client sends into the tunnel. `keepalive` is in seconds, 0 is off.
    """

    allowed_ips: tuple[Network, ...] = ()
    dns: tuple[str, ...] = ()
    mtu: int | None = None
    keepalive: int | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """Names what a peer may reach. `to` is None for every address, `protocol` empty for all, `ports` empty for all.

    `ports` are ranges, in order. `group` has the peers that a line of [Interface] is for, and is empty for every peer.
    """

    to: Network | None
    protocol: str = ""
    ports: tuple[tuple[int, int], ...] = ()
    group: str = ""


@dataclass(frozen=True, slots=True)
class Forward:
    """Forwards a port of the gateway's addresses to a peer. Without `to`, the peer's own addresses are meant."""

    protocol: str
    port: int
    to: IPv4Address | IPv6Address | None
    to_port: int


@dataclass(frozen=True, slots=True)
class Access:
    """Says what may be reached: by a peer, or in [Interface] by groups or all peers; and at a peer, by port forwards."""

    groups: tuple[str, ...] = ()
    allow: tuple[Reach, ...] = ()
    forwards: tuple[Forward, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Bounds a peer's traffic, 0 for no bound: bits/s to the peer and from the peer, and bytes of both in a month (UTC)."""

    rate_to: int = 0
    rate_from: int = 0
    quota: int = 0


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Describes one peer: a [Peer] section, or the result of several with one public key.

    `preshared_key` is 32 zero bytes when there is none. `allowed_ips` have their host bits masked and name no prefix
    twice. `persistent_keepalive` is in seconds, 0 is off. `line` is that of the section's header. `name` is for people,
    from a comment, fit to show; it is empty for none. From the time `expires` on (unix s) the peer is not in force.
    """

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    allowed_ips: tuple[Network, ...]
    endpoint: HostPort | None
    persistent_keepalive: int
    response_timestamp: bool
    line: int = field(compare=False)
    name: str = field(default="", compare=False)
    expires: int | None = None
    client: ClientSettings = ClientSettings()
    access: Access = Access()
    limits: PeerLimits = PeerLimits()


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    """Describes a whole file: its [Interface] section, and its peers in the file's order.

    `private_key` is as written, 32 bytes, not clamped; None when the file has none. `listen_port` None means
    Stagewire's default, and 0 any free port, as for `wg`. `fwmark` 0 is off. `rekey_after_time` is in seconds. Hooks
    are shell commands as written. `client_endpoint` is where clients find us, `client` what they get if their peer says
    nothing else. `isolation`: peers don't reach one another. `open_firewall`: other tables of nftables may be changed so
    that they let the peers' packets pass. `warnings` are for the file's author, and no part of the configuration.
    """

    private_key: bytes | None = field(repr=False)
    listen_port: int | None
    fwmark: int
    addresses: tuple[Interface, ...]
    dns: tuple[str, ...]
    mtu: int | None
    table: Table
    pre_up: tuple[str, ...]
    post_up: tuple[str, ...]
    pre_down: tuple[str, ...]
    post_down: tuple[str, ...]
    save_config: bool
    rekey_after_time: float
    peers: tuple[PeerConfig, ...]
    client_endpoint: HostPort | None = None
    client: ClientSettings = ClientSettings()
    exit: Exit = "off"
    isolation: bool = False
    open_firewall: bool = False
    access: Access = Access()
    warnings: tuple[Mistake, ...] = field(default=(), compare=False, repr=False)
