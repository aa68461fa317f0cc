"""The state of an interface as `stagewire status` shows it. No secret is in it."""

import json
from collections.abc import Sequence
from typing import Any

from key_service.hub import Member
from key_service.snapshot import DEFAULT_PORT
from stagewire.config import InterfaceConfig, encode_key
from stagewire.ipc.stage import Stage
from stagewire.proto.endpoint import unpack_untrusted
from stagewire.proto.handshaker import Handshaker, Peer


def short(public_key: bytes) -> str:
    """Enough of a public key to know it by, for the log."""
    return encode_key(public_key)[:10]


def status(
    config: InterfaceConfig,
    handshaker: Handshaker,
    members: Sequence[Member],
    version: int,
    workers: int,
    stage: Stage,
) -> str:
    """JSON: the interface, its stages (`ready` when all are at work), its peers."""
    stages = [_stage(member, version) for member in members]
    stages.append({"stage": "key", "number": 0, "ready": True, "fault": stage.fault})
    at_work = {(entry["stage"], entry["number"]) for entry in stages if entry["ready"]}
    needed = {("tun", 0), ("conn", 0), *(("device", number) for number in range(workers))}
    allowed_ips = {peer.public_key: peer.allowed_ips for peer in config.peers}
    keepalives = {peer.public_key: peer.persistent_keepalive for peer in config.peers}
    return json.dumps(
        {
            "interface": stage.environment.interface,
            "public_key": encode_key(handshaker.identity.public_key),
            "listen_port": DEFAULT_PORT if config.listen_port is None else config.listen_port,
            "ready": needed <= at_work,
            "waiting_for": sorted(f"{name} {number}" for name, number in needed - at_work),
            "stages": stages,
            "peers": [
                _peer(peer)
                | {
                    "allowed_ips": [str(prefix) for prefix in allowed_ips.get(peer.public_key, ())],
                    "persistent_keepalive_s": keepalives.get(peer.public_key, 0),
                }
                for peer in handshaker.peers.values()
            ],
        }
    )


def _stage(member: Member, version: int) -> dict[str, Any]:
    return {
        "stage": member.stage,
        "number": member.number,
        "pid": member.pid,
        "ready": member.applied == version and not member.fault,
        "fault": member.fault,
    }


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
