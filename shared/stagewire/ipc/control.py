"""Every control message, and who may say it.

    stage -> key    Hello, Heartbeat, Applied                            every stage
                    WantHandshake, EndpointMoved, SessionConfirmed,
                    SessionsEnded, SessionInstalled, SessionRefused,
                    PeerTraffic, MovedIn                                 workers
                    Resolved, Listening                                  conn
                    LinkState                                            tun
    key -> stage    Welcome, Beat, SnapshotEnd                           every stage
                    TunSettings, RoutesSet, RoutesGone                   tun
                    WorkerSettings, PeersSet, PeersGone, PrefixesSet,
                    PrefixesGone, EndpointFound, SendingExpired,
                    SendStaged, HandshakeSent, HandshakeGaveUp,
                    MoveIn, SendEmpty, Retire                            workers
                    ConnSettings, Resolve                                conn
    stage -> status Counters                                             every stage, on `telemetry`
    cli -> key      StatusQuery, answered by StatusReply; Scale, answered by Scaled
    cli -> status   StatusQuery, answered by StatusReply

A snapshot is: Welcome, the stage's settings, its peers and prefixes or its routes in batches, SnapshotEnd. The stage takes
each message as a change of what it has, then drops what no message named, and says Applied. It is sent on Hello.
What changes later is sent as the same messages, without a frame around them.

Prefixes travel as `proto.prefix` packs them, at most PREFIX_BATCH in a message: a peer may have 130,000 of them, and no
stage may be kept from its packets for long.

No message here carries a key that isn't public: session keys go by `handover`.
"""

from dataclasses import dataclass
from typing import Final

from stagewire.ipc.codec import Codec
from stagewire.proto.events import EndpointMoved, SessionConfirmed, SessionsEnded, WantHandshake

VERSION: Final = 1
HEARTBEAT_INTERVAL: Final = 0.25
"""s between two heartbeats of a stage."""
PREFIX_BATCH: Final = 128
"""Prefixes in one message: some 0.7 ms of its reader's time."""
PEER_BATCH: Final = 64
SILENT_AFTER: Final = 2.0
"""s without a heartbeat after which a stage counts as away."""


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session that runs in a worker. `handshake_unix_ns` is when its handshake was complete, 0 if it isn't yet."""

    public_key: bytes
    index: int
    endpoint: bytes
    handshake_unix_ns: int


@dataclass(frozen=True, slots=True)
class Hello:
    """A stage has started, or has met a new key-service. `generation` is random, made when the process started."""

    stage: str
    number: int
    generation: int
    pid: int
    sessions: tuple[LiveSession, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A stage lives. `fault` is what keeps it from its work, in one line for the operator, or empty.

    `spares` is how many processes wait to take over.
    """

    generation: int
    fault: str
    spares: int


@dataclass(frozen=True, slots=True)
class Applied:
    """A stage has applied the snapshot of this version."""

    version: int


@dataclass(frozen=True, slots=True)
class SessionInstalled:
    """A worker has the session."""

    index: int


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """A worker was given a session of a peer that isn't at home there."""

    index: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """UDP payload bytes of one peer since its worker started, handshakes not included."""

    public_key: bytes
    tx_bytes: int
    rx_bytes: int


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """The peers whose traffic changed since the last report."""

    peers: tuple[Traffic, ...]


@dataclass(frozen=True, slots=True)
class Welcome:
    """A snapshot begins. `generation` is key-service's."""

    generation: int
    version: int


@dataclass(frozen=True, slots=True)
class Beat:
    """key-service lives; a stage that doesn't know this generation says Hello again. 0: it doesn't know the stage."""

    generation: int


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """A snapshot ends."""

    version: int


@dataclass(frozen=True, slots=True)
class TunSettings:
    """`managed`: addresses, MTU and routes are ours to set; otherwise somebody else's, as wg-quick's.

    `addresses` as address/length; `table` is auto, off or a number; outer packets carry `fwmark`.
    """

    managed: bool
    addresses: tuple[str, ...]
    mtu: int
    table: str
    fwmark: int
    workers: int


@dataclass(frozen=True, slots=True)
class RoutesSet:
    """Prefixes that belong to a worker from now on."""

    worker: int
    prefixes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RoutesGone:
    """Prefixes that belong to nobody any more."""

    prefixes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Of every peer: inner MTU (bytes) and rekey interval (s)."""

    mtu: int
    rekey_after_time: float


@dataclass(frozen=True, slots=True)
class WorkerPeer:
    """A peer as a worker needs it. `endpoint` is packed, or empty. `home`: it lives in this worker."""

    public_key: bytes
    home: bool
    persistent_keepalive: int
    endpoint: bytes


@dataclass(frozen=True, slots=True)
class PeersSet:
    """Peers that are new or changed."""

    peers: tuple[WorkerPeer, ...]


@dataclass(frozen=True, slots=True)
class PeersGone:
    """Peers that were removed: their sessions end."""

    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MoveIn:
    """Peers that are at home in this worker from now on, and for a while in another too. Answered by MovedIn."""

    peers: tuple[WorkerPeer, ...]


@dataclass(frozen=True, slots=True)
class MovedIn:
    """These are at home here."""

    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SendEmpty:
    """These peers may not know yet that they have a new session here: one empty packet says it."""

    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Retire:
    """Nobody is at home in this worker any more, and nobody will be: it may go."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Some prefixes of one peer."""

    public_key: bytes
    prefixes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PrefixesSet:
    """Prefixes added to peers' allowed-IPs, taken from whoever had them."""

    entries: tuple[Prefixes, ...]


@dataclass(frozen=True, slots=True)
class PrefixesGone:
    """Prefixes taken from peers' allowed-IPs."""

    entries: tuple[Prefixes, ...]


@dataclass(frozen=True, slots=True)
class EndpointFound:
    """Where a peer is, by a look-up or by the operator's word."""

    public_key: bytes
    endpoint: bytes


@dataclass(frozen=True, slots=True)
class SendingExpired:
    """Our long-term key changed: no session sends any more."""


@dataclass(frozen=True, slots=True)
class SendStaged:
    """The operator named these peers: what waits for them is worth another try."""

    public_keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ConnSettings:
    """Answered by Listening. `stamped`: some peer's responses carry a timestamp, so their length is let through.

    `public_key` is zeros while there is no private key. `request` comes back with the answer.
    """

    public_key: bytes
    listen_port: int
    fwmark: int
    workers: int
    stamped: bool
    request: int = 0


@dataclass(frozen=True, slots=True)
class HandshakeSent:
    """An initiation has left; the peer's session timers count it as a packet."""

    public_key: bytes


@dataclass(frozen=True, slots=True)
class HandshakeGaveUp:
    """Nobody answered for REKEY_ATTEMPT_TIME."""

    public_key: bytes


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look up a peer's endpoint: conn-service does, as key-service touches no network."""

    public_key: bytes
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """`endpoint` is packed; empty if `error` says why there is none."""

    public_key: bytes
    endpoint: bytes
    error: str


@dataclass(frozen=True, slots=True)
class Listening:
    """The port that is open, or the errno for which it isn't; then what was open before is open again."""

    port: int
    code: int
    request: int = 0


@dataclass(frozen=True, slots=True)
class LinkState:
    """What somebody else has set the interface to. `mtu` in bytes."""

    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """A stage's counters since it started."""

    stage: str
    number: int
    generation: int
    pid: int
    names: tuple[str, ...]
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StatusQuery:
    """The command line asks."""


@dataclass(frozen=True, slots=True)
class StatusReply:
    """The answer, as JSON."""

    text: str


@dataclass(frozen=True, slots=True)
class Scale:
    """The command line wants another number of workers, 1 to MAX_WORKERS."""

    workers: int


@dataclass(frozen=True, slots=True)
class Scaled:
    """The number is in force, or `error` says why not. `moving`: peers that aren't where they belong yet."""

    error: str
    moving: int


FromStage = (
    Hello | Heartbeat | Applied | WantHandshake | EndpointMoved | SessionConfirmed | SessionsEnded | SessionInstalled
    | SessionRefused | PeerTraffic | MovedIn | Resolved | Listening | LinkState | StatusQuery | Scale
)  # fmt: skip
FromKey = (
    Welcome | Beat | SnapshotEnd | TunSettings | RoutesSet | RoutesGone | WorkerSettings | PeersSet | PeersGone
    | PrefixesSet | PrefixesGone | EndpointFound | SendingExpired | SendStaged | ConnSettings | HandshakeSent
    | HandshakeGaveUp | MoveIn | SendEmpty | Retire | Resolve | StatusReply | Scaled
)  # fmt: skip
ToStatus = Counters | StatusQuery | StatusReply

FROM_STAGE: Final[Codec[FromStage]] = Codec(VERSION, FromStage.__args__)
FROM_KEY: Final[Codec[FromKey]] = Codec(VERSION, FromKey.__args__)
TO_STATUS: Final[Codec[ToStatus]] = Codec(VERSION, ToStatus.__args__)
