"""Makes files with room for clients' configurations before anything is changed: no private key must be lost afterwards."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from stagewire_cli.failures import Failed

_ROOM: Final = 8192
"""Bytes that a client's configuration may have."""
NEW_KEYS: Final = "; the change holds, and a private key is lost: `stagewire peer rotate` makes another"


@contextmanager
def made(paths: Iterable[Path | None], mend: str = NEW_KEYS) -> Iterator[list[IO[str]]]:
    """Makes new files for root alone; removes them if the block raises. Raises Failed; an existing file stays.

    `mend` says what to do if a file can't be written after the block.
    """
    opened: list[tuple[Path, IO[str]]] = []
    try:
        for path in paths:
            if path is not None:
                opened.append((path, _new(path)))  # noqa: PERF401 - a later file may fail
        yield [file for _, file in opened]
        for path, file in opened:
            _finish(path, file, mend)
    except BaseException as error:
        for path, file in opened:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):  # a configuration had more than _ROOM
            raise Failed(f"--output: {error.strerror}{mend}") from None
        raise


def _new(path: Path) -> IO[str]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _ROOM)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
    except FileExistsError:
        raise Failed(f"{path} exists already, and stays as it is: give another name; nothing is changed") from None
    except (FileNotFoundError, NotADirectoryError):
        raise Failed(f"{path}: there is no folder {path.parent}: make it first; nothing is changed") from None
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}; nothing is changed") from None
    return os.fdopen(descriptor, "w")


def _finish(path: Path, file: IO[str], mend: str) -> None:
    try:
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        file.close()
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}{mend}") from None


@contextmanager
def made_for_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Makes a new file for root alone, which is on the disk afterwards; removes it if that fails. Raises Failed."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Failed(f"{path} exists already, and stays as it is: give another name; nothing is changed") from None
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}; nothing is changed") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise Failed(f"{path}: {error.strerror}; nothing of it is written") from None
        raise
