"""A crypto worker's whole core: which peer is a packet for, which session is a datagram of, and is it allowed to be.

Outbound: destination -> peer by longest prefix -> `Tunnel.send`.
Inbound: type and receiver index -> session -> `Tunnel.receive` -> well-formed? -> does the longest prefix of its source
belong to this very peer? -> trimmed to its own length.

The table of allowed-IPs holds every peer's prefixes, also those of peers at home in other workers: only so can the
longest match say that a source belongs to somebody else.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from itertools import groupby

from stagewire.proto import constants as c
from stagewire.proto import ip, prefix
from stagewire.proto.agenda import Agenda
from stagewire.proto.allowed_ips import AllowedIps
from stagewire.proto.events import SessionsEnded
from stagewire.proto.messages import HEADER
from stagewire.proto.offload import coalesce
from stagewire.proto.offload.block import Block
from stagewire.proto.offload.coalesce import Item, Merged
from stagewire.proto.session import Session
from stagewire.proto.staging import Room
from stagewire.proto.timers import Jitter
from stagewire.proto.tunnel import Output, Packet, Tunnel, TunnelSettings

try:
    from stagewire.proto.offload.lane import Lane
except ImportError:  # without NumPy every packet goes by itself
    Lane = None  # type: ignore[assignment, misc]

Network = IPv4Network | IPv6Network
Run = tuple[bytes, Sequence[bytes]]
"""(packed endpoint they came from, datagrams)"""


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What a worker knows of a peer. `home`: it lives in this worker; otherwise only its prefixes matter here.

    `allowed_ips` None leaves its prefixes as they are, to be changed by `Device.allow` and `disallow`.
    """

    public_key: bytes
    allowed_ips: tuple[Network, ...] | None
    home: bool
    persistent_keepalive: int = 0
    endpoint: bytes | None = None


class Elsewhere:
    """A peer at home in another worker."""

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key


Owner = Tunnel | Elsewhere


def _receiver(datagram: bytes) -> bytes:
    # With the type and the reserved bytes, which no tag protects: so they need no check of their own.
    return datagram[:8]


def _receiver_of(index: int) -> bytes:
    return HEADER.pack(c.TYPE_TRANSPORT, index)


class Device:
    """One worker. Every method returns what follows from it; `drops` counts, by reason, what was refused."""

    def __init__(self, jitter: Jitter, *, wide: bool = True) -> None:
        """`wide` false does without the wide lane even where there is NumPy."""
        self.takes = 0
        """What super-packets the OS takes, `coalesce.TAKES_*`; packets for it are merged into those."""
        self._lane = Lane() if wide and Lane is not None else None
        self.settings = TunnelSettings()
        self.drops: Counter[str] = Counter()
        self._jitter = jitter
        self._room = Room()
        self._owners: dict[bytes, Owner] = {}
        self._allowed_ips: AllowedIps[Owner] = AllowedIps()
        self._sessions: dict[bytes, tuple[Tunnel, Session]] = {}  # by type and receiver index, as they are on the wire
        self._agenda: Agenda[Tunnel] = Agenda()

    # --- packets -------------------------------------------------------------------------------------------

    def outbound(self, packets: Iterable[Packet], now: float) -> Output:
        """A train from the OS. Hot: beside what `Session.seal` costs, 0.5 us per packet and 3 us per train."""
        out = Output()
        if self._lane is not None:
            self._lane.recycle()  # the blocks of the call before this one
        trains: dict[Tunnel, list[Packet]] = {}
        lookup = self._allowed_ips.lookup
        for packet in packets:
            destination = ip.destination(packet if isinstance(packet, bytes) else packet.packet)
            if destination is None:
                self.drops["outbound_malformed"] += 1
                continue
            owner = lookup(destination)
            if owner.__class__ is Tunnel:
                train = trains.get(owner)
                if train is None:
                    trains[owner] = [packet]
                else:
                    train.append(packet)
            elif owner is None:
                self._refuse(packet, "no_peer", out)
            else:
                self.drops["peer_elsewhere"] += 1 if isinstance(packet, bytes) else packet.count
        for tunnel, train in trains.items():
            if tunnel.endpoint is None:
                for packet in train:
                    self._refuse(packet, "no_endpoint", out)
                continue
            tunnel.send(train, now, out)
            self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)

    def _refuse(self, packet: Packet, reason: str, out: Output) -> None:
        if isinstance(packet, bytes):
            self.drops[reason] += 1
        else:
            # One answer is enough; it quotes the first of them.
            self.drops[reason] += packet.count
            packet = packet.first()
        unreachable = ip.unreachable(packet)
        if unreachable is not None:
            out.packets.append(unreachable)

    def inbound(self, runs: Iterable[Run], now: float) -> Output:
        """A train from the network. Hot: beside what `Tunnel.receive` costs, 1.0 us per packet and 3 us per train."""
        out = Output()
        for endpoint, datagrams in runs:
            if self._inbound_wide(endpoint, datagrams, now, out):
                continue
            lone = len(datagrams) == 1
            for receiver, group in ((_receiver(datagrams[0]), datagrams),) if lone else groupby(datagrams, _receiver):
                train = list(group)
                found = self._sessions.get(receiver)
                if found is None:
                    self.drops["unknown_receiver"] += len(train)
                    continue
                tunnel, session = found
                self._deliver(tunnel, tunnel.receive(session, train, endpoint, now, out), out)
                self._agenda.enter(tunnel, tunnel.next_deadline())
        if self.takes and len(out.packets) > 1:
            out.packets = coalesce.merge(out.packets, self.takes)
        return self._settle(out)

    def _inbound_wide(self, endpoint: bytes, datagrams: Sequence[bytes], now: float, out: Output) -> bool:
        """A long run, if it can be taken as one; False, and nothing has happened, if not."""
        lane = self._lane
        if not isinstance(datagrams, Block) or lane is None or len(datagrams) < lane.LEAST_TO_OPEN:
            return False
        received = lane.receive(datagrams)
        if received is None:
            return False
        found = self._sessions.get(received.receiver)
        if found is None:
            self.drops["unknown_receiver"] += received.count
            return True
        tunnel, session = found
        tunnel.receive_rows(session, received, endpoint, now, out)
        self._agenda.enter(tunnel, tunnel.next_deadline())
        self._deliver(tunnel, lane.merge(received, self.takes) or lane.packets(received), out)
        lane.recycle()  # its packets have been copied out
        return True

    def _deliver(self, tunnel: Tunnel, packets: Iterable[Item], out: Output) -> None:
        lookup = self._allowed_ips.lookup
        for packet in packets:
            if isinstance(packet, Merged):
                # Whole by construction, and of one source.
                if lookup(ip.source(packet.packet) or b"") is tunnel:
                    out.packets.append(packet)
                else:
                    self.drops["inner_source_not_allowed"] += packet.segments
                continue
            length = ip.inner_length(packet)
            source = ip.source(packet) if length else None
            if source is None:
                self.drops["inner_malformed"] += 1
            elif lookup(source) is not tunnel:
                self.drops["inner_source_not_allowed"] += 1
            else:
                out.packets.append(packet if length == len(packet) else packet[:length])

    def _settle(self, out: Output) -> Output:
        """A session that ended in the course of a call must not be found by the next."""
        for event in out.events:
            if isinstance(event, SessionsEnded):
                for index in event.indices:
                    self._sessions.pop(_receiver_of(index), None)
        return out

    # --- sessions ------------------------------------------------------------------------------------------

    def install(self, public_key: bytes, session: Session, endpoint: bytes | None, now: float) -> Output | None:
        """Takes a session in; None if the peer isn't at home here (its keys must then be forgotten)."""
        tunnel = self._owners.get(public_key)
        receiver = _receiver_of(session.index)
        if not isinstance(tunnel, Tunnel) or receiver in self._sessions:
            return None
        out = Output()
        self._sessions[receiver] = (tunnel, session)
        tunnel.install(session, endpoint, now, out)
        self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)

    def sessions(self) -> list[tuple[Tunnel, Session]]:
        """All that live here, for key-service to learn when it is new."""
        return list(self._sessions.values())

    def tunnels(self) -> list[Tunnel]:
        """The peers at home here."""
        return [owner for owner in self._owners.values() if isinstance(owner, Tunnel)]

    def tunnel(self, public_key: bytes) -> Tunnel | None:
        """A peer's, if it is at home here."""
        owner = self._owners.get(public_key)
        return owner if isinstance(owner, Tunnel) else None

    def handshake_sent(self, public_key: bytes, now: float) -> None:
        """key-service sent an initiation."""
        tunnel = self._owners.get(public_key)
        if isinstance(tunnel, Tunnel):
            tunnel.handshake_sent(now)
            self._agenda.enter(tunnel, tunnel.next_deadline())

    def handshake_gave_up(self, public_key: bytes, now: float) -> None:
        """key-service has no answer from a peer."""
        tunnel = self._owners.get(public_key)
        if isinstance(tunnel, Tunnel):
            tunnel.handshake_gave_up(now)
            self._agenda.enter(tunnel, tunnel.next_deadline())

    def endpoint_found(self, public_key: bytes, endpoint: bytes) -> None:
        """A peer's host name was resolved."""
        tunnel = self._owners.get(public_key)
        if isinstance(tunnel, Tunnel):
            tunnel.endpoint = endpoint

    def send_staged(self, public_key: bytes, now: float) -> Output:
        """The operator named a peer: tries again with what waits for it."""
        out = Output()
        tunnel = self._owners.get(public_key)
        if isinstance(tunnel, Tunnel):
            tunnel.flush(now, out)
            self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)

    def send_empty(self, public_key: bytes, now: float) -> Output:
        """Sends an empty packet, if there is a session that may; there is nothing to ask for if there is none."""
        out = Output()
        tunnel = self.tunnel(public_key)
        if tunnel is not None and (session := tunnel.slots.current) is not None and session.may_send(now):
            tunnel.send_keepalive(now, out)
            self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)

    def want_again(self, now: float) -> Output:
        """A new key-service knows nothing of what was wanted from the old one."""
        out = Output()
        for tunnel in self.tunnels():
            tunnel.want_again(now, out)
        return out

    # --- configuration -------------------------------------------------------------------------------------

    def set_settings(self, settings: TunnelSettings) -> None:
        """What holds for every peer, now and later."""
        # Padding goes up to the MTU, and a device may have one that no datagram can carry.
        settings = replace(settings, mtu=min(settings.mtu, c.MAX_INNER))
        self.settings = settings
        for tunnel in self.tunnels():
            tunnel.settings = settings

    def set_peer(self, facts: PeerFacts, now: float) -> Output:
        """Adds a peer or changes it. Sessions go on unless it left home; its prefixes stay its own wherever it is."""
        out = Output()
        former = owner = self._owners.get(facts.public_key)
        if owner is None or isinstance(owner, Tunnel) != facts.home:
            owner = (
                Tunnel(facts.public_key, self.settings, self._jitter, self.drops, self._room, self._lane)
                if facts.home
                else Elsewhere(facts.public_key)
            )
            if former is not None:
                self._allowed_ips.hand_over(former, owner)
                self._drop_owner(former, out)
            self._owners[facts.public_key] = owner
        if facts.allowed_ips is not None:
            self.allow(facts.public_key, facts.allowed_ips)
            self.retain(facts.public_key, set(map(prefix.pack, facts.allowed_ips)))
        if isinstance(owner, Tunnel):
            owner.settings = self.settings
            if facts.endpoint is not None and owner.endpoint is None:
                owner.endpoint = facts.endpoint
            owner.set_persistent_keepalive(facts.persistent_keepalive, now, out)
            self._agenda.enter(owner, owner.next_deadline())
        return self._settle(out)

    def allow(self, public_key: bytes, prefixes: Iterable[Network]) -> None:
        """Adds to a peer's allowed-IPs; a prefix that another peer has moves."""
        owner = self._owners.get(public_key)
        if owner is not None:
            for each in prefixes:
                self._allowed_ips.insert(each, owner)

    def disallow(self, public_key: bytes, prefixes: Iterable[Network]) -> None:
        """Takes from a peer's allowed-IPs what is among them."""
        owner = self._owners.get(public_key)
        if owner is not None:
            for each in prefixes:
                self._allowed_ips.remove(each, owner)

    def retain(self, public_key: bytes, packed: Collection[bytes]) -> None:
        """Takes from a peer's allowed-IPs what isn't among these, packed, all of which it has."""
        owner = self._owners.get(public_key)
        # Mostly there is nothing to take, and to look through 130,000 would keep the packets waiting for 2 s.
        if owner is not None and self._allowed_ips.count(owner) != len(packed):
            stale = [each for each in self._allowed_ips.prefixes(owner) if prefix.pack(each) not in packed]
            self.disallow(public_key, stale)

    def expire_sending(self) -> None:
        """Our long-term key changed: no session sends any more, though each still receives until it expires."""
        for _, session in self._sessions.values():
            session.expire_sending()

    def remove_peer(self, public_key: bytes) -> Output:
        """Forgets a peer, its sessions and its prefixes."""
        out = Output()
        owner = self._owners.pop(public_key, None)
        if owner is not None:
            self._drop_owner(owner, out)
        return self._settle(out)

    def public_keys(self) -> set[bytes]:
        """Every peer known, at home or not."""
        return set(self._owners)

    def _drop_owner(self, owner: Owner, out: Output) -> None:
        self._allowed_ips.remove_owner(owner)
        if isinstance(owner, Tunnel):
            owner.end(out)
            self._agenda.forget(owner)

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `act` is to be called (s)."""
        return self._agenda.next_deadline()

    def act(self, now: float) -> Output:
        """Does what is due."""
        out = Output()
        for tunnel in self._agenda.due(now):
            tunnel.act(now, out)
            self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)
