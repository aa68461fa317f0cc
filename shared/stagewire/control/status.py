"""Defines what key-service and status-service answer to a StatusQuery.

`stagewire status --json` prints most fields under the names that they have here. No field holds a secret.
"""

from dataclasses import dataclass

from stagewire.control.event import Event
from stagewire.control.telemetry import CaptureReport, QueueReport


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Shows one process of a stage. `ready`: the process does its work; otherwise `fault` may say why not.

    `kernel` is what seals and opens a worker's packets, and why; empty for other stages.
    """

    stage: str
    number: int
    pid: int
    ready: bool
    fault: str
    spares: int
    kernel: str


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Shows what host-service has last said in HostState. `put_back_unix_s` is None for never."""

    mark: int
    warnings: tuple[str, ...]
    put_back: tuple[str, ...]
    put_back_unix_s: int | None


@dataclass(frozen=True, slots=True)
class WorkersStatus:
    """Shows how many workers are wanted, which are up, and how many peers still have to move."""

    wanted: int
    up: tuple[int, ...]
    peers_moving: int


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Shows one peer. `public_key` is in base64; `name` is empty for none.

    `endpoint_set` is the endpoint of the configuration in force; the peer itself may be elsewhere by now.
    `unresolved` says why the host name has led to no address yet, `endpoint_fault` why conn-service sends nothing there.
    """

    public_key: str
    name: str
    endpoint: str | None
    endpoint_set: str | None
    worker: int
    last_handshake_unix_s: float | None
    tx_bytes: int
    rx_bytes: int
    clock_skew_s: float | None
    endpoint_fault: str
    allowed_ips: tuple[str, ...]
    endpoint_name: str | None
    unresolved: str
    persistent_keepalive_s: int
    rx_bytes_per_s: float = 0.0
    tx_bytes_per_s: float = 0.0
    rx_bytes_alone: int = 0
    """What it has sent since the last packet went to it, keepalives left out."""


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """Shows a gateway as key-service knows it. `ready`: every wanted process is at work; `waiting_for` names the others."""

    interface: str
    public_key: str | None
    listen_port: int | None
    listen_port_set: int | None
    ready: bool
    waiting_for: tuple[str, ...]
    stages: tuple[StageStatus, ...]
    host: HostStatus | None
    link_up: bool | None
    workers: WorkersStatus
    peers: tuple[PeerStatus, ...]


@dataclass(frozen=True, slots=True)
class CountedStatus:
    """Shows what all lives of one service have counted. `values` belong to `names`.

    `cpu_s` and `queues`, which lead to other stages, are those of the present process. `cpu_share` (of a core) and `per_s`,
    the growth of each value a second, are as of its last two reports.
    """

    stage: str
    number: int
    pid: int
    heard_s_ago: float
    lives: int
    names: tuple[str, ...]
    values: tuple[int, ...]
    cpu_s: float = 0.0
    queues: tuple[QueueReport, ...] = ()
    captures: tuple[CaptureReport, ...] = ()
    cpu_share: float = 0.0
    per_s: tuple[float, ...] = ()

    @property
    def counters(self) -> dict[str, int]:
        """Returns the counters by name."""
        return dict(zip(self.names, self.values, strict=False))


@dataclass(frozen=True, slots=True)
class ReasonStatus:
    """Shows how often a stage dropped something or failed, for one reason and one peer or place.

    `public_key` is in base64. It is empty if unknown, as is `place`, the newest address; `size` (bytes) is then 0.
    """

    stage: str
    number: int
    reason: str
    public_key: str
    place: str
    size: int
    count: int
    s_ago: float


@dataclass(frozen=True, slots=True)
class CountersStatus:
    """Shows the counters of every service, as status-service adds them up. `reasons` has the newest first.

    `metrics` is the URL of the metrics, or says why there are none. `unready` says why no traffic can flow, if so.
    """

    services: tuple[CountedStatus, ...]
    reasons: tuple[ReasonStatus, ...] = ()
    metrics: str = ""
    unready: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EventsStatus:
    """Answers an EventsQuery. `newest` is the newest id of all; `lost`: others after the asked id are no longer kept."""

    events: tuple[Event, ...]
    newest: int
    lost: bool
