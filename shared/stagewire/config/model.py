"""What a configuration file says, and what can be wrong with one."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Literal

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface
Table = int | Literal["auto", "off"]


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where a peer is reached. `host` is an address (IPv6 without brackets) or a DNS name, not looked up."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One [Peer] section.

    `preshared_key` is 32 zero bytes when there is none. `allowed_ips` have their host bits masked and name no
    prefix twice. `persistent_keepalive` is in seconds, 0 is off. `line` is that of the section's header.
    """

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    allowed_ips: tuple[Network, ...]
    endpoint: HostPort | None
    persistent_keepalive: int
    response_timestamp: bool
    line: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    """A whole file: its [Interface] section, and its peers in the file's order.

    `private_key` is as written, 32 bytes, not clamped; `parse` and `load` never leave it None. `listen_port`
    None means Stagewire's default, and 0 any free port, as for `wg`. `fwmark` 0 is off. `rekey_after_time` is
    in seconds. Hooks are shell commands as written.
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


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to put right. `line` counts from 1; None when it is about the file as a whole."""

    path: str
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.line is None else f"{self.path}:{self.line}: {self.message}"


class ConfigError(Exception):
    """A configuration that can't be used. `mistakes` are all that were found, in the file's order.

    `str()` is one line per mistake. No message holds a key, nor 20 characters of one, so all of it may be logged.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))
