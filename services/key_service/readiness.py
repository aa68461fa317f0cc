"""Tells which processes are ready, and which are needed and not ready."""

from typing import Final

from key_service.hub import Hub, Member
from key_service.workers import Workers
from stagewire.stages import WORKER

NEEDED: Final = {("tun", 0), ("conn", 0), ("host", 0)}
"""Stages that an interface needs, beside the wanted workers."""


class Readiness:
    """Judges the hub's members. `version` is of the snapshots that they must have applied."""

    def __init__(self, hub: Hub, workers: Workers, version: int) -> None:
        self._hub, self._workers, self._version = hub, workers, version

    def living(self, now: float) -> list[Member]:
        """Lists the members, without dead predecessors: the hub keeps those until they have been silent for long."""
        return [each for each in self._hub.members(now) if self._hub.member(each.stage, each.number) is each]

    def away(self, now: float) -> list[str]:
        """Names the processes that are needed and not ready."""
        needed = {*NEEDED, *((WORKER, number) for number in range(self._workers.moves.wanted))}
        at_work = {(member.stage, member.number) for member in self.living(now) if self.has(member)}
        return sorted(f"{name} {number}" for name, number in needed - at_work)

    def has(self, member: Member) -> bool:
        """Tells whether a process does its work."""
        up = member.stage != WORKER or self._workers.up.get(member.number) == member.generation
        return up and member.applied == self._version and not member.fault
