"""`stagewire restart`: other processes for those at work, one after another; `stagewire scale`: more workers or fewer. Both
while traffic flows.

Restarting, for each stage: the spares first, because they have the old code in memory; then each that is at work is told
to end, its spare takes over, and the next step waits until key-service says that all is ready and a new spare waits.

Scaling: processes that lack are started, key-service moves the peers and sends workers home that nobody is at home in any
more, and when all is quiet the processes that are too many are taken away; they are spares by then.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from stagewire.environment import Environment
from stagewire.ipc import slots
from stagewire_cli import processes, query
from stagewire_cli.bring_up import Failed
from stagewire_cli.supervision import WORKERS_GROUP, Process, Supervision

STAGES = ("status", "key", "conn", "tun", "device")
"""In this order, those first that packets don't pass through."""
STEP_WITHIN = 20.0
"""s for another process to be at work, or to wait."""
_POLL = 0.01
_POLL_SUPERVISORD = 0.05
"""s; it takes a millisecond of its and of ours to be asked, and there is traffic."""

T = TypeVar("T")


def restart(environment: Environment, stages: tuple[str, ...], tell: Callable[[str], None]) -> None:
    """Replaces every process of some stages. Raises Failed at the first step that doesn't come about."""
    if not slots.held(environment.run):
        raise Failed(f"{environment.interface} is not up")
    if not any(processes.is_supervisord(processes.parent(pid)) for pid in slots.contenders(environment.run)):
        raise Failed(
            f"its supervisord is gone, and nobody would start others: "
            f"`supervisord -c {Supervision(environment).configuration}` first, or `stagewire down` and `up`"
        )
    if set(stages) != {"key"}:
        # Who isn't ready may be the very reason to restart; but without key-service nobody could say who is.
        _wait(lambda: _ready(environment) is not None, "key-service to answer; `stagewire restart key` replaces it")
    for stage in stages:
        has_spares = _renew_spares(environment, stage)
        for number in sorted(number for name, number in slots.held(environment.run) if name == stage):
            began = time.monotonic()
            old, new = _replace(environment, stage, number)
            label = f"{stage}-service" + (f" {number}" if stage == "device" else "")
            tell(f"{label}: {old} -> {new}, ready after {time.monotonic() - began:.2f} s")
            if has_spares:
                _wait(lambda: waiting(environment, stage), f"a new spare of {label}")  # noqa: B023 - called at once


def scale(environment: Environment, workers: int) -> None:
    """Changes the number of workers; returns when every peer is where it belongs. Raises Failed."""
    supervision = Supervision(environment)
    if not slots.held(environment.run):
        raise Failed(f"{environment.interface} is not up")
    if not _workers(supervision):
        raise Failed(
            "the supervisord that `stagewire up` started is gone or doesn't answer; nobody would start workers"
        )
    pid = supervision.pid()
    spares = Environment.read(processes.variables(pid)).spares if pid is not None else environment.spares
    count, before = workers + spares, len(_workers(supervision))
    supervision.add(WORKERS_GROUP, count)
    answer = query.scale(environment, workers)
    if answer is None:
        raise Failed(f"{environment.interface}: key-service doesn't answer")
    if answer.error:
        _take_away_surplus(environment, supervision, before)
        raise Failed(answer.error)
    moved = f"{workers} workers to be at work and the peers to have moved"
    _wait(lambda: _settled(environment, workers), moved, _POLL_SUPERVISORD)
    _take_away_surplus(environment, supervision, count)


def _take_away_surplus(environment: Environment, supervision: Supervision, count: int) -> None:
    all_workers = _workers(supervision)
    at_work = slots.held(environment.run).values()
    idle = sorted((each for each in all_workers if each.pid not in at_work), key=lambda each: each.name, reverse=True)
    names = {process.name for process in idle[: max(0, len(all_workers) - count)]}

    def gone() -> bool:
        left = [each for each in _workers(supervision) if each.name in names]
        # One that key-service sent home has ended by itself, and may be started again at any moment: it takes another try.
        for process in left:
            if not supervision.drop(process) and process.state != "STOPPING":
                supervision.stop(process)
        return not left

    _wait(gone, "workers that are not needed to end", _POLL_SUPERVISORD)


def _workers(supervision: Supervision) -> list[Process]:
    return [process for process in supervision.processes() or [] if process.group == WORKERS_GROUP]


def _settled(environment: Environment, workers: int) -> bool:
    answer = query.key_service(environment)
    if answer is None or not answer["ready"]:
        return False
    at_work = {number for stage, number in slots.held(environment.run) if stage == "device"}
    known = answer["workers"]
    return bool(
        known["wanted"] == workers and not known["peers_moving"] and at_work == {*range(workers)} == {*known["up"]}
    )


def waiting(environment: Environment, stage: str) -> list[int]:
    """The pids of a stage's spares."""
    return sorted(set(slots.contenders(environment.run, stage)) - set(slots.held(environment.run).values()))


def _renew_spares(environment: Environment, stage: str) -> bool:
    """Says whether there are any."""
    old = waiting(environment, stage)
    _end(old)
    if old:
        _wait(lambda: set(waiting(environment, stage)) - set(old), f"new spares of {stage}-service")
    return bool(old)


def _replace(environment: Environment, stage: str, number: int) -> tuple[int, int]:
    before = {(name, at) for name, at, _ in _ready(environment) or ()} - {(stage, number)}
    old = slots.held(environment.run)[stage, number]
    _end([old])

    def replaced() -> int:
        new = slots.held(environment.run).get((stage, number), old)
        ready = _ready(environment) or set()
        others = {(name, at) for name, at, _ in ready}
        return new if new != old and (stage, number, new) in ready and before <= others else 0

    return old, _wait(replaced, f"another {stage}-service {number} to be at work, and all that were ready before")


def _ready(environment: Environment) -> set[tuple[str, int, int]] | None:
    """(stage, number, pid) of all that are at work; None when key-service doesn't answer. Raises Failed."""
    answer = query.key_service(environment)
    if answer is None:
        return None
    return {(each["stage"], each["number"], each["pid"]) for each in answer["stages"] if each["ready"]}


def _end(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _wait(condition: Callable[[], T], what: str, pause: float = _POLL) -> T:
    until = time.monotonic() + STEP_WITHIN
    while not (found := condition()):
        if time.monotonic() > until:
            raise Failed(f"waited {STEP_WITHIN:.0f} s for {what}; the rest was left as it is")
        time.sleep(pause)
    return found
