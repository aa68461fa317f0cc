"""Finds the numbers of this host's names: of routing tables, as ip(8) reads them, and of services."""

import socket
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from stagewire.config.tolerant import BUILT_IN, Lookups

_FOLDERS: Final = (Path("/etc/iproute2"), Path("/usr/share/iproute2"), Path("/usr/lib/iproute2"))


def of_this_host(folders: Iterable[Path] = _FOLDERS) -> Lookups:
    """Returns look-ups that read the files of the first folder that has any, at each question."""

    def table(name: str) -> int | None:
        known = BUILT_IN.table(name)
        return known if known is not None else _tables(folders).get(name)

    return Lookups(table, _service)


def _tables(folders: Iterable[Path]) -> dict[str, int]:
    for folder in folders:
        if found := dict(_named(chain([folder / "rt_tables"], sorted(folder.glob("rt_tables.d/*.conf"))))):
            return found
    return {}


def _named(files: Iterable[Path]) -> Iterator[tuple[str, int]]:
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            match line.partition("#")[0].split():
                case [number, name, *_] if (value := _number(number)) is not None:
                    yield name, value


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _service(name: str) -> int | None:
    try:
        return socket.getservbyname(name, "udp")
    except (OSError, UnicodeError):
        return None
