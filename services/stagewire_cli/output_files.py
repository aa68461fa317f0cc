"""Makes the files for clients' configurations before anything is changed: a private key must not be lost afterwards."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from stagewire_cli.failures import Failed


@contextmanager
def made(paths: Iterable[Path | None]) -> Iterator[list[IO[str]]]:
    """Makes new files for root alone; removes them if the block raises. Raises Failed; an existing file stays."""
    opened: list[tuple[Path, IO[str]]] = []
    try:
        for path in paths:
            if path is not None:
                opened.append((path, _new(path)))  # noqa: PERF401 - a later file may fail
        yield [file for _, file in opened]
        for path, file in opened:
            _finish(path, file)
    except BaseException:
        for path, file in opened:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                path.unlink()
        raise


def _new(path: Path) -> IO[str]:
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w")
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}; nothing is changed") from None


def _finish(path: Path, file: IO[str]) -> None:
    try:
        file.flush()
        os.fsync(file.fileno())
        file.close()
    except OSError as error:
        mend = "the peer is added; `stagewire peer rotate` makes new keys"
        raise Failed(f"{path}: {error.strerror}; {mend}") from None


@contextmanager
def made_for_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Makes a new file for root alone, which is on the disk afterwards; removes it if that fails. Raises Failed."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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
