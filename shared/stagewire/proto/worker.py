"""Decides for a crypto worker whose packet it is, which session opens a datagram, and whether the packet may pass.

Outbound: destination -> peer by longest prefix -> `Tunnel.send`.

Inbound: type and receiver index -> session -> `Tunnel.receive` -> well-formed? -> does the longest prefix of its source
belong to this very peer? -> trimmed to its own length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto import prefix
from stagewire.proto.agenda import Agenda
from stagewire.proto.events import SessionsEnded
from stagewire.proto.kernel.choice import Kernel, plain
from stagewire.proto.messages import HEADER
from stagewire.proto.owners import Elsewhere, Owner, Owners
from stagewire.proto.packets import icmp, ip, merge, split, virtio
from stagewire.proto.packets.virtio import BadSuperPacket
from stagewire.proto.prefix import Network
from stagewire.proto.session import Session
from stagewire.proto.staging import Room
from stagewire.proto.timers import Jitter
from stagewire.proto.tunnel import Output, Packet, Tunnel, TunnelSettings
from stagewire.reasons import Reasons

if TYPE_CHECKING:  # it may not be built
    from stagewire.proto.kernel.sealing import Sealing

Run = tuple[bytes, Sequence[bytes]]
"""(packed source endpoint, datagrams)"""


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """Holds a worker's knowledge of a peer. `home` peers live in this worker; of others it knows the prefixes alone.

    `allowed_ips` None leaves the prefixes to `Owners.allow` and `disallow`.
    """

    public_key: bytes
    allowed_ips: tuple[Network, ...] | None
    home: bool
    persistent_keepalive: int = 0
    endpoint: bytes | None = None
    endpoint_at: float = 0.0
    rates: tuple[int, int] = (0, 0)
    """Bits/s to the peer and from the peer; 0 for no bound."""
    cap: int | None = None
    """Bytes of the tunnel, both ways, at which its traffic stops; None for no quota."""
    held_back: bool = False


def _receiver(datagram: bytes) -> bytes:
    # With the type and the reserved bytes, which no tag protects: looking them up checks them.
    return datagram[:8]


def _receiver_of(index: int) -> bytes:
    return HEADER.pack(c.TYPE_TRANSPORT, index)


class Worker:
    """Holds one worker's peers and sessions. Each method returns its results; `drops` counts refusals by reason."""

    def __init__(self, jitter: Jitter, *, kernel: Kernel | None = None) -> None:
        """Begins without peers. `kernel` is the plain one by default. All sessions must be the kernel's."""
        self.takes = 0
        """Kinds of super-packets that the OS takes (`merge.TAKES_*`); packets for the OS are merged into those."""
        self.kernel = kernel or plain("by default")
        self.settings = TunnelSettings()
        self.drops = Reasons()
        self.owners = Owners()
        self._jitter = jitter
        self._room = Room()
        self._sessions: dict[bytes, tuple[Tunnel, Session]] = {}  # by type and receiver index, as on the wire
        self._diverted: dict[object, None] = {}
        """Peers at home whose packets go one by one, because of their limits."""
        self.capped: dict[Tunnel, None] = {}
        """Peers at home with a quota."""
        self._agenda: Agenda[Tunnel] = Agenda()
        lookup, answers = self.owners.lookup, self.owners.answers
        sealing, opening = self.kernel.sealing, self.kernel.opening
        self.sealing = None if sealing is None else sealing(lookup, answers, Tunnel, self.settings.mtu)
        """What takes plain trains from the OS before `seal`; None with the plain kernel."""
        self.opening = None if opening is None else opening(lookup, answers, self._sessions, self._diverted)
        """What takes cipher trains from the network before `open`; None with the plain kernel."""

    # --- trains --------------------------------------------------------------------------------------------

    def seal(self, packets: Sequence[Packet], now: float) -> Output:
        """Seals all trains that `sealing` has taken, then a train of packets. hot: bench Worker.outbound"""
        out = Output()
        sealing, seal = self.sealing, self.kernel.seal
        if sealing is not None and seal is not None and sealing.items:
            try:
                left = seal(sealing, self._agenda, self.settings.rekey_after_time, now)
                packets = [*self._seal_groups(sealing, left, now, out), *packets]
                out.sealed, out.born = sealing.finish(now), sealing.born
            finally:
                sealing.clear()
        if packets:
            self._outbound(packets, now, out)
        return self._settle(out)

    def _seal_groups(self, sealing: "Sealing", groups: Iterable[int], now: float, out: Output) -> list[Packet]:
        """Seals what may be sealed of these groups, peer by peer; returns the rest, and the packets without a group."""
        back, owners = sealing.alone(), sealing.owners()
        for group in groups:
            tunnel = owners[group]
            count, limits = sealing.packets(group), tunnel.limits
            free = limits is None or not limits.divert(tunnel.traffic)
            session = tunnel.ready(count, now) if free and sealing.ordinary(group) else None
            if session is None or tunnel.endpoint is None:
                back += sealing.back(group)
                continue
            counter = session.take_counters(count)
            size = sealing.seal(group, session.sender, session.remote_index, counter, tunnel.endpoint)
            tunnel.sealed(session, size, now, out)
            if limits is not None:
                self._divert(tunnel)
            self._agenda.enter(tunnel, tunnel.next_deadline())
        found: list[Packet] = []
        for _, header, packet in sorted(back) if back else ():
            try:
                found.append(split.open_untrusted(header, packet))
            except BadSuperPacket:
                self.drops.note("outbound_malformed", virtio.count(header, len(packet)), size=len(packet))
        return found

    def open(self, runs: Sequence[Run], now: float) -> Output:
        """Opens all trains that `opening` has taken, then a train of runs. hot: bench Worker.inbound"""
        out = Output()
        opening, settle = self.opening, self.kernel.settle
        if opening is not None and settle is not None and opening.runs:
            try:
                settle(opening.open(now), self._agenda, partial(self._opened, now, out), now)
                for reason, owner, place, size, count in opening.refused():
                    peer = b"" if owner is None else owner.public_key
                    self.drops.note(reason, count, peer=peer, place=place, size=size)
                if aside := opening.aside():
                    self._limit(aside, now, out)
                out.opened, out.born = opening.finish(now, self.takes), opening.born
            finally:
                opening.clear()
        if runs:
            self._inbound(runs, now, out)
        return self._settle(out)

    def _opened(
        self, now: float, out: Output, tunnel: Tunnel, session: Session, endpoint: bytes, size: int, data: bool
    ) -> None:
        tunnel.received(session, size, endpoint, now, out, data=data)
        if tunnel.limits is not None:
            self._divert(tunnel)
        self._agenda.enter(tunnel, tunnel.next_deadline())

    # --- packets -------------------------------------------------------------------------------------------

    def outbound(self, packets: Iterable[Packet], now: float) -> Output:
        """Seals a train of packets from the OS. hot: bench Worker.outbound"""
        out = Output()
        self._outbound(packets, now, out)
        return self._settle(out)

    def _outbound(self, packets: Iterable[Packet], now: float, out: Output) -> None:
        trains: dict[Tunnel, list[Packet]] = {}
        lookup = self.owners.lookup
        for packet in packets:
            destination = ip.destination(packet if isinstance(packet, bytes) else packet.packet)
            if destination is None:
                self.drops.note("outbound_malformed", size=len(packet if isinstance(packet, bytes) else packet.packet))
                continue
            owner = lookup(destination)
            if owner.__class__ is Tunnel:
                train = trains.get(owner)
                if train is None:
                    trains[owner] = [packet]
                else:
                    train.append(packet)
            elif owner is None:
                self._refuse(packet, "no_peer" if not ip.is_for_many(destination) else "for_many_unrouted", out)
            else:
                self._drop(packet, "peer_elsewhere", owner.public_key)
        for tunnel, train in trains.items():
            if tunnel.endpoint is None:
                for packet in train:
                    self._refuse(packet, "no_endpoint", out, tunnel.public_key)
                continue
            admitted = tunnel.admit(train, now)
            if admitted:
                tunnel.send(admitted, now, out)
            if tunnel.limits is not None:
                self._divert(tunnel)
            self._agenda.enter(tunnel, tunnel.next_deadline())

    def _refuse(self, packet: Packet, reason: str, out: Output, peer: bytes = b"") -> None:
        first = self._drop(packet, reason, peer)  # one answer is enough; it quotes the first packet
        unreachable = icmp.unreachable(first)
        if unreachable is not None:
            out.packets.append(unreachable)

    def _drop(self, packet: Packet, reason: str, peer: bytes) -> bytes:
        count, first = (1, packet) if isinstance(packet, bytes) else (packet.count, packet.first())
        self.drops.note(reason, count, peer=peer, place=ip.destination(first) or b"", size=len(first))
        return first

    def inbound(self, runs: Iterable[Run], now: float) -> Output:
        """Opens a train of runs from the network. hot: bench Worker.inbound"""
        out = Output()
        self._inbound(runs, now, out)
        return self._settle(out)

    def _inbound(self, runs: Iterable[Run], now: float, out: Output) -> None:
        opened: list[bytes] = []
        limited: dict[Tunnel, None] = {}
        for endpoint, datagrams in runs:
            lone = len(datagrams) == 1
            for receiver, group in ((_receiver(datagrams[0]), datagrams),) if lone else groupby(datagrams, _receiver):
                train = list(group)
                found = self._sessions.get(receiver)
                if found is None:
                    place, size = places.place_of(endpoint), len(train[0])
                    self.drops.note("unknown_receiver", len(train), place=place, size=size)
                    continue
                tunnel, session = found
                received = tunnel.receive(session, train, endpoint, now, out)
                if tunnel.limits is not None:
                    limited[tunnel] = None
                if tunnel.limits is None or tunnel not in self._diverted:
                    self._deliver(tunnel, received, opened)
                else:
                    passing: list[bytes] = []
                    self._deliver(tunnel, received, passing)
                    opened += tunnel.limits.from_peer(passing, tunnel.traffic, now)
                self._agenda.enter(tunnel, tunnel.next_deadline())
        for tunnel in limited:  # a quota that is used up now ends with the next visit, as in the compiled kernel
            self._divert(tunnel)
        out.packets += merge.merge(opened, self.takes)

    def _deliver(self, tunnel: Tunnel, packets: Iterable[bytes], opened: list[bytes]) -> None:
        lookup = self.owners.lookup
        for packet in packets:
            length = ip.inner_length(packet)
            source = ip.source(packet) if length else None
            if source is None:
                self.drops.note("inner_malformed", peer=tunnel.public_key, size=len(packet))
            elif lookup(source) is not tunnel:
                self.drops.note("inner_source_not_allowed", peer=tunnel.public_key, place=source, size=length)
            else:
                opened.append(packet if length == len(packet) else packet[:length])

    # --- limits --------------------------------------------------------------------------------------------

    def _set_limits(self, tunnel: Tunnel, facts: PeerFacts, now: float, out: Output) -> None:
        freed = tunnel.set_limits(facts.rates, facts.cap, facts.held_back, now, out)
        out.packets += merge.merge(freed, self.takes)
        if facts.cap is None:
            self.capped.pop(tunnel, None)
        else:
            self.capped[tunnel] = None
        self._divert(tunnel)

    def _divert(self, tunnel: Tunnel) -> None:
        """Sees to it that a peer's packets go one by one if its limits ask for that, and only then."""
        if tunnel.limits is not None and tunnel.limits.divert(tunnel.traffic):
            self._diverted[tunnel] = None
        else:
            self._diverted.pop(tunnel, None)

    def _limit(self, aside: Iterable[tuple[Tunnel, bytes]], now: float, out: Output) -> None:
        """Lets packets for the OS pass that `opening` has put aside, as far as their peers' limits allow."""
        by_peer: dict[Tunnel, list[bytes]] = {}
        for tunnel, packet in aside:
            by_peer.setdefault(tunnel, []).append(packet)
        for tunnel, packets in by_peer.items():
            passed = packets if tunnel.limits is None else tunnel.limits.from_peer(packets, tunnel.traffic, now)
            out.packets += merge.merge(passed, self.takes)
            self._agenda.enter(tunnel, tunnel.next_deadline())

    def _settle(self, out: Output) -> Output:
        """Forgets the sessions that ended in a call, so that the next call can't find them."""
        for event in out.events:
            if isinstance(event, SessionsEnded):
                for index in event.indices:
                    found = self._sessions.pop(_receiver_of(index), None)
                    if found is not None:
                        found[1].forget()
        return out

    # --- sessions ------------------------------------------------------------------------------------------

    def install(self, public_key: bytes, session: Session, endpoint: bytes | None, now: float) -> Output | None:
        """Takes a session in. Returns None if the peer isn't at home here; the caller must then forget the keys."""
        tunnel = self.owners.tunnel(public_key)
        receiver = _receiver_of(session.index)
        if tunnel is None or receiver in self._sessions:
            return None
        out = Output()
        self._sessions[receiver] = (tunnel, session)
        tunnel.install(session, endpoint, now, out)
        self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)

    def sessions(self) -> list[tuple[Tunnel, Session]]:
        """Lists all sessions that live here, for a new key-service."""
        return list(self._sessions.values())

    def peer_of(self, datagram: bytes) -> bytes:
        """Returns the public key of the peer that a transport message's session is with; empty for none."""
        found = self._sessions.get(_receiver(datagram))
        return b"" if found is None else found[0].public_key

    def handshake_sent(self, public_key: bytes, now: float) -> None:
        tunnel = self.owners.tunnel(public_key)
        if tunnel is not None:
            tunnel.handshake_sent(now)
            self._agenda.enter(tunnel, tunnel.next_deadline())

    def handshake_gave_up(self, public_key: bytes, now: float) -> None:
        tunnel = self.owners.tunnel(public_key)
        if tunnel is not None:
            tunnel.handshake_gave_up(now)
            self._agenda.enter(tunnel, tunnel.next_deadline())

    def endpoint_found(self, public_key: bytes, endpoint: bytes, at: float) -> None:
        """Sets the endpoint that the operator or a look-up gave a peer at `at` (s)."""
        tunnel = self.owners.tunnel(public_key)
        if tunnel is not None:
            tunnel.endpoint, tunnel.endpoint_at = endpoint, at

    def send_staged(self, public_key: bytes, now: float) -> Output:
        """Tries again with a peer's staged packets, as the operator named the peer."""
        out = Output()
        tunnel = self.owners.tunnel(public_key)
        if tunnel is not None:
            tunnel.flush(now, out)
            self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)

    def send_empty(self, public_key: bytes, now: float) -> Output:
        """Sends an empty packet if a session may; without one, asks for nothing."""
        out = Output()
        tunnel = self.owners.tunnel(public_key)
        if tunnel is not None and (session := tunnel.slots.current) is not None and session.may_send(now):
            tunnel.send_keepalive(now, out)
            self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)

    def want_again(self, now: float) -> Output:
        """Repeats all requests: a new key-service doesn't know those of the old one."""
        out = Output()
        for tunnel in self.owners.tunnels():
            tunnel.want_again(now, out)
        return out

    # --- configuration -------------------------------------------------------------------------------------

    def set_settings(self, settings: TunnelSettings) -> None:
        """Changes the settings of all peers, present and future."""
        # Padding goes up to the MTU, and a device's MTU may exceed a datagram.
        settings = replace(settings, mtu=min(settings.mtu, c.MAX_INNER))
        self.settings = settings
        if self.sealing is not None:
            self.sealing.mtu = settings.mtu
        for tunnel in self.owners.tunnels():
            tunnel.settings = settings

    def set_peer(self, facts: PeerFacts, now: float) -> Output:
        """Adds a peer or changes it. Its sessions go on unless it left home; its prefixes stay its own."""
        out = Output()
        owner = self.owners.get(facts.public_key)
        if owner is None or isinstance(owner, Tunnel) != facts.home:
            owner = (
                Tunnel(facts.public_key, self.settings, self._jitter, self.drops.of(facts.public_key), self._room)
                if facts.home
                else Elsewhere(facts.public_key)
            )
            self._end(self.owners.put(owner), out)
        if facts.allowed_ips is not None:
            self.owners.set_prefixes(owner, set(map(prefix.route, facts.allowed_ips)))
        if isinstance(owner, Tunnel):
            owner.settings = self.settings
            if facts.endpoint is not None and (owner.endpoint is None or facts.endpoint_at > owner.endpoint_at):
                owner.endpoint = facts.endpoint
            owner.endpoint_at = max(owner.endpoint_at, facts.endpoint_at)
            self._set_limits(owner, facts, now, out)
            owner.set_persistent_keepalive(facts.persistent_keepalive, now, out)
            self._agenda.enter(owner, owner.next_deadline())
        return self._settle(out)

    def judge_staged_again(self, now: float) -> Output:
        """Takes the staged packets whose destination belongs to another peer now, and sends them there."""
        moved: list[bytes] = []
        lookup = self.owners.lookup
        for tunnel in self.owners.tunnels():
            if tunnel.staged:
                packets = tunnel.staged.take()
                stays = [packet for packet in packets if lookup(ip.destination(packet) or b"") is tunnel]
                tunnel.staged.add(stays)
                if len(stays) < len(packets):
                    moved += [packet for packet in packets if lookup(ip.destination(packet) or b"") is not tunnel]
        return self.outbound(moved, now) if moved else Output()

    def expire_sending(self) -> None:
        """Ends sending under all sessions, as our long-term key changed; each still receives until it expires."""
        for _, session in self._sessions.values():
            session.expire_sending()

    def remove_peer(self, public_key: bytes) -> Output:
        """Forgets a peer, its sessions and its prefixes."""
        out = Output()
        self._end(self.owners.remove(public_key), out)
        self.drops.forget(public_key)
        return self._settle(out)

    def _end(self, owner: Owner | None, out: Output) -> None:
        """Ends the tunnel of a peer that is no longer at home here."""
        if isinstance(owner, Tunnel):
            owner.end(out)
            self._diverted.pop(owner, None)
            self.capped.pop(owner, None)
            self._agenda.forget(owner)

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Returns the time (s) of the next `act`, or None."""
        return self._agenda.next_deadline()

    def act(self, now: float) -> Output:
        out = Output()
        for tunnel in self._agenda.due(now):
            tunnel.act(now, out)
            if late := tunnel.release(now, out):
                out.packets += merge.merge(late, self.takes)
            self._agenda.enter(tunnel, tunnel.next_deadline())
        return self._settle(out)
