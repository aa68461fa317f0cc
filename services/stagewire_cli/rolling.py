"""Replaces processes (`stagewire restart`) and changes the number of workers (`stagewire scale`) while traffic flows.

A restart replaces a stage's spares first, because they have the old code in memory. Then it tells each holder to end, and
its spare takes over. The next step waits until key-service says that all is ready, and until a new spare waits.

Scaling starts missing processes. key-service moves the peers, and ends workers without peers. Then the surplus processes,
which are spares by now, are taken away.
"""

import signal
import time
from collections.abc import Callable
from typing import TypeVar

from stagewire.control import query
from stagewire.environment import Environment
from stagewire.process import signals, slots
from stagewire_cli.failures import Failed, NotUp
from stagewire_cli.supervision import WORKERS_GROUP, Process, Supervision

STEP_WITHIN = 20.0
"""s that a step may take."""
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.1
"""s between two questions: the pauses grow, because questions cost processor time beside traffic."""

T = TypeVar("T")


def restart(environment: Environment, stages: tuple[str, ...], tell: Callable[[str], None]) -> None:
    """Replaces every process of some stages. Raises Failed at the first step that takes too long."""
    if not slots.held(environment.run):
        raise NotUp(environment.interface)
    supervision = Supervision(environment)
    if not supervision.is_there():
        raise Failed(supervision.gone)
    if set(stages) != {"key"}:
        # A stage that isn't ready may be the reason to restart; but only key-service can say which stages are ready.
        _wait(lambda: _ready(environment) is not None, "key-service to answer; `stagewire restart key` replaces it")
    for stage in stages:
        has_spares = _renew_spares(environment, stage, wanted=supervision.spares() > 0)
        for number in sorted(number for name, number in slots.held(environment.run) if name == stage):
            began = time.monotonic()
            old, new = _replace(environment, stage, number)
            label = f"{stage}-service" + (f" {number}" if stage == "device" else "")
            tell(f"{label}: {old} -> {new}, ready after {time.monotonic() - began:.2f} s")
            if has_spares:
                _wait(lambda: waiting(environment, stage), f"a new spare of {label}")  # noqa: B023 - called at once


def scale(environment: Environment, workers: int) -> None:
    """Changes the number of workers; returns when every peer has its home worker. Raises Failed."""
    supervision = Supervision(environment)
    if not slots.held(environment.run):
        raise NotUp(environment.interface)
    if not supervision.is_there():
        raise Failed(supervision.gone)
    if not _workers(supervision):
        raise Failed("its supervisord doesn't answer, so no worker can start; `stagewire down` and `up` start another")
    count, before = workers + supervision.spares(), len(_workers(supervision))
    supervision.add(WORKERS_GROUP, count)
    answer = query.scale(environment, workers)
    if answer is None:
        raise Failed("key-service doesn't answer; `stagewire status` says why")
    if answer.error:
        _take_away_surplus(environment, supervision, before)
        raise Failed(answer.error)
    moved = f"{workers} workers to be at work and the peers to have moved"
    _wait(lambda: _settled(environment, workers), moved)
    _take_away_surplus(environment, supervision, count)


def _take_away_surplus(environment: Environment, supervision: Supervision, count: int) -> None:
    all_workers = _workers(supervision)
    at_work = slots.held(environment.run).values()
    idle = sorted((each for each in all_workers if each.pid not in at_work), key=lambda each: each.name, reverse=True)
    names = {process.name for process in idle[: max(0, len(all_workers) - count)]}

    def gone() -> bool:
        left = [each for each in _workers(supervision) if each.name in names]
        # At any moment supervisord may restart a worker that key-service has ended, so each pass tries again.
        for process in left:
            if not supervision.drop(process) and process.state != "STOPPING":
                supervision.stop(process)
        return not left

    _wait(gone, "workers that are not needed to end")


def _workers(supervision: Supervision) -> list[Process]:
    return [process for process in supervision.processes() or [] if process.group == WORKERS_GROUP]


def _settled(environment: Environment, workers: int) -> bool:
    answer = query.key_service(environment)
    if answer is None or not answer.ready:
        return False
    at_work = {number for stage, number in slots.held(environment.run) if stage == "device"}
    known = answer.workers
    return bool(known.wanted == workers and not known.peers_moving and at_work == {*range(workers)} == {*known.up})


def waiting(environment: Environment, stage: str) -> list[int]:
    """Lists the pids of a stage's spares."""
    return sorted(set(slots.contenders(environment.run, stage)) - set(slots.held(environment.run).values()))


def _renew_spares(environment: Environment, stage: str, *, wanted: bool) -> bool:
    """Replaces a stage's spares; says whether it has any."""
    if wanted:  # supervisord starts spares last
        _wait(lambda: waiting(environment, stage), f"the spares of {stage}-service")
    old = waiting(environment, stage)
    _end(environment, old)
    if old:
        _wait(lambda: set(waiting(environment, stage)) - set(old), f"new spares of {stage}-service")
    return bool(old)


def _replace(environment: Environment, stage: str, number: int) -> tuple[int, int]:
    before = {(name, at) for name, at, _ in _ready(environment) or ()} - {(stage, number)}
    old = slots.held(environment.run)[stage, number]
    _end(environment, [old])

    def replaced() -> int:
        new = slots.held(environment.run).get((stage, number), old)
        ready = _ready(environment) or set()
        others = {(name, at) for name, at, _ in ready}
        return new if new != old and (stage, number, new) in ready and before <= others else 0

    return old, _wait(replaced, f"another {stage}-service {number} to be at work, and all that were ready before")


def _ready(environment: Environment) -> set[tuple[str, int, int]] | None:
    """Returns (stage, number, pid) of all ready processes; None when key-service doesn't answer."""
    answer = query.key_service(environment)
    if answer is None:
        return None
    return {(each.stage, each.number, each.pid) for each in answer.stages if each.ready}


def _end(environment: Environment, pids: list[int]) -> None:
    for pid in pids:
        # A process that SIGSTOP has stopped hears of its end only as it goes on.
        for each in (signal.SIGTERM, signal.SIGCONT):
            signals.send(pid, each, lambda pid: pid in slots.contenders(environment.run))


def _wait(condition: Callable[[], T], what: str) -> T:
    until, pause = time.monotonic() + STEP_WITHIN, _FIRST_PAUSE
    while not (found := condition()):
        if time.monotonic() > until:
            raise Failed(f"waited {STEP_WITHIN:.0f} s for {what}; nothing further is changed")
        time.sleep(pause)
        pause = min(pause * 1.2, _LONGEST_PAUSE)
    return found
