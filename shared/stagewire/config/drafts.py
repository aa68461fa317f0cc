"""Holds sections, and the names above and in them, while they are read."""

from dataclasses import dataclass, field

from stagewire.config import keys
from stagewire.config.model import (
    Access,
    ClientSettings,
    Exit,
    Forward,
    HostPort,
    Interface,
    Network,
    PeerLimits,
    Table,
)
from stagewire.proto.constants import REKEY_AFTER_TIME


@dataclass(slots=True, repr=False)
class InterfaceDraft:
    """Holds the [Interface] sections as they are read.

    `line` is that of the first header. `lines` has the line of each key, the last of several.
    """

    line: int | None = None
    lines: dict[str, int] = field(default_factory=dict)
    private_key: bytes | None = None
    listen_port: int | None = None
    fwmark: int = 0
    addresses: list[tuple[int, Interface]] = field(default_factory=list)
    dns: list[str] = field(default_factory=list)
    mtu: int | None = None
    table: Table = "auto"
    hooks: dict[str, list[str]] = field(default_factory=dict)
    save_config: bool = False
    rekey_after_time: float = REKEY_AFTER_TIME
    client_endpoint: HostPort | None = None
    client: ClientSettings = field(default_factory=ClientSettings)
    exit: Exit = "off"
    isolation: bool = False
    open_firewall: bool = False
    access: Access = field(default_factory=Access)
    forwards: dict[Forward, int] = field(default_factory=dict)
    """The first line of each port forward."""


@dataclass(slots=True, repr=False, eq=False)
class PeerDraft:
    """Holds a [Peer] section as it is read. `lines` has the line of each key, the last of several.

    `allowed_ips` are steps: a line, whether the prefix is added (not taken away), and the prefix. `adds`: the steps
    continue from an earlier section of the same peer. Later versions of `wg` do so for prefixes with a sign.
    """

    line: int
    lines: dict[str, int] = field(default_factory=dict)
    public_key: bytes | None = None
    preshared_key: bytes = keys.NO_KEY
    allowed_ips: list[tuple[int, bool, Network]] = field(default_factory=list)
    adds: bool = False
    endpoint: HostPort | None = None
    persistent_keepalive: int = 0
    response_timestamp: bool = False
    name: str = ""
    expires: int | None = None
    client: ClientSettings = field(default_factory=ClientSettings)
    access: Access = field(default_factory=Access)
    limits: PeerLimits = field(default_factory=PeerLimits)
    forwards: dict[Forward, int] = field(default_factory=dict)
    """The first line of each port forward."""


@dataclass(slots=True, repr=False)
class Names:
    """Finds the peer that a name in a block of comment lines belongs to.

    A block that touches a [Peer] from above belongs to that peer. If the block touches the lines of another [Peer]
    above it too, and that peer has no name yet, the block belongs to the peer above.
    """

    waiting: str = ""
    """The name in the block of comment lines that is being read."""
    number: int = 0
    """The line of that name."""
    dead: bool = False
    """The block holds a section out of use."""
    touches: bool = False
    """The block begins directly below a line that isn't blank."""

    def line(self, section: InterfaceDraft | PeerDraft | None, *, blank: bool = True, header: bool = False) -> str:
        """Ends a block at a line that is no comment. Returns the name that counts if the block's name does not."""
        counts = ""
        if self.waiting and isinstance(section, PeerDraft) and (self.touches or not header):
            if not section.name:
                section.name, self.waiting = self.waiting, ""
            elif not header and section.name != self.waiting:
                counts = section.name
        if not header:
            self.waiting = ""
        self.dead, self.touches = False, not blank
        return counts

    def take(self) -> str:
        """Returns the name that belongs to the section that begins."""
        name, self.waiting = self.waiting, ""
        return name
