"""A configuration file from the disk: which may hold a private key, and how one is opened without harm."""

import os
import stat
from pathlib import Path
from typing import Final

from stagewire.config.model import ConfigError, InterfaceConfig, Mistake
from stagewire.config.parse import parse
from stagewire.environment import valid_interface_name

MAX_SIZE: Final = 32 * 1024 * 1024
"""Bytes. Some 170,000 peers fit."""

_OTHERS_CAN_READ: Final = stat.S_IRGRP | stat.S_IROTH
_OTHERS_CAN_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def interface_name(path: Path) -> str:
    """The interface that a file is for: its name without `.conf`. Raises ConfigError when that names none."""
    name = path.name.removesuffix(".conf")
    if name == path.name or not valid_interface_name(name):
        message = "the file must be named after its interface: 1 to 15 of a-z A-Z 0-9 _ = + . - and then .conf"
        raise _refusal(path, message)
    return name


def load(path: Path) -> InterfaceConfig:
    """Reads a configuration file. Raises ConfigError: one mistake when the file won't do, else as `parse`.

    Symbolic links are followed. Only a regular file of at most MAX_SIZE is read; a FIFO can't make us wait.
    The file must belong to root or to us, and no one else may read it, write it, or put another in its place.
    """
    try:
        data = _read(path)
    except (OSError, ValueError) as error:
        raise _refusal(path, _cannot_read(error)) from None
    return parse(data.decode("utf-8", "surrogateescape"), _printable(path))


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        _check_file(os.fstat(descriptor), path)
        # The link's own folder counts as much as that of the file it leads to.
        for folder in {path.absolute().parent, path.resolve().parent}:
            _check_folder(folder, path)
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_SIZE + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_SIZE:
        raise _refusal(path, f"is larger than {MAX_SIZE // 2**20} MiB, which no configuration is")
    return data


def _check_file(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _refusal(path, f"is {_kind(found.st_mode)}: name a regular file")
    if found.st_uid not in (0, os.geteuid()):
        raise _refusal(path, f"belongs to user {found.st_uid}, who could change it: chown root {_printable(path)}")
    can = []
    if found.st_mode & _OTHERS_CAN_READ:
        can.append("read")
    if found.st_mode & _OTHERS_CAN_WRITE:
        can.append("written")
    if can:
        raise _refusal(path, f"can be {' and '.join(can)} by others: chmod 600 {_printable(path)}")


def _check_folder(folder: Path, path: Path) -> None:
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise _refusal(path, f"lies where anyone could replace it: chmod o-w {_printable(folder)}")


def _refusal(path: Path, message: str) -> ConfigError:
    return ConfigError([Mistake(_printable(path), None, message)])


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


def _printable(path: Path) -> str:
    """The path on one line, whatever bytes are in it."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
