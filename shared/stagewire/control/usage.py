"""Keeps the traffic that counts towards quotas in a file: key-service alone writes it, commands read it.

{"version": 1, "peers": {"vG4mK2Aa…=": {"months": {"2030-12": 4711}, "tunnels": {"0": [815, 42]}}}}

`tunnels` has the generation of each worker that carries the peer, and that tunnel's bytes that `months` contains: so a new
key-service adds up what workers count, and counts nothing twice.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stagewire import files
from stagewire.config import decode_key, encode_key
from stagewire.limits import MAX_COUNT

NAME: Final = "usage"
MAX_SIZE: Final = 64 << 20
MONTHS: Final = 3
"""Months that are kept: a clock that jumps ahead and back again finds the month that it left."""
_VERSION: Final = 1


class BadUsage(ValueError):  # noqa: N818 - the text is what the operator reads
    """Says that a file is none of this kind."""


@dataclass(slots=True)
class Usage:
    """Holds one peer's traffic in bytes, both ways: by month (UTC), and of each worker's tunnel as (generation, bytes)."""

    months: dict[str, int] = field(default_factory=dict)
    tunnels: dict[int, tuple[int, int]] = field(default_factory=dict)
    former: dict[int, tuple[int, int]] = field(default_factory=dict)
    """The tunnel of each worker's process before, whose last report may come late. It is not stored."""

    def in_month(self, month: str) -> int:
        return self.months.get(month, 0)

    def add(self, month: str, amount: int) -> None:
        """Adds traffic, and forgets the month that was added to longest ago if there are too many."""
        self.months[month] = min(self.months.pop(month, 0) + amount, MAX_COUNT)
        while len(self.months) > MONTHS:
            del self.months[next(iter(self.months))]

    def counted(self, worker: int, generation: int, total: int, month: str) -> None:
        """Takes the bytes that a worker's tunnel has carried so far."""
        if self.former.get(worker, (None, 0))[0] == generation:
            before = self.former[worker][1]
            self.former[worker] = generation, max(before, total)
            self.add(month, max(0, total - before))
            return
        self.begins(worker, generation)
        before = self.tunnels.get(worker, (generation, 0))[1]
        if total < before:  # a new tunnel, which counts from 0
            before = 0
        if total != before:
            self.add(month, total - before)
        self.tunnels[worker] = (generation, total)

    def ends(self, worker: int, generation: int, unreported: int, month: str) -> None:
        """Notes that a worker's process has died, and counts what it has probably carried since its last report.

        A last report that comes late adds what exceeds that.
        """
        known, total = self.tunnels.get(worker, (generation, 0))
        if known == generation:
            self.former[worker] = generation, total + unreported
            self.tunnels.pop(worker, None)
            self.add(month, unreported)

    def begins(self, worker: int, generation: int) -> None:
        """Notes which process carries a worker's tunnel from now on."""
        if worker in self.tunnels and self.tunnels[worker][0] != generation:
            self.former[worker] = self.tunnels.pop(worker)


def month_of(unix_s: float) -> str:
    return time.strftime("%Y-%m", time.gmtime(unix_s))


def pack(usages: Mapping[bytes, Usage]) -> bytes:
    """Returns a file's content."""
    peers = {
        encode_key(key): {"months": usage.months, "tunnels": {str(one): two for one, two in usage.tunnels.items()}}
        for key, usage in usages.items()
    }
    return json.dumps({"version": _VERSION, "peers": peers}, separators=(",", ":")).encode()


def unpack_untrusted(data: bytes) -> dict[bytes, Usage]:
    """Reads a file's content. Raises BadUsage."""
    try:
        said = json.loads(data)
        if said["version"] != _VERSION:
            raise BadUsage("has another version")
        return {decode_key(key): _usage(one) for key, one in said["peers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadUsage(str(error) if isinstance(error, BadUsage) else "is not of this kind") from None


def read(folder: Path) -> dict[bytes, Usage]:
    """Reads an interface's file; nothing if there is none. Raises OSError or BadUsage."""
    try:
        return unpack_untrusted(files.read(folder / NAME, MAX_SIZE))
    except FileNotFoundError:
        return {}


def _usage(said: Any) -> Usage:
    months = {str(month): _amount(amount) for month, amount in said["months"].items()}
    tunnels = {int(worker): (_amount(one), _amount(two)) for worker, (one, two) in said["tunnels"].items()}
    return Usage(months, tunnels)


def _amount(said: Any) -> int:
    if type(said) is not int or not 0 <= said <= MAX_COUNT:
        raise BadUsage("is not of this kind")
    return said
