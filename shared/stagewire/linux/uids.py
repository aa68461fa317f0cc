"""Gives each interface a block of uids of its own, and tells which stage has a uid (docs/decisions/009).

    first              the gid of the run folder, which no process outside the interface has
    first + place      each stage
    first + 32, …      the operator's own stages (docs/PIPES.md)
    first + 64 + n     worker n

The file `<interface>.uids` beside the run folder notes the block, which so outlives a wipe of that folder. A block is free
if no account, no process and no other interface has a number of it. An interface that an earlier version started keeps
the numbers that all interfaces shared then, until it is started anew.

A container's root may lack the capabilities for such uids, or its user namespace the uids. Then all programs run as one uid.
"""

import fcntl
import functools
import grp
import os
import pwd
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from stagewire.environment import BLOCK, Environment
from stagewire.stages import FACTS, OWN_STAGES_PLACE, STAGES, UID_RANGES, UIDS, WORKER

ROOT: Final = 0
_FORMER_GROUP: Final = min(facts.former_uid for facts in FACTS.values()) - 1
_TURN: Final = "choice-of-a-uid-block"
"""Name of a file, longer than the name of an interface, which a folder beside it has."""
_FORMER: Final = 0
"""Stands for the numbers of an earlier version where a block's first uid would stand."""
_OWN_UIDS_TAKE: Final = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
}
"""Capabilities for becoming a stage, giving it its folders, looking into them, and ending it."""


class UidsRefused(Exception):  # noqa: N818 - a state of the host, told to the operator
    """Says in one line for the operator why no block of uids is free."""


class Place(NamedTuple):
    """Names a stage and, for a worker, its number."""

    stage: str
    number: int = 0


_started_as: Final = os.geteuid()
_capabilities_at_start: Final = next(
    int(line.split()[1], 16)
    for line in Path("/proc/self/status").read_text().splitlines()
    if line.startswith("CapEff:")
)
_block: int | None = None
"""The first uid of the block in use, or _FORMER; None before `use`."""
_ranges: tuple[tuple[int, int], ...] = UID_RANGES
_own_stages: tuple[str, ...] = ()


def use(environment: Environment, block: int | None) -> None:
    """Makes `uid_of` and the others tell the numbers of a block from now on."""
    global _block, _ranges, _own_stages  # noqa: PLW0603 - a process serves one interface, or one after another
    _block, _ranges = block, environment.uids
    _own_stages = tuple(name for name, _ in environment.own_stages)


def look(environment: Environment) -> None:
    """Uses the block that an interface has, if it has one."""
    noted = _noted(environment)
    use(environment, environment.uid_block if noted is None else noted)


def claim(environment: Environment, *, afresh: bool = False) -> None:
    """Uses the interface's block, and notes it; chooses one if there is none. Raises UidsRefused, OSError.

    `afresh`: none of the interface's processes lives, so its old block must be free as well.
    """
    if _started_as != ROOT:
        return
    noted = _noted(environment)
    block = None if afresh else environment.uid_block if noted is None else noted
    if block is None:
        block = _claim_in_turn(environment, afresh=afresh)
    elif block != noted:
        _make(environment.run.parent)
        _note(environment, str(block))
    use(environment, block)


def _claim_in_turn(environment: Environment, *, afresh: bool) -> int | None:
    with _turn(environment.run.parent):
        noted = _noted(environment)
        block = None if afresh else noted
        if block is None and not afresh and _is_former(environment.run):
            block = _FORMER
        if block is None:
            block = _choose(environment)
        if block not in {None, noted}:
            _note(environment, str(block))
    return block


def variables(environment: Environment) -> dict[str, str]:
    """Returns the variables that make a child process use the same block."""
    found = {BLOCK: str(_block)} if _block else {}
    if environment.uids != UID_RANGES:
        found["STAGEWIRE_UIDS"] = "{}-{}".format(*environment.uids[0])
    if environment.own_stages:
        found["STAGEWIRE_STAGES"] = ",".join(map(":".join, environment.own_stages))
    return found


def give_up(environment: Environment) -> None:
    """Frees the interface's block."""
    with suppress(OSError):
        _file(environment).unlink(missing_ok=True)


# --- whose a uid is ------------------------------------------------------------------------------------------


def uid_of(stage: str, number: int = 0) -> int:
    """Returns the uid of a stage, and of a worker. Our own if we didn't start as root, or all stages share a uid."""
    if _started_as != ROOT or why_one_uid():
        return _started_as
    block = _first()
    if not block:
        return _former_uid(stage)
    if stage in FACTS:
        return block + FACTS[stage].place + (number if stage == WORKER else 0)
    return block + OWN_STAGES_PLACE + _own_stages.index(stage)


def group() -> int:
    """Returns the gid that the interface's stages share, and no other program has."""
    if _started_as != ROOT or why_one_uid():
        return os.getegid()
    return _first() or _former_group()


def are_shared() -> bool:
    """Tells whether a uid says less than the stage and the worker: one uid for all, or the numbers of an earlier version."""
    return _started_as != ROOT or bool(why_one_uid()) or _first() == _FORMER


def may_be(stage: str, uid: int) -> bool:
    """Tells whether a uid is that of a stage, of this interface or of another, in this version or in an earlier one."""
    if uid in {uid_of(stage), _former_uid(stage)}:
        return True
    place = FACTS[stage].place
    last = UIDS - 1 if stage == WORKER else place
    return any(low <= uid <= high and place <= (uid - low) % UIDS <= last for low, high in (*_ranges, *UID_RANGES))


def recognise(stage: str) -> Callable[[int], bool]:
    """Returns `may_be` for one stage. It reads nothing later, in a sandbox, and knows no uid while all stages share one."""
    may_be(stage, ROOT)
    return (lambda _uid: False) if are_shared() else functools.partial(may_be, stage)


def is_any_stages(uid: int) -> bool:
    """Tells whether a uid is that of any stage of any interface."""
    return any(may_be(stage, uid) for stage in STAGES)


def why_shared() -> str:
    """Says why a uid says less than the stage and the worker; empty if it says both."""
    if _started_as != ROOT:
        return ""
    if reason := why_one_uid():
        return f"uids of their own for the services ({reason}): all run as uid {_started_as}"
    if _first() == _FORMER:
        return "uids of its own (an earlier version started it; `stagewire down` and `up` mend that)"
    return ""


@functools.cache
def _lacking() -> str:
    names = [name for name, bit in _OWN_UIDS_TAKE.items() if not _capabilities_at_start >> bit & 1]
    return f"{', '.join(names)} lacking" if names else ""


def why_one_uid() -> str:
    """Says what keeps root from running each stage as a uid of its own; empty if nothing does."""
    if _started_as != ROOT:
        return ""
    if _lacking():
        return _lacking()
    if _first() is None:
        return f"no uid {_ranges[-1][0]} in this user namespace"
    return ""


def _first() -> int | None:
    if _block is not None:
        return _block
    return next(iter(_blocks(_ranges)), None)


@functools.cache
def _blocks(ranges: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Lists the blocks of the first range that our user namespace has."""
    uids, gids = _mapped("uid"), _mapped("gid")
    for low, high in ranges:
        found = tuple(
            first
            for first in range(low, high + 2 - UIDS, UIDS)
            if _has(uids, first, first + UIDS) and _has(gids, first, first + UIDS)
        )
        if found:
            return found
    return ()


def _mapped(kind: str) -> list[tuple[int, int]]:
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    return [(inside, inside + count) for inside, _, count in (map(int, line.split()) for line in lines)]


def _has(mapped: list[tuple[int, int]], first: int, end: int) -> bool:
    return any(begin <= first and end <= until for begin, until in mapped)


# --- an earlier version's ------------------------------------------------------------------------------------


@functools.cache
def _former_uid(stage: str) -> int:
    try:
        return pwd.getpwnam(f"stagewire-{stage}").pw_uid
    except KeyError:
        return FACTS[stage].former_uid if stage in FACTS else -1


@functools.cache
def _former_group() -> int:
    try:
        return pwd.getpwnam("stagewire-key").pw_gid
    except KeyError:
        return _FORMER_GROUP


def _is_former(run: Path) -> bool:
    """Tells whether a run folder has the group of an earlier version, which started the interface."""
    try:
        return run.stat().st_gid == _former_group()
    except OSError:
        return False


# --- the choice ----------------------------------------------------------------------------------------------


def _choose(environment: Environment) -> int | None:
    """Returns a free block; None where there are no such uids. Always the same for an interface, if that is free."""
    if _lacking() or not (blocks := _blocks(environment.uids)):
        return None
    numbers = _numbers_of_accounts() | _numbers_of_processes()
    others = _others(environment)
    start = zlib.crc32(os.fsencode(environment.run)) % len(blocks)
    for first in (*blocks[start:], *blocks[:start]):
        if first not in others and not any(first <= number < first + UIDS for number in numbers):
            return first
    low, high = blocks[0], blocks[-1] + UIDS - 1
    raise UidsRefused(
        f"accounts, processes or other interfaces have each {UIDS} of the uids {low} to {high}: set STAGEWIRE_UIDS to others"
    )


def _numbers_of_accounts() -> set[int]:
    numbers = {account.pw_uid for account in pwd.getpwall()} | {account.pw_gid for account in pwd.getpwall()}
    return numbers | {each.gr_gid for each in grp.getgrall()}


def _numbers_of_processes() -> set[int]:
    found: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            for line in status.read_bytes().splitlines():  # a name in it may be any bytes
                if line.startswith((b"Uid:", b"Gid:")):
                    found.update(map(int, line.split()[1:]))
    return found


def _others(environment: Environment) -> set[int]:
    """Returns the blocks of other interfaces, of which a run folder stands."""
    found: set[int] = set()
    for file in environment.run.parent.glob("*.uids"):
        if file != _file(environment) and file.with_suffix("").exists() and (block := _read(file)):
            found.add(block)
    return found


def _file(environment: Environment) -> Path:
    return environment.run.with_name(f"{environment.interface}.uids")


def _noted(environment: Environment) -> int | None:
    return _read(_file(environment))


def _read(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _note(environment: Environment, text: str) -> None:
    fresh = _file(environment).with_suffix(".uids.new")
    try:
        fresh.write_text(f"{text}\n")
        fresh.replace(_file(environment))
    except OSError:
        if (
            environment.uid_block is None
        ):  # otherwise every process knows the block, and the disk may be full for a while
            raise


def _make(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Lets one process at a time choose a block, by a lock on a file that exists only meanwhile.

    Root alone can open the file. Any user could lock the folder, and so stop every start.
    """
    _make(folder)
    path = folder / _TURN
    descriptor = _locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(path.lstat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # the process that had the turn has removed this file
