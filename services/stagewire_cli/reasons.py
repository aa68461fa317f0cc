"""Tells what was dropped and what failed, by reason and peer, in the words of the one list in `stats`."""

import time
from typing import Any

from stagewire import stats
from stagewire.control.status import ReasonStatus

Reason = dict[str, Any]


def described(found: ReasonStatus) -> Reason:
    """Describes a reason as `--json` shows it."""
    return {
        "service": f"{found.stage}-service",
        "number": found.number,
        "reason": found.reason,
        "kind": stats.kind_of(found.reason).value,
        "count": found.count,
        "last_unix_s": round(time.time() - found.s_ago, 3),
        "example": {"address": found.place, "size": found.size},
        "meaning": stats.COUNTERS[found.reason].meaning if found.reason in stats.COUNTERS else "",
        "mend": stats.mend_of(found.reason),
    }


def by_peer(found: tuple[ReasonStatus, ...], peers: set[str]) -> tuple[dict[str, list[Reason]], list[Reason]]:
    """Splits reasons into those of each configured peer, by public key, and those of strangers; the newest first."""
    of_peers: dict[str, list[Reason]] = {}
    strangers = []
    for each in found:
        if each.public_key in peers:
            of_peers.setdefault(each.public_key, []).append(described(each))
        else:
            strangers.append(described(each) | {"public_key": each.public_key})
    return of_peers, strangers
