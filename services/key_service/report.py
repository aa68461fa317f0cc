"""Describes the state of an interface for `stagewire status`, without secrets."""

import os
import socket
from collections.abc import Callable

from key_service import rates
from key_service.hub import Member
from key_service.live import LiveConfiguration
from key_service.readiness import Readiness
from key_service.workers import Workers
from stagewire.config import HostPort, Network, encode_key
from stagewire.control.status import GatewayStatus, HostStatus, PeerStatus, StageStatus, WorkersStatus
from stagewire.process.stage import Stage
from stagewire.proto.endpoint import unpack_untrusted
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.peer import Peer
from stagewire.wall_clock import unix_ns


def status(
    stage: Stage,
    kernel: str,
    live: LiveConfiguration,
    handshaker: Handshaker,
    readiness: Readiness,
    workers: Workers,
    unresolved: Callable[[bytes], str],
    endpoint_fault: Callable[[bytes | None], str],
    now: float,
) -> GatewayStatus:
    """Answers a StatusQuery.

    `kernel` tells what computes handshakes here. `unresolved` tells why a peer's host name has no address, `endpoint_fault`
    why conn-service refuses an endpoint.
    """
    moves = workers.moves
    in_order = sorted(readiness.living(now), key=lambda member: (member.stage, member.number))
    stages = [_stage(member, ready=readiness.has(member)) for member in in_order]
    stages.append(_ourselves(stage, kernel))
    waiting_for = readiness.away(now)
    return GatewayStatus(
        interface=stage.environment.interface,
        public_key=encode_key(handshaker.public_key) if handshaker.public_key else None,
        listen_port=live.port or None,
        listen_port_set=live.registry.interface.listen_port,
        ready=not waiting_for,
        waiting_for=tuple(waiting_for),
        stages=tuple(stages),
        host=_host(live),
        link_up=live.link_up if stage.environment.managed else None,
        workers=WorkersStatus(moves.wanted, tuple(sorted(workers.up)), moves.moving),
        peers=tuple(
            _peer(peer, live, unresolved(peer.public_key), endpoint_fault(peer.endpoint), now)
            for peer in handshaker.peers.values()
        ),
    )


def _host(live: LiveConfiguration) -> HostStatus | None:
    state = live.trial.state
    if state is None:
        return None
    at = unix_ns(state.put_back_at) // 10**9 if state.put_back_at else None
    return HostStatus(state.mark, state.warnings, state.put_back, at)


def _ourselves(stage: Stage, kernel: str) -> StageStatus:
    return StageStatus("key", 0, os.getpid(), ready=True, fault=stage.fault, spares=stage.bequest.spares, kernel=kernel)


def _stage(member: Member, *, ready: bool) -> StageStatus:
    return StageStatus(member.stage, member.number, member.pid, ready, member.fault, member.spares, member.kernel)


def _text(prefix: Network) -> str:
    """Prints a prefix faster than `str` does: a status with many prefixes delays handshakes. Hot."""
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, prefix.network_address.packed)}/{prefix.prefixlen}"


def _name(name: HostPort | None) -> str | None:
    return None if name is None else str(name)


def place(endpoint: bytes | None) -> str | None:
    """Writes a packed endpoint; None for none."""
    try:
        return str(unpack_untrusted(endpoint)) if endpoint else None
    except ValueError:  # conn-service may send a malformed endpoint with a handshake message
        return None


def _peer(peer: Peer, live: LiveConfiguration, unresolved: str, endpoint_fault: str, now: float) -> PeerStatus:
    configured, (received, sent) = live.registry.peers[peer.public_key], rates.of(peer, now)
    return PeerStatus(
        public_key=encode_key(peer.public_key),
        name=live.registry.from_file.get(peer.public_key, ""),
        endpoint=place(peer.endpoint),
        endpoint_set=_name(configured.endpoint),
        worker=peer.worker,
        last_handshake_unix_s=unix_ns(peer.last_handshake) / 1e9 if peer.last_handshake else None,
        tx_bytes=peer.tx_bytes,
        rx_bytes=peer.rx_bytes,
        clock_skew_s=None if peer.skew_ns is None else peer.skew_ns / 1e9,
        endpoint_fault=endpoint_fault,
        allowed_ips=tuple(map(_text, configured.allowed_ips)),
        endpoint_name=_name(live.known_peers.names.get(peer.public_key)),
        unresolved=unresolved,
        persistent_keepalive_s=configured.persistent_keepalive,
        rx_bytes_per_s=received,
        tx_bytes_per_s=sent,
        rx_bytes_alone=peer.rx_alone,
    )
