"""Defines every control message, and in ALLOWED which party may say it.

key-service answers Hello with a snapshot: Welcome, the stage's settings, its peers and prefixes or its routes, SnapshotEnd.
The stage takes each message as a change of its state. At the end it drops what no message named, and says Applied.
Later changes are the same messages, without Welcome and SnapshotEnd.

Prefixes travel as `proto.prefix` packs them, at most PREFIX_BATCH in a message. A peer may have 130,000 prefixes, and a
stage must not let its packets wait for long.

No message here carries a secret key: session keys travel by `session_keys`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Final

from stagewire.control.chains import Chain, ChainJudged, ChainsChanged, Nested
from stagewire.control.codec import Codec
from stagewire.control.confirm import Cleared, Confirm, Confirmed
from stagewire.control.gateway import NO_RULES, GatewayRules, PacketsDenied
from stagewire.control.questions import (
    VERSION,
    EventsQuery,
    HandshakeBegun,
    HandshakeNow,
    Scale,
    Scaled,
    StatusQuery,
)
from stagewire.control.status import CountersStatus, EventsStatus, GatewayStatus
from stagewire.control.telemetry import Counters, CountLast, GatewayReport, LastCount, LastReport, PeerTraffic
from stagewire.proto.events import EndpointMoved, SessionConfirmed, SessionsEnded, WantHandshake

HEARTBEAT_INTERVAL: Final = 1.0
"""s between two heartbeats of a stage with work and without news. An empty message greets each new key-service at once."""
PREFIX_BATCH: Final = 128
"""Prefixes in one message; packets wait while the stage reads it."""
PEER_BATCH: Final = 64
"""Peers in one message."""
SESSION_BATCH: Final = 256
"""Sessions in one message: 25 KB."""
MAX_SESSIONS: Final = 1 << 16
"""Sessions that one worker may list. 20,000 peers in one worker have fewer."""
SILENT_AFTER: Final = 3.0
"""s without a heartbeat after which a stage with work counts as away; an idle one has IDLE_INTERVAL more."""


@dataclass(frozen=True, slots=True)
class LiveSession:
    """Describes a session that runs in a worker.

    `created` is when its keys were made, `handshake` when its handshake was complete, 0 before; both in s since the boot.
    """

    public_key: bytes
    index: int
    endpoint: bytes
    created: float
    handshake: float


@dataclass(frozen=True, slots=True)
class Hello:
    """Introduces a process that has started, or has met a new key-service. `generation` is random, made at the start.

    So many `sessions` follow in LiveSessions. The hello counts once they are there. A worker's `kernel` says which it has,
    and why.
    """

    stage: str
    number: int
    generation: int
    pid: int
    sessions: int = 0
    kernel: str = ""


@dataclass(frozen=True, slots=True)
class LiveSessions:
    """Lists some of the sessions that run in a worker."""

    sessions: tuple[LiveSession, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Says that a process of a stage lives, with how many spares, and in a line why it cannot work, if so."""

    generation: int
    fault: str
    spares: int


@dataclass(frozen=True, slots=True)
class Applied:
    """Says that a stage has applied the snapshot of this version."""

    version: int


@dataclass(frozen=True, slots=True)
class SessionsInstalled:
    """Says which of the sessions that came together a worker has."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """Says that a worker refused a session: its peer isn't at home there, or its index is in use."""

    index: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """Begins a snapshot. `generation` is key-service's."""

    generation: int
    version: int


@dataclass(frozen=True, slots=True)
class Beat:
    """Says that key-service lives. A stage that was welcomed by another generation says Hello again.

    0 always makes the stage say Hello: key-service does not know the stage, or could not tell it everything.
    """

    generation: int


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """Ends the snapshot of this version."""

    version: int


@dataclass(frozen=True, slots=True)
class TunSettings:
    """Sets how many workers tun-service sends to."""

    workers: int


@dataclass(frozen=True, slots=True)
class RoutesSet:
    """Assigns prefixes to a worker. For host-service: sets a route to each prefix.

    While their peers move, the workers in `also` deliver packets from the prefixes as well.
    """

    worker: int
    prefixes: tuple[bytes, ...]
    also: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutesGone:
    """Withdraws prefixes that no peer has any more."""

    prefixes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Sets the inner MTU (bytes) and the rekey interval (s) for every peer."""

    mtu: int
    rekey_after_time: float


@dataclass(frozen=True, slots=True)
class WorkerPeer:
    """Describes a peer to a worker, with a packed endpoint or none. `endpoint_at` is EndpointFound's `at`.

    The rates are in bits/s, 0 for none. At `cap` bytes of its tunnel, both ways, the peer's traffic stops; -1 for none.
    Nothing passes while `held_back` is set.
    """

    public_key: bytes
    home: bool
    """Whether the peer is at home in this worker."""
    persistent_keepalive: int
    endpoint: bytes
    endpoint_at: float = 0.0
    rate_to: int = 0
    rate_from: int = 0
    cap: int = -1
    held_back: bool = False


@dataclass(frozen=True, slots=True)
class PeersSet:
    """Adds or changes peers."""

    peers: tuple[WorkerPeer, ...]


@dataclass(frozen=True, slots=True)
class PeersGone:
    """Removes peers, which ends their sessions."""

    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MoveIn:
    """Makes peers at home in this worker, and for a while in their old worker too. The worker answers with MovedIn."""

    peers: tuple[WorkerPeer, ...]


@dataclass(frozen=True, slots=True)
class MovedIn:
    """Says that these peers are at home in the worker."""

    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SendEmpty:
    """Makes a worker send an empty packet to peers that may not know their new session yet."""

    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Retire:
    """Tells a worker to end: no peer is at home in it, and none will be."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Lists some prefixes of one peer."""

    public_key: bytes
    prefixes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PrefixesSet:
    """Adds prefixes to peers' allowed-IPs, and takes them from the peers that had them."""

    entries: tuple[Prefixes, ...]


@dataclass(frozen=True, slots=True)
class PrefixesGone:
    """Removes prefixes from peers' allowed-IPs."""

    entries: tuple[Prefixes, ...]


@dataclass(frozen=True, slots=True)
class EndpointFound:
    """Tells where a peer is, by a look-up or the operator. The worker repeats `at` (s) with each EndpointMoved."""

    public_key: bytes
    endpoint: bytes
    at: float


@dataclass(frozen=True, slots=True)
class SendingExpired:
    """Says that our long-term key has changed: no session may send any more."""


@dataclass(frozen=True, slots=True)
class SendStaged:
    """Names peers that the operator has set again. The worker tries again to send their staged packets."""

    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ConnSettings:
    """Sets conn-service's gate, and how many workers conn-service sends to.

    `public_key` is ours, zeros without a private key. `stamped`: some peer's responses carry a timestamp, so the gate
    lets responses of that length through.
    """

    public_key: bytes
    workers: int
    stamped: bool


@dataclass(frozen=True, slots=True)
class SocketSettings:
    """Sets the tunnel's UDP port, 0 for any free port, and the mark of its datagrams, 0 for none.

    host-service answers with Listening, with the same `request`. Settings with a request are a trial: if it fails, the open
    sockets stay.
    """

    listen_port: int
    fwmark: int
    request: int = 0


@dataclass(frozen=True, slots=True)
class HandshakeSent:
    """Says that an initiation to a peer has left. The peer's session timers count it as a packet."""

    public_key: bytes


@dataclass(frozen=True, slots=True)
class HandshakeGaveUp:
    """Says that a peer answered no initiation for REKEY_ATTEMPT_TIME."""

    public_key: bytes


@dataclass(frozen=True, slots=True)
class Resolve:
    """Asks for a host's addresses. Answered by Resolved. `avoid` lists addresses of DNS servers inside the tunnel."""

    host: str
    avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Tells where a host is: packed endpoints with port 0, the best first. Without endpoints, `error` says why."""

    host: str
    places: tuple[bytes, ...]
    error: str


@dataclass(frozen=True, slots=True)
class Listening:
    """Tells which port is open, 0 for none. `code` is the errno that kept the wanted port closed, 0 for none."""

    port: int
    code: int
    request: int = 0


@dataclass(frozen=True, slots=True)
class LinkState:
    """Reports the interface's MTU (bytes), and whether the interface is up. Other programs may have set both."""

    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Sets the interface's addresses, MTU and routes, if `managed`. Otherwise another program sets them, such as wg-quick.

    `addresses` are written address/length. `mtu` is in bytes; 0 takes it from the routes to the peers. `table` is auto, off
    or a number. `fwmark` is the operator's, 0 for none. Settings with a `request` are a trial: HostState answers once
    everything is in place, or has failed.
    """

    managed: bool
    addresses: tuple[str, ...]
    mtu: int
    table: str
    fwmark: int
    request: int = 0
    gateway: GatewayRules = NO_RULES


@dataclass(frozen=True, slots=True)
class HostEndpoints:
    """Lists addresses of peers, whose routes tell the MTU."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HostState:
    """Reports host-service's work. `mark` is the interface's mark and the table of its default route, 0 without either.

    `warnings` tells the operator which optional things failed, a line for each. `put_back` says what others undid and
    host-service made again, how often, and when last (s since the boot, 0 for never). `request` is that of the newest
    settings that are in force or refused. `fault` says why settings were refused, or is empty. `rules_unset`: the rules
    for packets of peers were refused; `unheld` has the packed prefixes of peers that earlier rules let do more, or
    EVERY_PEER.
    """

    mark: int
    warnings: tuple[str, ...]
    put_back: tuple[str, ...]
    put_back_at: int
    fault: str = ""
    request: int = 0
    rules_unset: bool = False
    unheld: tuple[bytes, ...] = ()


# --- which party says what -----------------------------------------------------------------------------------

FromEvery = Hello | Heartbeat | Applied
FromWorkerAlone = (
    WantHandshake | EndpointMoved | SessionConfirmed | SessionsEnded | SessionsInstalled | SessionRefused
    | PeerTraffic | LastCount | MovedIn
)  # fmt: skip
FromWorker = FromEvery | LiveSessions | Confirmed | FromWorkerAlone
FromTun = FromEvery | Confirmed | Cleared
FromConn = FromTun | Nested | ChainJudged
FromHost = FromEvery | Listening | LinkState | HostState | Confirmed | PacketsDenied
FromResolver = FromEvery | Resolved
FromCommand = StatusQuery | Scale | HandshakeNow
FromStage = FromWorker | FromConn | FromHost | FromResolver | FromCommand

ToEvery = Welcome | SnapshotEnd
ToTun = ToEvery | TunSettings | RoutesSet | RoutesGone | Confirm
ToWorker = (
    ToEvery | WorkerSettings | PeersSet | PeersGone | PrefixesSet | PrefixesGone | EndpointFound | SendingExpired
    | SendStaged | HandshakeSent | HandshakeGaveUp | MoveIn | SendEmpty | Retire | Confirm | CountLast
)  # fmt: skip
ToConn = ToEvery | ConnSettings | Chain | ChainsChanged | Confirm
ToHost = ToEvery | HostSettings | SocketSettings | HostEndpoints | RoutesSet | RoutesGone | Confirm
ToResolver = ToEvery | Resolve
ToCommand = GatewayStatus | Scaled | HandshakeBegun
FromKey = Beat | ToTun | ToWorker | ToConn | ToHost | ToResolver | ToCommand

ToStatus = Counters | GatewayReport | LastReport | StatusQuery | CountersStatus | EventsQuery | EventsStatus

Kinds = frozenset[type]


@dataclass(frozen=True, slots=True)
class Words:
    """Lists the messages that one party may say to key- and status-service, and be told by key-service."""

    to_key: Kinds
    from_key: Kinds
    to_status: Kinds


def _stage(to_key: UnionType, from_key: UnionType) -> Words:
    return Words(frozenset(to_key.__args__), frozenset((from_key | Beat).__args__), frozenset((Counters,)))


COMMAND: Final = "command"
"""Names the command line in ALLOWED."""
ALLOWED: Final[Mapping[str, Words]] = {
    "tun": _stage(FromTun, ToTun),
    "device": _stage(FromWorker, ToWorker),
    "conn": _stage(FromConn, ToConn),
    "key": Words(frozenset(), frozenset(), frozenset((Counters, GatewayReport, LastReport))),
    "status": _stage(FromEvery, ToEvery),
    "host": _stage(FromHost, ToHost),
    "resolver": _stage(FromResolver, ToResolver),
    COMMAND: Words(
        frozenset(FromCommand.__args__), frozenset(ToCommand.__args__), frozenset((StatusQuery, EventsQuery))
    ),
}
"""By party. A reader drops any other message, and counts it as `control_unexpected`."""
_NOTHING: Final = Words(frozenset(), frozenset(), frozenset())


def allowed(party: str) -> Words:
    """Returns what a party may say and be told: nothing for an unknown party."""
    return ALLOWED.get(party, _NOTHING)


FROM_STAGE: Final[Codec[FromStage]] = Codec(VERSION, FromStage.__args__)
FROM_KEY: Final[Codec[FromKey]] = Codec(VERSION, FromKey.__args__)
TO_STATUS: Final[Codec[ToStatus]] = Codec(VERSION, ToStatus.__args__)
