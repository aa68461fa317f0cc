"""The state of an interface as `stagewire status` shows it. No secret is in it."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from key_service.hub import Member
from key_service.live import LiveConfiguration
from key_service.workers import Workers
from stagewire.config import Network, encode_key
from stagewire.ipc.stage import Stage
from stagewire.proto.endpoint import unpack_untrusted
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.peer import Peer


def short(public_key: bytes) -> str:
    """Enough of a public key to know it by, for the log."""
    return encode_key(public_key)[:10]


def status(
    stage: Stage,
    live: LiveConfiguration,
    handshaker: Handshaker,
    members: Sequence[Member],
    version: int,
    workers: Workers,
) -> str:
    """JSON: the interface, its stages (`ready` when all that are wanted are at work), its workers, its peers."""
    moves = workers.moves
    in_order = sorted(members, key=lambda member: (member.stage, member.number))
    stages = [_stage(member, version, workers.up) for member in in_order]
    stages.append(
        {
            "stage": "key",
            "number": 0,
            "pid": os.getpid(),
            "ready": True,
            "fault": stage.fault,
            "spares": stage.bequest.spares,
        }
    )
    at_work = {(entry["stage"], entry["number"]) for entry in stages if entry["ready"]}
    needed = {("tun", 0), ("conn", 0), *(("device", number) for number in range(moves.wanted))}
    configured = live.registry.peers
    return json.dumps(
        {
            "interface": stage.environment.interface,
            "public_key": encode_key(handshaker.public_key) if handshaker.public_key else None,
            "listen_port": live.port or None,
            "ready": needed <= at_work,
            "waiting_for": sorted(f"{name} {number}" for name, number in needed - at_work),
            "stages": stages,
            "workers": {"wanted": moves.wanted, "up": sorted(workers.up), "peers_moving": moves.moving},
            "peers": [
                _peer(peer)
                | {
                    "allowed_ips": list(map(_text, configured[peer.public_key].allowed_ips)),
                    "persistent_keepalive_s": configured[peer.public_key].persistent_keepalive,
                }
                for peer in handshaker.peers.values()
            ],
        }
    )


def _stage(member: Member, version: int, workers_up: Mapping[int, int]) -> dict[str, Any]:
    up = member.stage != "device" or workers_up.get(member.number) == member.generation
    return {
        "stage": member.stage,
        "number": member.number,
        "pid": member.pid,
        "ready": up and member.applied == version and not member.fault,
        "fault": member.fault,
        "spares": member.spares,
    }


def _text(prefix: Network) -> str:
    """1 us, a third of what `str` takes; there may be 130,000, and meanwhile no handshake is answered."""
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, prefix.network_address.packed)}/{prefix.prefixlen}"


def _place(endpoint: bytes | None) -> str | None:
    try:
        return str(unpack_untrusted(endpoint)) if endpoint else None
    except ValueError:  # it came with a handshake message, and conn-service made it up
        return None


def _peer(peer: Peer) -> dict[str, Any]:
    return {
        "public_key": encode_key(peer.public_key),
        "endpoint": _place(peer.endpoint),
        "worker": peer.worker,
        "last_handshake_unix_s": peer.last_handshake_unix_ns / 1e9 if peer.last_handshake_unix_ns else None,
        "tx_bytes": peer.tx_bytes,
        "rx_bytes": peer.rx_bytes,
        "clock_skew_s": None if peer.skew_ns is None else peer.skew_ns / 1e9,
    }
