"""Holds what the search for a cause (`diagnosis`) looks at, and what it finds."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from stagewire.limits import MIN_MTU_IPV6
from stagewire.proto.constants import REJECT_AFTER_TIME
from stagewire_cli.deciding_route import Decision
from stagewire_cli.former import Former
from stagewire_cli.host_facts import Denied, Load
from stagewire_cli.ipsec import Policy
from stagewire_cli.ping import Heard
from stagewire_cli.probe import Refusal
from stagewire_cli.ruleset import Block
from stagewire_cli.way_out import WayOut, host_of

RECENT: Final = REJECT_AFTER_TIME
"""s in which a reason counts as present, as long as a session lives."""
Tried = Literal["", "answered", "unanswered", "refused"]
"""How a handshake went that the command had begun; empty if none was tried. Refused: the answer was not authentic."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Says what is going on, what to do first, and what was seen. `wrong` is false if nothing has to be done."""

    id: str
    text: str
    mend: str
    seen: str = ""
    wrong: bool = True


@dataclass(frozen=True, slots=True)
class Away:
    """Describes a service that isn't at work: its fault, and the command that brings it back."""

    service: str
    fault: str
    mend: str
    carries: bool = True
    """Packets or handshakes need it."""
    command: tuple[str, ...] = ()
    passes: bool = False
    """It may be at work in a moment."""
    renamed: str = ""
    """The name that the interface has by now, if that is the fault."""

    def __str__(self) -> str:
        return f"{self.service} {self.fault}"


@dataclass(slots=True)
class Path:
    """Tells what packets of two sizes through the tunnel did: None if not tried, else whether an answer came."""

    small: bool | None = None
    large: bool | None = None
    fits: int = 0
    """Bytes of the largest packet that was answered."""
    mtu: int = 0
    lost: int = 0
    """Small packets without an answer, while others had one."""
    silent: tuple[str, ...] = ()
    """The peer's own addresses that answered nothing."""
    answering: tuple[str, ...] = ()
    """Its own addresses that did."""
    other_answer: str = ""
    """An address of the peer that answers TCP and no ping."""
    refused: Heard | None = None
    """What answered that it can't hand the packet on to the target."""
    forwards: Heard | None = None
    """The peer's answer to a packet that it could have handed on once more, which only a host that forwards gives."""


@dataclass(slots=True)
class Evidence:
    """Holds all that the search looks at. `peer` and `strangers` are as `stagewire status --json` shows them."""

    interface: str
    peer: dict[str, Any]
    now: float
    """Unix s."""
    strangers: list[dict[str, Any]] = field(default_factory=list)
    away: list[Away] = field(default_factory=list)
    """Services that aren't at work, each with its fault."""
    link_up: bool | None = True
    others: dict[str, list[str]] = field(default_factory=dict)
    """Allowed-IPs of the other peers, by their label."""
    routes: dict[str, str] = field(default_factory=dict)
    """The device that the host's route to each of the peer's prefixes leads to; empty for none."""
    past: dict[str, Decision] = field(default_factory=dict)
    """What leads packets to these prefixes past the tunnel."""
    port: int = 0
    """Our UDP port."""
    port_blocked: list[Block] = field(default_factory=list)
    """Rules of this host that drop what comes to our port."""
    out_blocked: list[Block] = field(default_factory=list)
    """Rules of this host that drop what we send to the endpoint."""
    tunnel_blocked: list[Block] = field(default_factory=list)
    """Rules of this host that drop packets of the tunnel before they enter it, or as they come out for this host."""
    through_blocked: list[Block] = field(default_factory=list)
    """Rules of this host that drop packets on their way through the tunnel and this host."""
    way: WayOut | None = None
    """The way to the peer's endpoint."""
    way_decides: Decision | None = None
    """What leads our datagrams to the endpoint into the tunnel itself."""
    place_on: tuple[str, str] = ("", "")
    """The link of this host that has the endpoint's address, and the address with its length."""
    mark_rules: list[Decision] = field(default_factory=list)
    """Rules of this host that refuse packets with a mark."""
    hops: int = 0
    """How many routers this host lets its packets pass."""
    is_ourselves: bool = False
    """The endpoint is this gateway's own address and port."""
    former: dict[str, Former] = field(default_factory=dict)
    """What became of the peers that had the keys of strangers."""
    last_seen: str = ""
    """When and where the peer was connected last; empty if nothing tells."""
    own_address: str = ""
    """An address of the peer, or the target, that this host has itself; empty for none."""
    own_on: tuple[str, str] = ("", "")
    """The link that has it, and the address with its length."""
    arrives: bool = False
    """Packets of the peer arrived while a ping found no answer."""
    only_in: bool = False
    """The peer has sent packets, and none has gone back to it."""
    refused_forwards: dict[int, int] = field(default_factory=dict)
    """Packets for others, by version, that this host has dropped since it began, as it doesn't forward."""
    refuses_forwards: frozenset[int] = frozenset()
    """Versions of which it has dropped more meanwhile."""
    forwards: dict[int, bool] = field(default_factory=dict)
    """Whether the host forwards packets, by version of IP."""
    masquerades: bool | None = None
    denied: list[Denied] = field(default_factory=list)
    """What this host's access rules have dropped of the peer's packets, or of those that the operator asks about."""
    isolates: bool = False
    """The rules keep peers apart."""
    kept: tuple[str, str] | None = None
    """Which other firewall of this host drops what peers send through it, and what to do."""
    strict_source: bool = False
    """The host drops packets whose source's route leads elsewhere (rp_filter = 1)."""
    source_drops: int = 0
    """Packets that the host has dropped so."""
    more_source_drops: int = 0
    """Those of them that it has dropped while a handshake was tried."""
    ipsec_drops: int = 0
    """Packets that the host's IPsec policies have cost."""
    more_ipsec_drops: int = 0
    """Those of them while a handshake and packets were tried."""
    ipsec_policy: Policy | None = None
    """The policy that selects the endpoint's address, or one in the tunnel."""
    ipv6_off: bool = False
    """The host has IPv6 switched off on our interface."""
    tracks_no_more: bool = False
    """The host's table of connections is full, so that it drops packets of new ones."""
    own_families: frozenset[int] = frozenset((4, 6))
    """Versions of IP of which our interface has an address."""
    busy: dict[str, Load] = field(default_factory=dict)
    """The load of each worker."""
    without_session: frozenset[str] = frozenset()
    """Labels of the other peers that have none."""
    tried: Tried = ""
    refusal: Refusal | None = None
    """What the way to the endpoint has answered to a datagram, if anything."""
    path: Path = field(default_factory=Path)
    target: str = ""
    """The address behind the peer that the operator asked about."""
    ours: str = ""
    """Our public key."""

    def last(self, *reasons: str) -> dict[str, Any] | None:
        """Returns the newest recent reason of the peer among these."""
        found = [each for each in self.peer.get("reasons", []) if each["reason"] in reasons and self._recent(each)]
        return max(found, key=lambda each: each["last_unix_s"], default=None)

    def stranger(self, reason: str, place: str = "") -> dict[str, Any] | None:
        """Returns the newest recent reason of a sender that is no peer; with `place`, of the sender there.

        `place` is an address, or an address with a port.
        """
        found = [
            each
            for each in self.strangers
            if each["reason"] == reason
            and self._recent(each)
            and (not place or place in (each["example"]["address"], host_of(each["example"]["address"])))
        ]
        return max(found, key=lambda each: each["last_unix_s"], default=None)

    def _recent(self, found: dict[str, Any]) -> bool:
        return bool(self.now - found["last_unix_s"] <= RECENT)

    @property
    def ends_ipv6(self) -> bool:
        """Tells whether our interface's MTU is too small for IPv6."""
        return 0 < self.path.mtu < MIN_MTU_IPV6

    @property
    def host(self) -> str:
        """Returns the address of the peer's endpoint."""
        return host_of(self.peer["endpoint"] or "")

    @property
    def shaken(self) -> float | None:
        """Returns the age of the last handshake (s)."""
        at = self.peer["last_handshake_unix_s"]
        return None if at is None else self.now - at

    @property
    def connected(self) -> bool:
        """Tells whether handshakes work, as far as anything shows."""
        if self.tried:
            return self.tried == "answered"
        return self.shaken is not None and self.shaken <= RECENT


def seen(found: dict[str, Any] | None) -> str:
    """Tells what a finding rests on."""
    if found is None:
        return ""
    place = f", from {found['example']['address']}" if found["example"]["address"] else ""
    return f"{found['reason']} {found['count']:,}{place}"
