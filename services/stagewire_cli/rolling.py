"""`stagewire restart`: other processes for those at work, one after another, while traffic flows.

For each stage: the spares first, because they have the old code in memory; then each that is at work is told to end, its
spare takes over, and the next step waits until key-service says that all is ready and a new spare waits.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from stagewire.environment import Environment
from stagewire.ipc import slots
from stagewire_cli import query
from stagewire_cli.bring_up import Failed

STAGES = ("status", "key", "conn", "tun", "device")
"""In this order, those first that packets don't pass through."""
STEP_WITHIN = 20.0
"""s for another process to be at work, or to wait."""
_POLL = 0.01

T = TypeVar("T")


def restart(environment: Environment, stages: tuple[str, ...], tell: Callable[[str], None]) -> None:
    """Replaces every process of some stages. Raises Failed at the first step that doesn't come about."""
    if not slots.held(environment.run):
        raise Failed(f"{environment.interface} is not up")
    _wait(lambda: _ready(environment), "all to be ready before anything is restarted")
    for stage in stages:
        _renew_spares(environment, stage)
        for number in sorted(number for name, number in slots.held(environment.run) if name == stage):
            began = time.monotonic()
            old, new = _replace(environment, stage, number)
            label = f"{stage}-service" + (f" {number}" if stage == "device" else "")
            tell(f"{label}: {old} -> {new}, ready after {time.monotonic() - began:.2f} s")
            if environment.spares:
                _wait(lambda: waiting(environment, stage), f"a new spare of {label}")  # noqa: B023 - called at once


def waiting(environment: Environment, stage: str) -> list[int]:
    """The pids of a stage's spares."""
    return sorted(set(slots.contenders(environment.run, stage)) - set(slots.held(environment.run).values()))


def _renew_spares(environment: Environment, stage: str) -> None:
    old = waiting(environment, stage)
    _end(old)
    if old:
        _wait(lambda: set(waiting(environment, stage)) - set(old), f"new spares of {stage}-service")


def _replace(environment: Environment, stage: str, number: int) -> tuple[int, int]:
    old = slots.held(environment.run)[stage, number]
    _end([old])

    def replaced() -> int:
        new = slots.held(environment.run).get((stage, number), old)
        return new if new != old and _ready(environment, stage, number, new) else 0

    return old, _wait(replaced, f"another {stage}-service {number} to be at work")


def _ready(environment: Environment, stage: str = "", number: int = 0, pid: int = 0) -> bool:
    """Whether all are at work, and the one that is named is this process."""
    answer = query.key_service(environment)
    if answer is None or not answer["ready"]:
        return False
    at_work = {(each["stage"], each["number"], each["pid"]) for each in answer["stages"] if each["ready"]}
    return not stage or (stage, number, pid) in at_work


def _end(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _wait(condition: Callable[[], T], what: str) -> T:
    until = time.monotonic() + STEP_WITHIN
    while not (found := condition()):
        if time.monotonic() > until:
            raise Failed(f"waited {STEP_WITHIN:.0f} s for {what}; the rest was left as it is")
        time.sleep(_POLL)
    return found
