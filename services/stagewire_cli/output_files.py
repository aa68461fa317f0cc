"""Makes new files, each as a whole or not at all. Clients' configurations get room before anything is changed.

A private key must not be lost for want of room, and a killed command leaves no file behind.
"""

import io
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from stagewire.whole_files import WholeFile
from stagewire_cli.failures import Failed

_ROOM: Final = 8192
"""Bytes that a client's configuration may have."""
_FEW: Final = 512
"""Files that may be open at once without more leave."""
NEW_KEYS: Final = "; the change holds, and a private key is lost: `stagewire peer rotate` makes another"
_UNCHANGED: Final = "; nothing is changed"


@contextmanager
def made(paths: Iterable[Path | None], mend: str = NEW_KEYS) -> Iterator[list[IO[str]]]:
    """Makes new files for root alone, none if the block raises. Raises Failed; an existing file stays.

    `mend` says what to do if a file can't be written after the block.
    """
    wanted = [path for path in paths if path is not None]
    with ExitStack() as opened:
        if len(wanted) > _FEW:
            _raise_limit()
        new = [opened.enter_context(_new(path, _ROOM)) for path in wanted]
        texts = [io.StringIO() for _ in new]
        yield list(texts)
        failures = [failure for each, text in zip(new, texts, strict=True) if (failure := _failure(each, text))]
        if failures:
            more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
            raise Failed(f"{failures[0]}{more}{mend}")


def _failure(file: WholeFile, text: io.StringIO) -> str:
    """Writes a file; returns why that has failed, or nothing."""
    try:
        data = text.getvalue().encode("utf-8", "surrogateescape")
        file.write(data)
        os.ftruncate(file.descriptor, len(data))
        file.appear()
    except OSError as error:
        return f"{file.path}: {error.strerror}"
    return ""


def _new(path: Path, room: int) -> WholeFile:
    """Opens a file with room on the disk. Raises Failed."""
    if path.is_dir():
        raise Failed(f"{path} is a folder: give the name of a new file in it{_UNCHANGED}")
    if os.path.lexists(path):
        raise Failed(f"{path} exists already, and stays as it is: give another name{_UNCHANGED}")
    try:
        file = WholeFile(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Failed(f"{path}: there is no folder {path.parent}: make it first{_UNCHANGED}") from None
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}{_UNCHANGED}") from None
    try:
        if room:
            os.posix_fallocate(file.descriptor, 0, room)
    except OSError as error:
        file.close()
        raise Failed(f"{path}: {error.strerror}{_UNCHANGED}") from None
    return file


def write(path: Path, data: bytes, owner: tuple[int, int] | None = None) -> None:
    """Writes a new file for root alone, or for `owner` (uid, gid). Raises Failed, and then there is none."""
    with _new(path, 0) as file:
        try:
            file.write(data)
            if owner is not None:
                os.fchown(file.descriptor, *owner)
            file.appear()
        except FileExistsError:
            raise Failed(f"{path} exists already, and stays as it is: give another name{_UNCHANGED}") from None
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}; nothing of it is written") from None


@dataclass(frozen=True, slots=True)
class New:
    """Describes a file to write for root alone, or for `owner` (uid, gid). `over`: it replaces what is there."""

    path: Path
    data: bytes = field(repr=False)
    owner: tuple[int, int] | None = None
    over: bool = False


@contextmanager
def all_of(wanted: Iterable[New]) -> Iterator[None]:
    """Writes files, in this order, and takes all back if the block raises. Raises Failed, and then there is none of them."""
    with ExitStack() as tidy, ExitStack() as opened, ExitStack() as undo:
        path = Path()
        try:
            files = []
            for each in wanted:
                path = each.path
                new = opened.enter_context(WholeFile(path.resolve() if each.over else path))
                new.write(each.data)
                os.fsync(new.descriptor)  # all have their room before the first appears
                if each.owner is not None:
                    os.fchown(new.descriptor, *each.owner)
                files.append((each, new))
            for each, new in files:
                path = each.path
                if each.over:
                    _replace(new, undo, tidy)
                else:
                    new.appear()
                    undo.callback(path.unlink, missing_ok=True)
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}{_UNCHANGED}") from None
        yield
        undo.pop_all()


def _replace(new: WholeFile, undo: ExitStack, tidy: ExitStack) -> None:
    """Puts a file in the place of another, which `undo` puts back, and `tidy` removes. Raises OSError."""
    old = new.path.with_name(f".{new.path.name}.before")
    old.unlink(missing_ok=True)
    os.link(new.path, old)
    try:
        new.replace()
    except OSError:
        old.unlink()
        raise
    undo.callback(old.replace, new.path)
    tidy.callback(old.unlink, missing_ok=True)


def _raise_limit() -> None:
    """Lets this process open as many files as root allows it."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
