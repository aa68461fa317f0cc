"""Makes a start wait for an earlier life of its interface that is ending, and fail beside one that stays."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from stagewire.environment import Environment
from stagewire.process import holders, slots
from stagewire_cli import ending, processes, turn, wg_file
from stagewire_cli.failures import Failed
from stagewire_cli.processes import Found

GOING_WITHIN: Final = 10.0
"""s that an ending life gets before it is killed."""
_LOOKS_AGAIN_FOR: Final = 0.5
"""s before a life counts as staying: a signal to end may still wait for a processor."""
ORPHANS_WITHIN: Final = 1.0
"""s that services without a supervisord may take to end."""
_CLOSED_WITHIN: Final = 0.3
"""s that the kernel may take to close a descriptor that waits in a socket."""
_POLL: Final = 0.01


@contextmanager
def start(environment: Environment, clear: Callable[[Environment], object]) -> Iterator[None]:
    """Takes the turn to start an interface when no earlier life is at work any more. Raises Failed.

    `clear` ends an earlier life and removes all that it made.
    """
    began = time.monotonic()
    while True:
        with turn.take(environment):
            found = processes.find(environment)
            waited = time.monotonic() - began
            stays = found and waited > _LOOKS_AGAIN_FOR and not _goes(environment, found, waited)
            if stays and _lives(found):  # otherwise it has ended since the look
                raise Failed(_already(environment, found))
            if found and (waited > GOING_WITHIN or _is_crashed(environment, found)):
                clear(environment)
                if found := processes.find(environment):
                    raise Failed(ending.complaint(found.keepers | found.supervisords | found.services))
            if not found:
                refuse_anothers_folder(environment)
                yield
                return
        time.sleep(_POLL)


def refuse_anothers_folder(environment: Environment) -> None:
    """Raises Failed if a gateway in another pid namespace has the run folder; none of ours runs."""
    until = time.monotonic() + _CLOSED_WITHIN
    while slots.are_held(environment.run):
        if time.monotonic() > until:
            raise Failed(
                f"a gateway in another container uses {environment.run}; set STAGEWIRE_RUN_DIR to another folder"
            )
        time.sleep(_POLL)


def refuse_anothers_device(environment: Environment) -> None:
    """Raises Failed if another gateway has the device: a process holds it, and none of ours runs."""
    from stagewire.linux import links  # slow to import, which `down` avoids
    from stagewire.linux.netlink import Netlink

    name, until = environment.interface, time.monotonic() + _CLOSED_WITHIN
    with suppress(OSError), Netlink() as kernel:
        while (link := links.find(kernel, name)) is not None and link.attached:
            if time.monotonic() > until:
                raise Failed(f"interface {name} is in use by another program; stop it or choose another name")
            time.sleep(_POLL)


def _lives(found: Found) -> bool:
    return all(processes.lives(pid) for pid in found.keepers | found.supervisords | found.services)


def _is_told(pid: int) -> bool:
    """Says whether a signal to end waits for a process that hasn't got a processor yet."""
    waiting = int(holders.status(pid).get("ShdPnd", "0"), 16)
    return any(waiting >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL))


def _goes(environment: Environment, found: Found, waited: float) -> bool:
    """Says whether an earlier life is ending, or has crashed."""
    if found.keepers:
        return found.keepers <= _going(environment) or not _keeps(environment)
    if _is_crashed(environment, found):
        return True
    if found.supervisords:
        return found.supervisords <= _going(environment)
    return waited < ORPHANS_WITHIN


def _is_crashed(environment: Environment, found: Found) -> bool:
    """Says whether a bare interface has lost its keeper, without which it can't go on for long."""
    told = [processes.variables(pid).get("STAGEWIRE_MANAGED") for pid in found.supervisords or found.services]
    is_bare = all(managed == "0" for managed in told)
    return is_bare and not found.keepers and not environment.run.joinpath("config").is_symlink()


def _going(environment: Environment) -> set[int]:
    found = processes.find(environment)
    told = {pid for pid in found.keepers | found.supervisords if _is_told(pid)}
    return told | {*holders.present(environment.run, holders.GOING)}


def _keeps(environment: Environment) -> bool:
    """Says whether a bare interface has its device and its socket; its keeper may not have noticed their end yet."""
    from stagewire.linux import tun  # slow to import, and seldom needed

    if not wg_file.path_of(environment).exists():
        return False
    try:
        device = tun.borrow(environment.run / tun.LENDER, within=0.5)
    except tun.TunUnavailable:
        return True  # the keeper is too busy to lend the device, so the interface isn't over
    try:
        return tun.is_attached(device)
    finally:
        os.close(device)


def _already(environment: Environment, found: Found) -> str:
    name = environment.interface
    if found.keepers or found.supervisords:
        return f"{name} is up already; `stagewire down {name}` takes it down"
    if other := holders.present(environment.run, holders.OTHER_SUPERVISORD):
        return f"{name} has a supervisord of its own (pid {other[0]}); stop that first"
    pids = ", ".join(map(str, sorted(found.services)))
    return f"{name} still has services of an earlier life (pids {pids}); `stagewire down {name}` ends them"
