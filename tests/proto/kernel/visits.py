"""Two workers of one meaning: the same visits go through device-service with a plain and with a compiled kernel."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.proto.byhand import T

from device_service import service
from device_service.dropped import Dropped
from device_service.service import DeviceService
from stagewire.pipe import trains
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.kernel.choice import Kernel, choose
from stagewire.proto.kernel.rule import COMPILED, PLAIN
from stagewire.proto.tunnel import TunnelSettings
from stagewire.proto.worker import PeerFacts, Worker
from stagewire.reasons import Reasons

PEERS = 3
"""Peers at home, each with 10.0.0.N/32, 10.9.N.0/24 and the same of fd00::. Peer 0 has all else as well."""
AWAY = b"A" * 32
NAMES = [bytes([65 + number]) * 32 for number in range(PEERS)]
PLACES = [Endpoint(ip_address(f"192.0.2.{number + 1}").packed, 1000 + number).pack() for number in range(PEERS + 1)]
"""The last is nobody's yet."""


def index_of(peer: int) -> int:
    return 0x1000 * (peer + 1)


def keys_of(peer: int) -> tuple[bytes, bytes]:
    """Returns what we send under and receive under."""
    rng = random.Random(peer)
    return rng.randbytes(32), rng.randbytes(32)


def prefixes_of(peer: int) -> tuple[Any, ...]:
    own = (f"10.0.0.{peer}/32", f"10.9.{peer}.0/24", f"fd00::{peer}/128", f"fd09:{peer}::/32")
    return tuple(map(ip_network, (*own, "0.0.0.0/0", "::/0") if peer == 0 else own))


def theirs(peer: int, counter: int, inner: bytes, index: int | None = None) -> bytes:
    """Makes what a peer sends."""
    nonce = counter.to_bytes(8, "little")
    receiver = (index_of(peer) if index is None else index).to_bytes(4, "little")
    return b"\4\0\0\0" + receiver + nonce + ChaCha20Poly1305(keys_of(peer)[1]).encrypt(bytes(4) + nonce, inner, None)


@dataclass
class Visit:
    """Holds what left a worker in one visit."""

    to_conn: list[bytes] = field(default_factory=list)
    to_tun: list[bytes] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)

    def runs(self) -> dict[bytes, list[bytes]]:
        """Returns the datagrams to each place, in order."""
        found: dict[bytes, list[bytes]] = {}
        for frame in self.to_conn:
            for place, block in trains.unpack_cipher_untrusted(frame, T):
                found.setdefault(place, []).extend(block)
        return found


class Side:
    """Runs a device-service without pipes."""

    def __init__(self, kernel: Kernel, *, mtu: int = 1420, created: float = T, initiators: Iterable[int] = (0, 1, 2)):
        self.counters = Reasons()
        stage: Any = SimpleNamespace(counters=self.counters, drop=self._drop)
        self.service = DeviceService(stage, kernel)
        self.worker = self.service._worker = Worker(lambda: 0.1, kernel=kernel)
        self.worker.drops = self.counters
        self.service._dropped = Dropped(self.worker, self.counters)
        self.visit = Visit()
        self.service._to_conn = self._queue("to_conn")
        self.service._to_tun = self._queue("to_tun")
        self.service._line = SimpleNamespace(say=self._say)  # type: ignore[assignment]
        self.worker.set_settings(TunnelSettings(mtu=mtu))
        self.worker.takes = 3
        self.worker.set_peer(PeerFacts(AWAY, tuple(map(ip_network, ("10.0.0.77/32", "fd00::77/128"))), home=False), T)
        for peer, name in enumerate(NAMES):
            self.worker.set_peer(PeerFacts(name, prefixes_of(peer), home=True, endpoint=PLACES[peer]), T)
            initiator = peer in initiators
            session = kernel.session(
                index_of(peer), 0x77000000 + peer, *keys_of(peer), initiator=initiator, created=created
            )
            assert self.worker.install(name, session, PLACES[peer], T) is not None

    def _say(self, event: Any) -> None:
        self.visit.said.append(event)

    def _drop(self, bad: trains.BadTrain) -> None:
        self.counters[bad.reason] += bad.packets

    def _queue(self, name: str) -> Any:
        def offer_parts(parts: Sequence[bytes], weight: int, _now: float) -> None:
            frame = b"".join(parts)
            read = trains.unpack_cipher_untrusted if name == "to_conn" else trains.unpack_plain_untrusted
            found: Any = read(frame, T)
            counted = sum(len(block) for _, block in found) if name == "to_conn" else trains.weight(found)
            assert counted == weight
            getattr(self.visit, name).append(frame)

        return SimpleNamespace(
            offer_parts=offer_parts, offer=lambda train, weight, now: offer_parts((train,), weight, now)
        )

    def plain_in(self, frames: Sequence[bytes]) -> Visit:
        """Hands plain trains to the worker."""
        return self._taken(self.service._on_plain, frames)

    def cipher_in(self, frames: Sequence[bytes]) -> Visit:
        """Hands cipher trains to the worker."""
        return self._taken(self.service._on_cipher, frames)

    def _taken(self, take: Any, frames: Sequence[bytes]) -> Visit:
        self.visit = visit = Visit()
        around = [(b"\1\2\3" + frame + b"\4", 3, 3 + len(frame)) for frame in frames]
        with mock.patch.object(service, "boot_time", return_value=T):
            take(around, T)
        return visit

    def state(self) -> list[Any]:
        """Returns all that both kernels must have in common after a visit."""
        return [
            +self.counters,
            self.counters._peers,
            {reason: dict(found) for reason, found in self.counters._strangers.items()},
            [
                (
                    tunnel.tx_bytes,
                    tunnel.rx_bytes,
                    tunnel.endpoint,
                    tunnel.next_deadline(),
                    list(tunnel.staged._packets),
                )
                for tunnel in sorted(self.worker.owners.tunnels(), key=lambda tunnel: tunnel.public_key)
            ],
            sorted((session.index, session.send_counter) for _, session in self.worker.sessions()),
            self.worker.takes,
        ]


class Both:
    """Compares a plain and a compiled worker, visit by visit."""

    def __init__(self, **facts: Any) -> None:
        self.plain, self.compiled = Side(choose(PLAIN), **facts), Side(choose(COMPILED), **facts)

    def plain_in(self, *frames: bytes) -> Visit:
        return self._compared(self.plain.plain_in(frames), self.compiled.plain_in(frames))

    def cipher_in(self, *frames: bytes) -> Visit:
        return self._compared(self.plain.cipher_in(frames), self.compiled.cipher_in(frames))

    def _compared(self, one: Visit, other: Visit) -> Visit:
        assert other.runs() == one.runs()
        assert other.to_tun == one.to_tun
        assert Counter(map(repr, other.said)) == Counter(map(repr, one.said))
        assert self.compiled.state() == self.plain.state()
        return other

    def same_frames(self, *frames: bytes) -> Visit:
        """Asks that the cipher trains are the same byte for byte, as they are unless a packet goes back to Python."""
        one, other = self.plain.plain_in(frames), self.compiled.plain_in(frames)
        assert other.to_conn == one.to_conn
        return self._compared(one, other)
