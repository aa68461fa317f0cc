"""Describes peers for `--json`; `peer_layout` shows the same as text."""

import time
from collections.abc import Iterable
from typing import Any

from stagewire.config import PeerConfig, encode_key, gateway, operations, values

Row = dict[str, Any]


def row(one: PeerConfig, off: bool, used: dict[bytes, int]) -> Row:
    """Describes a peer without secrets. `used` is what each peer has used of its quota (bytes)."""
    state = "expired" if operations.is_expired(one, time.time()) else "disabled" if off else "enabled"
    return {
        "name": one.name,
        "public_key": encode_key(one.public_key),
        "state": state,
        "allowed_ips": _texts(one.allowed_ips),
        "endpoint": str(one.endpoint) if one.endpoint else None,
        "persistent_keepalive_s": one.persistent_keepalive,
        "has_preshared_key": any(one.preshared_key),
        "expires": values.as_time(one.expires) if one.expires is not None else None,
        "rate": values.as_rate(one.limits.rate_to, one.limits.rate_from) if one.limits.rate_to else None,
        "quota_bytes": one.limits.quota or None,
        "quota_used_bytes": used.get(one.public_key, 0) if one.limits.quota else None,
        "client_allowed_ips": _texts(one.client.allowed_ips),
        "client_dns": list(one.client.dns),
        "client_mtu": one.client.mtu,
        "client_keepalive_s": one.client.keepalive,
        "groups": list(one.access.groups),
        "allow": [gateway.reach_text(each) for each in one.access.allow],
        "forwards": [gateway.forward_text(each) for each in one.access.forwards],
    }


def _texts(each: Iterable[object]) -> list[str]:
    return [str(one) for one in each]
