"""Defines what stages report, each second or rarely: counters and peers to status-service, traffic to key-service."""

from dataclasses import dataclass

from stagewire.control.event import Event
from stagewire.reasons import Incident


@dataclass(frozen=True, slots=True)
class QueueReport:
    """Shows one pipe at its sending end, in bytes.

    `waiting` is what the reader hadn't taken when this was sent, `held` what its sender has held back for it at most since
    the last report.
    """

    pipe: str
    waiting: int
    held: int


@dataclass(frozen=True, slots=True)
class WaitReport:
    """Tells how long trains have waited for the reader of a pipe, by `pipe.waits.BOUNDS`; `total` is in s."""

    pipe: str
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """Tells that packets of a peer are being copied: by whom, since when (s since the boot), and which in a few words."""

    public_key: bytes
    by: str
    since: float
    takes: str
    packets: int
    missed: int


@dataclass(frozen=True, slots=True)
class Counters:
    """Reports a stage's counters since its process started. `values` belong to `names`; `cpu` is in s.

    `incidents` has the reasons and peers that changed since the last report.
    """

    stage: str
    number: int
    generation: int
    pid: int
    names: tuple[str, ...]
    values: tuple[int, ...]
    incidents: tuple[Incident, ...] = ()
    cpu: float = 0.0
    queues: tuple[QueueReport, ...] = ()
    waits: tuple[WaitReport, ...] = ()
    captures: tuple[CaptureReport, ...] = ()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counts UDP payload bytes of one peer since its worker made the tunnel, without handshakes.

    `refused` are those of `rx_bytes` that the peer's limits did not let pass.
    """

    public_key: bytes
    tx_bytes: int
    rx_bytes: int
    refused: int = 0


@dataclass(frozen=True, slots=True)
class PeerTraffic:
    """Reports the peers whose traffic has changed since the last report."""

    peers: tuple[Traffic, ...]


@dataclass(frozen=True, slots=True)
class CountLast:
    """Asks a worker for all traffic that it has not reported, as key-service ends. Answered by LastCount."""


@dataclass(frozen=True, slots=True)
class LastCount:
    """Says that a worker has reported all its traffic. A worker that ends says it unasked."""


@dataclass(frozen=True, slots=True)
class PeerReport:
    """Shows a peer to status-service. `last_handshake_unix_s` is 0 for never; the texts are fit to show.

    `heard_s_ago` is the time since the last authentic packet that this key-service knows of, -1 for none.
    """

    public_key: bytes
    name: str
    allowed_ips: str
    tx_bytes: int
    rx_bytes: int
    last_handshake_unix_s: float
    endpoint: str = ""
    heard_s_ago: float = -1.0
    last_handshake: float = 0.0
    """s since the boot: no jump of the wall clock changes it."""


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """Tells status-service what key-service knows: the peers that changed since the last report, and those gone.

    `ready`: every wanted process is at work, and the link is up. `events` are what an operator has brought about.
    """

    ready: bool
    peers: tuple[PeerReport, ...]
    gone: tuple[bytes, ...]
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class LastReport:
    """Tells status-service that an ending key-service has reported everything."""
