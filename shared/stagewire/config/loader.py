"""Opens a configuration file without harm, and judges whether it may hold a private key."""

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagewire import files
from stagewire.config.mistakes import ConfigError, Mistake
from stagewire.environment import valid_interface_name

if TYPE_CHECKING:
    from stagewire.config.model import InterfaceConfig

MAX_SIZE: Final = 32 * 1024 * 1024
"""Bytes: room for some 170,000 peers."""

_OTHERS_CAN_READ: Final = stat.S_IRGRP | stat.S_IROTH


def interface_name(path: Path) -> str:
    """Returns the interface that a file is for: its name without `.conf`. Raises ConfigError for another name."""
    name = path.name.removesuffix(".conf")
    if name == path.name or not valid_interface_name(name):
        message = "the file must be named after its interface: 1 to 15 of a-z A-Z 0-9 _ = + . - and then .conf"
        raise _refusal(path, message)
    return name


def load(path: Path, *, strict: bool = False) -> "InterfaceConfig":
    """Reads a configuration file. Raises ConfigError: one mistake about the file itself, else as `parse`.

    Follows symbolic links. Reads only a regular file of at most MAX_SIZE; a FIFO can't make the reader wait. Refuses a
    file that everybody may write or replace, because root runs its commands. Warns of a file that others may read, or
    that isn't root's; strictly, that is a mistake.
    """
    text, warnings = _text(path)
    try:
        found = parse_text(text, path, strict=strict)
    except ConfigError as error:
        raise ConfigError((*(warnings if strict else ()), *error.mistakes)) from None
    if warnings and strict:
        raise ConfigError(warnings)
    return replace(found, warnings=(*warnings, *found.warnings)) if warnings else found


def load_text(path: Path) -> str:
    """Reads a configuration file as it stands. Raises ConfigError when `load` would refuse the file unread."""
    return _text(path)[0]


def parse_text(text: str, path: Path, *, strict: bool = False) -> "InterfaceConfig":
    """Parses the text of a file. Raises ConfigError as `parse`."""
    from stagewire.config.lookups import of_this_host
    from stagewire.config.parser import parse

    return parse(text, printable(path), strict=strict, lookups=of_this_host())


def _text(path: Path) -> tuple[str, list[Mistake]]:
    try:
        data, warnings = _read(path)
    except (OSError, ValueError) as error:
        raise _refusal(path, _cannot_read(error)) from None
    return data.decode("utf-8", "surrogateescape"), warnings


def _read(path: Path) -> tuple[bytes, list[Mistake]]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        warnings = _check_file(os.fstat(descriptor), path)
        # The link's own folder counts as much as its target's.
        for folder in {path.absolute().parent, path.resolve().parent}:
            _check_folder(folder, path)
        data = files.read_open(descriptor, MAX_SIZE + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_SIZE:
        raise _refusal(path, f"is larger than {MAX_SIZE // 2**20} MiB, which no configuration is")
    return data, warnings


def _check_file(found: os.stat_result, path: Path) -> list[Mistake]:
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(path, f"is {_kind(found.st_mode)}: name a regular file")
    if found.st_mode & stat.S_IWOTH:
        raise _refusal(path, "can be written by everyone, and its commands run as root: chmod 600 it")
    warnings = []
    if found.st_uid not in (0, os.geteuid()):
        warnings.append(f"belongs to user {found.st_uid}, who can change what root runs: chown root it")
    can = []
    if found.st_mode & _OTHERS_CAN_READ:
        can.append("read")
    if found.st_mode & stat.S_IWGRP:
        can.append("written")
    if can:
        warnings.append(f"can be {' and '.join(can)} by others, and may hold a private key: chmod 600 it")
    return [Mistake(printable(path), None, message) for message in warnings]


def _check_folder(folder: Path, path: Path) -> None:
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise _refusal(path, f"lies where anyone could replace it: chmod o-w {printable(folder)}")


def _refusal(path: Path, message: str) -> ConfigError:
    return ConfigError([Mistake(printable(path), None, message)])


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return name
    return "something else"


def _cannot_read(error: OSError | ValueError) -> str:
    match error:
        case FileNotFoundError():
            return "does not exist: write it, or name another"
        case PermissionError():
            return "may not be read by this user: run as root, or as the file's owner"
        case OSError():
            return f"can't be read: {error.strerror}"
        case _:
            return "is no file's name"


def printable(path: Path) -> str:
    """Shows the path on one line, whatever bytes are in it."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
