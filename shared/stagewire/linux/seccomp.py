"""Makes and loads filters of system calls (seccomp(2)): a process may make the listed calls, and any other call kills it.

A filter is a program of the kernel's classic BPF (linux/filter.h). It knows numbers of system calls and arguments, but reads
no memory behind a pointer. It first compares the architecture: each has its own numbers.
"""

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from stagewire.linux.system_calls import NUMBERS

KILL: Final = 0x80000000
"""Ends the whole process by SIGSYS."""
ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_MACHINES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h, in the order of `system_calls.NUMBERS`."""
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1
_AS_FAST_AS_BEFORE: Final = 4
"""SECCOMP_FILTER_FLAG_SPEC_ALLOW: before Linux 5.16, a filter slows the whole process down without it."""
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in the kernel's seccomp_data."""
_ALL_BITS: Final = 0xFFFFFFFF
_FARTHEST: Final = 255
"""Steps that a jump can skip."""
_Step = tuple[int, int, int, int]
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Argument:
    """Demands that an argument, or its bits under `mask`, is one of `values`. `high` reads bits 32 to 63."""

    index: int
    values: tuple[int, ...]
    mask: int = _ALL_BITS
    high: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """Takes the action `met` if all demands of one of the `ways` are met. Otherwise `action` follows."""

    ways: tuple[tuple[Argument, ...], ...] = ((),)
    action: int = KILL
    met: int = ALLOW


ANY: Final = Call()
Calls = Mapping[str, Call]


def fails_with(error: int) -> int:
    """Returns the action that makes a system call fail with an error, such as errno.EACCES."""
    return _ERRNO | error


def program(calls: Calls, machine: str = os.uname().machine) -> bytes:
    """Returns the filter that allows `calls`. Raises OSError on an unknown architecture."""
    if machine not in _MACHINES:
        raise OSError(0, f"no list of system calls for {machine}")
    column = list(_MACHINES).index(machine)
    steps: list[_Step] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _MACHINES[machine]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for name, call in calls.items():
        number = NUMBERS[name][column]
        if number is not None:
            block = list(_block(call))
            if len(block) > _FARTHEST:
                raise ValueError(f"the rules for {name} are too long")
            steps += [(_EQUAL, 0, len(block), number), *block]
    steps.append((_RETURN, 0, 0, KILL))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _block(call: Call) -> Iterator[_Step]:
    """Yields the steps that judge the arguments of a call, and return."""
    for way in call.ways:
        conditions = [list(_condition(argument)) for argument in way]
        length = sum(map(len, conditions)) + 1
        for condition in conditions:
            length -= len(condition)
            yield from condition[:-1]
            code, met, _, value = condition[-1]
            yield code, met, length, value  # to the next way
        yield _RETURN, 0, 0, call.met
        if not way:
            return
    yield _RETURN, 0, 0, call.action


def _condition(argument: Argument) -> Iterator[_Step]:
    """Yields steps that go on behind the last one if the demand is met. The last one jumps farther if it is not."""
    yield _LOAD, 0, 0, _ARGUMENTS + 8 * argument.index + 4 * argument.high  # both architectures are little-endian
    if argument.mask != _ALL_BITS:
        yield _AND, 0, 0, argument.mask
    *others, last = argument.values
    for at, value in enumerate(others):
        yield _EQUAL, len(others) - at, 0, value
    yield _EQUAL, 0, 0, last


def load(filter_program: bytes) -> None:
    """Puts all threads of this process under a filter, for good. Raises OSError.

    The process must have given up new privileges before.
    """
    kept = ctypes.create_string_buffer(filter_program)
    pointer = struct.pack("@HP", len(filter_program) // 8, ctypes.addressof(kept))
    number = _SECCOMP[os.uname().machine]
    for flags in (_ALL_THREADS | _AS_FAST_AS_BEFORE, _ALL_THREADS):  # the second for Linux before 4.17
        done = _libc.syscall(number, _SET_MODE_FILTER, flags, pointer)
        if done == 0:
            return
    raise OSError(ctypes.get_errno(), "system calls cannot be filtered" if done < 0 else f"thread {done} has a filter")
