"""Fences a process in by Landlock (landlock(7)): it reaches named files and TCP ports only, and signals only itself.

Each version of the kernel's interface (ABI) can hold back more. A fence holds back all that the running kernel can.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION: Final = 1
_PATH_BENEATH, _NET_PORT = 1, 2
EXECUTE, _WRITE_FILE, READ_FILE, READ_DIR, _REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_REGULAR, MAKE_SOCKET, _TRUNCATE = 1 << 8, 1 << 9, 1 << 14
READ: Final = READ_FILE | READ_DIR
WRITE: Final = READ | _WRITE_FILE | _TRUNCATE | REMOVE_FILE | _MAKE_REGULAR | MAKE_SOCKET
CHANGE: Final = READ | _WRITE_FILE | _TRUNCATE
_OF_FILES: Final = EXECUTE | _WRITE_FILE | READ_FILE | _TRUNCATE
"""Rights that a rule for a file can give; others are for folders."""
_FILES_SINCE: Final = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
"""Rights on files by the ABI that brought them."""
_BIND, _CONNECT = 1, 2
_NETWORK_SINCE: Final = 4
_SCOPES_SINCE: Final = 6
_SCOPES: Final = 3
"""Abstract Unix sockets and signals."""
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Rule:
    """Gives rights on a file, or on all that lies beneath a folder."""

    path: Path
    rights: int


def abi() -> int:
    """Returns the version of the kernel's interface; 0 without Landlock."""
    found: int = _libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)
    return max(0, found)


def fence_in(rules: Iterable[Rule], connect: Iterable[int] = ()) -> None:
    """Leaves this thread, and those that it starts, only `rules` and TCP connections to the ports `connect`.

    Does nothing on a kernel without Landlock. A rule for an absent file counts for nothing. Raises OSError.
    """
    version = abi()
    if not version:
        return
    files = sum(rights for since, rights in _FILES_SINCE if version >= since)
    attributes = struct.pack("=Q", files)
    if version >= _NETWORK_SINCE:
        attributes += struct.pack("=Q", _BIND | _CONNECT)
    if version >= _SCOPES_SINCE:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _called(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for rule in rules:
            # Without a rule, what lies beyond a folder that we may not enter stays closed.
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                _add(ruleset, rule, files)
        if version >= _NETWORK_SINCE:
            for port in connect:
                _called(_ADD_RULE, ruleset, _NET_PORT, struct.pack("=QQ", _CONNECT, port), 0)
        _called(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _add(ruleset: int, rule: Rule, known: int) -> None:
    opened = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    try:
        is_folder = stat.S_ISDIR(os.fstat(opened).st_mode)
        rights = rule.rights & known & (known if is_folder else _OF_FILES)
        _called(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, opened), 0)
    finally:
        os.close(opened)


def _called(number: int, *arguments: int | bytes) -> int:
    done: int = _libc.syscall(number, *arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), "Landlock refuses")
    return done
