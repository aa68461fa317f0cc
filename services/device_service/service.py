"""Connects the pipes to `proto.worker`.

plain-out.<n> ──▶ Worker.seal ──▶ cipher-out      read only while cipher-out has room
cipher-in.<n> ──▶ Worker.open ──▶ plain-in        read only while plain-in has room
                  (one call seals or opens all short trains of a visit)
sessions      ──▶ Worker.install
control      ◀──▶ settings, peers, events
capture      ───▶ Captures      copies packets in clear, while root wants that
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import assert_never

from device_service.captures import Captures
from device_service.dropped import Dropped
from stagewire.control.confirm import Confirm, Confirmed
from stagewire.control.messages import (
    SESSION_BATCH,
    EndpointFound,
    HandshakeGaveUp,
    HandshakeSent,
    Hello,
    LiveSession,
    LiveSessions,
    MovedIn,
    MoveIn,
    PeersGone,
    PeersSet,
    PrefixesGone,
    PrefixesSet,
    Retire,
    SendEmpty,
    SendingExpired,
    SendStaged,
    SessionRefused,
    SessionsInstalled,
    SnapshotEnd,
    ToWorker,
    Welcome,
    WorkerPeer,
    WorkerSettings,
)
from stagewire.control.session_keys import Grant, SessionsTaker, WorkerHello
from stagewire.control.telemetry import CountLast, LastCount, PeerTraffic, Traffic
from stagewire.linux import privileges
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.contract import Frame
from stagewire.pipe.names import CIPHER_IN, CIPHER_OUT, PLAIN_IN, PLAIN_OUT, SESSIONS
from stagewire.pipe.send_queue import SendQueue
from stagewire.process.control_line import ControlLine
from stagewire.process.stage import Stage
from stagewire.proto import prefix
from stagewire.proto.events import EndpointMoved
from stagewire.proto.kernel.choice import Kernel
from stagewire.proto.packets import split
from stagewire.proto.packets.virtio import BadSuperPacket
from stagewire.proto.session import Session
from stagewire.proto.tunnel import Output, Packet, Tunnel, TunnelSettings
from stagewire.proto.worker import PeerFacts, Worker
from stagewire.randomness import jitter

ENOUGH_TO_SEAL = 112 * 1024
"""Bytes of trains that one call seals; shorter trains are joined. The more a call seals, the fuller are its runs."""
ENOUGH_TO_OPEN = 32 * 1024
"""Bytes of trains that one call opens; shorter trains are joined."""
TRAFFIC_INTERVAL = 1.0
"""s between two reports of traffic to key-service."""
REPORTED_WITHIN = 0.2
"""s between two reports of peers with a quota: as much of their traffic is forgotten when a worker is killed."""
MOVES_APART = 0.1
"""s between two reports of moved endpoints: a peer can move with each datagram, and key-service serves other peers too."""
MOVES_AT_ONCE = 8
"""Reports in a row without that wait: `wg show` tells a move that has just happened."""
TRAFFIC_BATCH = 1024
"""Peers in one report; the next report has the others."""

CountOld = Callable[[trains.Data, int, int], None]


class DeviceService:
    """Runs one worker."""

    def __init__(self, stage: Stage, kernel: Kernel) -> None:
        self._stage = stage
        self._worker = Worker(jitter, kernel=kernel)
        self._worker.drops = stage.counters
        self._dropped = Dropped(self._worker, stage.counters)
        self._named: set[bytes] | None = None
        """Peers that a snapshot has named so far, or None."""
        self._reported: dict[bytes, tuple[int, int, int]] = {}
        self._moved: dict[bytes, EndpointMoved] = {}
        """Where peers are that have moved since the last report."""
        self._next_moves = -math.inf
        """When key-service may hear of moves again (s)."""
        self._capturing: Sequence[object] = ()
        """The captures that run; nearly always none."""

    def set_up(self) -> None:
        """Opens the pipes."""
        stage, pipes, number = self._stage, self._stage.pipes, self._stage.number
        loop, counters = stage.loop, stage.counters
        # The loop serves each pipe once a turn: no train waits for many keys, nor a key for many trains.
        self._line = ControlLine(stage, self)
        self._taker = SessionsTaker(
            loop,
            pipes.path(SESSIONS),
            privileges.uid_of("key"),
            WorkerHello(number, stage.generation),
            self._on_sessions,
            counters,
            self._worker.kernel.session,
            self._line.introduce,
        )
        plain_out = pipes.receiver(loop, PLAIN_OUT, self._on_plain, stage.drop, number)
        cipher_in = pipes.receiver(loop, CIPHER_IN, self._on_cipher, stage.drop, number)
        to_conn, to_tun = pipes.sender(loop, CIPHER_OUT), pipes.sender(loop, PLAIN_IN)
        count_sent, count_opened = self._dropped.to_network, self._dropped.to_os
        self._to_conn = SendQueue(loop, to_conn, counters, "conn_full", [plain_out.source], count=count_sent)
        self._to_tun = SendQueue(loop, to_tun, counters, "tun_full", [cipher_in.source], count=count_opened)
        self._captures = Captures(stage, self._worker)
        self._capturing = self._captures.running
        loop.add_timed(self)
        loop.add_paced(TRAFFIC_INTERVAL, self._report_traffic)
        loop.add_paced(REPORTED_WITHIN, self._report_capped)
        loop.at_stop(self._report_rest)

    # --- packets -------------------------------------------------------------------------------------------

    def _on_plain(self, frames: Sequence[Frame], _now: float) -> None:
        worker, sealing = self._worker, self._worker.sealing
        if self._capturing:
            self._captures.outbound(frames, boot_time())
        packets: list[Packet] = []
        size = items = 0
        now, born = boot_time(), math.inf
        for data, start, end in frames:
            if sealing is not None and sealing.add(data, start, end, now, trains.MAX_AGE):
                worker.takes, items = trains.takes_of(data, start), sealing.items
            else:
                try:
                    packets += self._packets(data, start, end, now)
                    born = min(born, trains.born_of(data, start))
                except trains.BadTrain as bad:
                    self._drop(bad, self._dropped.from_os, data, start, end)
                    continue
            size += end - start
            if size >= ENOUGH_TO_SEAL or items + len(packets) >= trains.MAX_PACKETS:
                self._emit(worker.seal(packets, now), now, sealed_of=born)
                # A train's wait for the trains before it is no sign of age.
                packets, size, items, now, born = [], 0, 0, boot_time(), math.inf
        if items or packets:
            self._emit(worker.seal(packets, now), now, sealed_of=born)

    def _on_cipher(self, frames: Sequence[Frame], _now: float) -> None:
        worker, opening = self._worker, self._worker.opening
        runs: list[tuple[bytes, Sequence[bytes]]] = []
        size = taken = 0
        now, born = boot_time(), math.inf
        for data, start, end in frames:
            if opening is not None and opening.add(data, start, end, now, trains.MAX_AGE):
                taken = opening.runs
            else:
                try:
                    runs += self._runs(data, start, end, now)
                    born = min(born, trains.born_of(data, start))
                except trains.BadTrain as bad:
                    self._drop(bad, self._dropped.from_network, data, start, end)
                    continue
            size += end - start
            if size >= ENOUGH_TO_OPEN or taken + len(runs) >= trains.MAX_PACKETS:
                out = worker.open(runs, now)
                if self._capturing:
                    self._captures.inbound(out.opened, out.packets, now)
                self._emit(out, now, opened_of=born)
                runs, size, taken, now, born = [], 0, 0, boot_time(), math.inf
        if taken or runs:
            out = worker.open(runs, now)
            if self._capturing:
                self._captures.inbound(out.opened, out.packets, now)
            self._emit(out, now, opened_of=born)

    def _drop(self, bad: trains.BadTrain, count: CountOld, data: trains.Data, start: int, end: int) -> None:
        """Counts a train that can't be used: one that is only too old for its peers."""
        if bad.reason == "train_too_old":
            try:
                count(data, start, end)
            except trains.BadTrain:  # its sender changes it meanwhile
                self._stage.drop(bad)
        else:
            self._stage.drop(bad)

    @staticmethod
    def _runs(data: trains.Data, start: int, end: int, now: float) -> Sequence[tuple[bytes, Sequence[bytes]]]:
        """Returns the runs of a train. Raises BadTrain."""
        if (lone := trains.lone_run_untrusted(data, now, start, end)) is not None:
            return [(lone[0], [lone[1]])]
        return trains.unpack_cipher_untrusted(data, now, start, end)

    def _packets(self, data: trains.Data, start: int, end: int, now: float) -> list[Packet]:
        """Returns the packets of a train. Raises BadTrain."""
        packets: list[Packet] = []
        if (lone := trains.lone_untrusted(data, now, start, end)) is not None:
            packets.append(lone)
        else:
            for item in trains.unpack_plain_untrusted(data, now, start, end):
                try:
                    packets.append(item if isinstance(item, bytes) else split.open_untrusted(item.header, item.packet))
                except BadSuperPacket:
                    size = len(item if isinstance(item, bytes) else item.packet)
                    self._stage.counters.note("outbound_malformed", trains.weight([item]), size=size)
        self._worker.takes = trains.takes_of(data, start)
        return packets

    def _emit(self, out: Output, now: float, *, sealed_of: float | None = None, opened_of: float | None = None) -> None:
        """Sends what the worker returned. `sealed_of` or `opened_of`: the birth of what it was given.

        What a handshake or a rate held back is new now.
        """
        for train, weight in out.sealed:
            self._to_conn.offer(train, weight, now)
        for train, weight in out.opened:
            self._to_tun.offer(train, weight, now)
        if out.runs:
            age = 0 if sealed_of is None else trains.age_of(min(sealed_of, out.born), now)
            for runs in trains.cut_runs(out.runs):
                weight = sum([len(datagrams) for _, datagrams in runs])
                self._to_conn.offer_parts(trains.cipher_parts(runs, now, age), weight, now)
        if out.packets:
            age = 0 if opened_of is None else trains.age_of(min(opened_of, out.born), now)
            for packets in trains.cut_packets(out.packets):
                self._to_tun.offer_parts(trains.plain_parts(packets, now, 0, age), trains.weight(packets), now)
        for event in out.events:
            if isinstance(event, EndpointMoved):
                self._moved[event.public_key] = event
            else:
                self._line.say(event)
        if self._moved and now >= self._next_moves:
            self._say_moves(now)

    def _say_moves(self, now: float) -> None:
        """Tells key-service where each moved peer is by now."""
        moved, self._moved = self._moved, {}
        self._next_moves = max(self._next_moves, now - MOVES_AT_ONCE * MOVES_APART) + MOVES_APART
        for event in moved.values():
            self._line.say(event)

    # --- sessions ------------------------------------------------------------------------------------------

    def _on_sessions(self, sessions: Sequence[tuple[Grant, Session]]) -> None:
        now, installed = boot_time(), dict[int, Output]()
        for grant, session in sessions:
            out = self._worker.install(grant.public_key, session, grant.endpoint or None, now)
            if out is None:
                self._line.say(SessionRefused(grant.index))
            else:
                installed[grant.index] = out
        if installed:
            self._line.say(SessionsInstalled(tuple(installed)))
        for out in installed.values():
            self._emit(out, now)

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        due = self._worker.next_deadline()
        if not self._moved:
            return due
        return self._next_moves if due is None else min(due, self._next_moves)

    def act(self, now: float) -> None:
        self._emit(self._worker.act(now), now)

    def _report_traffic(self, _now: float) -> None:
        self._report(self._worker.owners.tunnels())

    def _report_capped(self, _now: float) -> None:
        self._report(self._worker.capped)

    def _report_rest(self, now: float) -> None:
        self._say_moves(now)
        while self._report(self._worker.owners.tunnels()) == TRAFFIC_BATCH:
            pass
        self._line.say(LastCount())

    def _report(self, tunnels: Iterable[Tunnel]) -> int:
        """Reports traffic that has changed; returns of how many peers."""
        changed: list[Traffic] = []
        for tunnel in tunnels:
            totals = (tunnel.tx_bytes, tunnel.rx_bytes, tunnel.refused)
            if self._reported.get(tunnel.public_key, (0, 0, 0)) != totals and len(changed) < TRAFFIC_BATCH:
                self._reported[tunnel.public_key] = totals
                changed.append(Traffic(tunnel.public_key, *totals))
        if changed:
            self._line.say(PeerTraffic(tuple(changed)))
            self._stage.loop.worked += len(changed) == TRAFFIC_BATCH  # so that the rest follows in a second
        return len(changed)

    # --- control -------------------------------------------------------------------------------------------

    def hello(self) -> list[Hello | LiveSessions]:
        """Names the live sessions, for a key-service that doesn't know them."""
        sessions = [
            LiveSession(tunnel.public_key, session.index, tunnel.endpoint or b"", session.created, session.shaken)
            for tunnel, session in self._worker.sessions()
        ]
        batches = [tuple(sessions[at : at + SESSION_BATCH]) for at in range(0, len(sessions), SESSION_BATCH)]
        return [
            replace(self._stage.hello(), sessions=len(sessions), kernel=str(self._worker.kernel)),
            *map(LiveSessions, batches),
        ]

    def on_control(self, message: ToWorker, now: float) -> None:  # noqa: C901 - one case for each message
        worker = self._worker
        match message:
            case Welcome():
                self._named = set()
                worker.owners.begin_naming()
            case WorkerSettings():
                worker.set_settings(TunnelSettings(message.mtu, message.rekey_after_time))
            case PeersSet():
                for peer in message.peers:
                    self._set_peer(peer, now)
            case MoveIn():
                for peer in message.peers:
                    self._set_peer(peer, now)
                self._line.say(MovedIn(tuple(peer.public_key for peer in message.peers)))
            case SendEmpty():
                for public_key in message.public_keys:
                    self._emit(worker.send_empty(public_key, now), now)
            case Retire():
                self._stage.log.info("ends, as fewer workers are wanted")
                self._stage.loop.stop()
            case PeersGone():
                for public_key in message.public_keys:
                    self._emit(worker.remove_peer(public_key), now)
            case PrefixesSet():
                for entry in message.entries:
                    worker.owners.allow(entry.public_key, map(prefix.route_untrusted, entry.prefixes))
            case PrefixesGone():
                for entry in message.entries:
                    worker.owners.disallow(entry.public_key, map(prefix.route_untrusted, entry.prefixes))
            case SnapshotEnd():
                self._end_snapshot(message.version, now)
            case SendingExpired():
                worker.expire_sending()
                self._emit(worker.want_again(now), now)  # earlier requests were made under the old key
            case SendStaged():
                for public_key in message.public_keys:
                    self._emit(worker.send_staged(public_key, now), now)
            case EndpointFound():
                worker.endpoint_found(message.public_key, message.endpoint, message.at)
            case Confirm(number=number):
                self._confirm(number, now)
            case CountLast():
                self._report_rest(now)
            case HandshakeSent():
                worker.handshake_sent(message.public_key, now)
            case HandshakeGaveUp():
                worker.handshake_gave_up(message.public_key, now)
            case _:
                assert_never(message)

    def _set_peer(self, peer: WorkerPeer, now: float) -> None:
        if self._named is not None:
            self._named.add(peer.public_key)
        tunnel = None if peer.home else self._worker.owners.tunnel(peer.public_key)
        if tunnel is not None:  # the peer moves to another worker, so this is its last report from here
            self._report([tunnel])
            self._reported.pop(peer.public_key, None)
        facts = PeerFacts(
            *(peer.public_key, None, peer.home, peer.persistent_keepalive, peer.endpoint or None, peer.endpoint_at),
            rates=(peer.rate_to, peer.rate_from),
            cap=peer.cap if peer.cap >= 0 else None,
            held_back=peer.held_back,
        )
        self._emit(self._worker.set_peer(facts, now), now)

    def _confirm(self, number: int, now: float) -> None:
        """Says that all changes are applied, here and behind all packets that were judged before them."""
        self._emit(self._worker.judge_staged_again(now), now)
        mark = trains.pack_mark(self._stage.number, number, now)
        self._to_tun.offer(mark, 0, now)
        self._to_conn.offer(mark, 0, now)
        self._line.say(Confirmed(number))

    def _end_snapshot(self, version: int, now: float) -> None:
        """Drops the peers and prefixes that the snapshot didn't name."""
        named, self._named = self._named or set(), None
        for public_key in self._worker.owners.public_keys() - named:
            self._emit(self._worker.remove_peer(public_key), now)
        self._worker.owners.end_naming()
        self._reported.clear()  # a new key-service has no totals yet
        self._line.applied(version)
        self._emit(self._worker.want_again(now), now)
