"""Checks the claims that must hold at all times, whatever dies."""

from dataclasses import dataclass
from typing import Final

from tests.chaos.processes import Held
from tests.chaos.record import Record

DESCRIPTORS: Final = 0.02, 6
"""How many more descriptors there may be at the end: a share and a number."""
MEMORY: Final = 0.15, 16 << 20
"""How much more memory there may be at the end: a share and bytes."""


@dataclass(frozen=True, slots=True)
class Check:
    """States a claim, whether it holds so far, and the figures behind that."""

    claim: str
    holds: bool
    seen: str


def checks(record: Record, broken: list[str]) -> list[Check]:
    """Returns the claims that can be judged at any moment. `broken` lists faults of processes."""
    get = record.get
    sent = get("ticks") * record.flows
    missed = f", {get('missed')} not seen" if get("missed") else ""
    return [
        Check(
            "no counter leaves twice", not get("counters_again") and not get("missed"),
            f"{get('counters'):,} counters{missed}",
        ),
        Check("no packet is delivered twice", not get("twice") and not get("foreign"), f"{sent:,} sent"),
        Check(
            "no replay is answered or moves an endpoint", not get("strange"),
            f"{get('replayed'):,} replayed" + (f", {n} cookies" if (n := get("cookies_to_strangers")) else ""),
        ),
        Check("no plain byte on the outer link", not get("plain") and not get("unexpected"), f"{get('frames'):,} frames"),
        Check("no process dies except the intended one", not broken, broken[-1] if broken else "all as intended"),
        Check(
            "TCP goes on, byte for byte", _tcp_holds(record),
            f"{get('tcp_bytes') / 1e6:.1f} MB, {get('tcp_connections')} connection",
        ),
    ]  # fmt: skip


def _tcp_holds(record: Record) -> bool:
    return not (record.get("tcp_broken") or record.get("tcp_wrong"))


def come_back(before: Held, after: Held) -> list[Check]:
    """Returns the claims that can be judged only at the end."""
    descriptors = before.descriptors * (1 + DESCRIPTORS[0]) + DESCRIPTORS[1]
    memory = before.memory * (1 + MEMORY[0]) + MEMORY[1]
    return [
        Check(
            "descriptors come back", after.descriptors <= descriptors,
            f"{before.descriptors} before, {after.descriptors} after",
        ),
        Check(
            "memory comes back", after.memory <= memory,
            f"{before.memory / 2**20:.0f} MiB before, {after.memory / 2**20:.0f} MiB after",
        ),
    ]  # fmt: skip
