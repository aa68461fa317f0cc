"""Has LiveConfiguration work without processes: a hub that writes down what is told, and answers of host-service."""

from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from key_service import journal
from key_service.announce import Announcer
from key_service.live import LiveConfiguration, Task
from key_service.moves import Moves
from key_service.registry import Registry, unconfigured
from key_service.snapshots import Snapshots
from key_service.timestamps import TimestampStore
from stagewire.config import encode_key
from stagewire.config.parser import parse
from stagewire.config.uapi import Change, PeerChange, PrefixChange
from stagewire.control.messages import (
    FromKey,
    HostSettings,
    HostState,
    SocketSettings,
)
from stagewire.logs import Log
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.handshaker import Handshaker

PRIVATE = bytes([8, *range(1, 31), 64])
A, B = (sha256(name).digest() for name in (b"a", b"b"))
PLACE = Endpoint(bytes([192, 0, 2, 1]), 99)


class HubStandIn:
    """Writes down what is told to whom."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, FromKey]] = []
        self.host_is_there = True

    def member(self, stage: str, _number: int = 0) -> object | None:
        return self if self.host_is_there or stage != "host" else None

    def numbers(self, _stage: str) -> list[int]:
        return [0, 1]

    def tell(self, stage: str, number: int, message: FromKey) -> None:
        self.said.append((stage, number, message))

    def take(self, kind: type[FromKey]) -> list[Any]:
        """What was said of one kind."""
        found = [message for _, _, message in self.said if isinstance(message, kind)]
        self.said = [entry for entry in self.said if not isinstance(entry[2], kind)]
        return found


AT_ONCE = SimpleNamespace(hold=lambda give, _prefixes, **_: give())


class House:
    def __init__(self, folder: Path, registry: Registry | None = None, *, managed: bool = False) -> None:
        self.store = folder / "live-0"
        self.handshaker = Handshaker(None, bytes(12), bytes, lambda: 0.0)
        self.registry = registry or Registry(unconfigured())
        announcer = Announcer(self.registry, self.handshaker, Moves(self.handshaker, 2), managed)
        timestamps = TimestampStore(folder / "timestamps")
        self.hub = HubStandIn()
        self.snapshots = Snapshots(self.hub, announcer, 1, 1)  # type: ignore[arg-type]
        parts = announcer, self.hub, self.snapshots, AT_ONCE, timestamps, self.store, Log()
        self.live = LiveConfiguration(*parts)  # type: ignore[arg-type]
        self.live.begin()
        self.answers: list[int] = []

    def change(self, *peers: PeerChange, **values: Any) -> None:
        self.live.change(Change(peers=peers, **values), self.answers.append)

    def request(self) -> int:
        """Of host-service, the last, which is to be answered."""
        settings = self.hub.take(SocketSettings)
        request: int = settings[-1].request
        assert request
        return request

    def host_says(self, fault: str = "", *warnings: str) -> HostSettings:
        """host-service's answer to the last settings of the network; returns them."""
        settings: HostSettings = self.hub.take(HostSettings)[-1]
        self.live.on_host_state(HostState(0, warnings, (), 0, fault, settings.request))
        return settings


def remember(house: House, registry: Registry) -> None:
    """What a new life does with what the one before has left."""
    for record in journal.records(house.store):
        registry.restore(record)


def peer(key: bytes, *allowed: str, **values: Any) -> PeerChange:
    return PeerChange(key, 1, allowed_ips=tuple(PrefixChange(ip_network(each), True) for each in allowed), **values)


# --- an edited file ----------------------------------------------------------------------------------------

FILE = f"""[Interface]
PrivateKey = {encode_key(PRIVATE)}
Address = 10.0.0.1/24
[Peer]
PublicKey = {encode_key(A)}
AllowedIPs = 10.1.0.0/16
"""


def apply(
    house: House, text: str, remember: Exception | None = None, said: Callable[[str], None] = lambda _line: None
) -> None:
    """As `stagewire reload` has it done."""
    file = parse(text, "wg0.conf")

    def write() -> Any:
        if remember is not None:
            raise remember
        yield

    house.live.make(Task(lambda prepared: prepared.work_out_file(file), write, house.answers.append, True, said))
