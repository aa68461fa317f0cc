"""Searches the memory of a process for keys, as root."""

import os
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

PIECE: Final = 1 << 20
LONGEST: Final = 64
"""Bytes of a key in hex."""


def forms(key: bytes) -> tuple[bytes, ...]:
    """A key as bytes, in hex and in base64, of which the last group differs with what follows."""
    return key, key.hex().encode(), b64encode(key)[:42]


def names_in(data: bytes, keys: Mapping[str, bytes]) -> set[str]:
    return {name for name, key in keys.items() if any(form in data for form in forms(key))}


def in_memory(pid: int, keys: Mapping[str, bytes]) -> set[str]:
    """The keys in all that a process can write or has written: heap, stacks, and shared memory."""
    found = set[str]()
    with suppress(OSError), open(f"/proc/{pid}/mem", "rb", 0) as memory:  # noqa: PTH123 - unbuffered
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            region = re.match(r"([0-9a-f]+)-([0-9a-f]+) (....)", line)
            assert region is not None
            start, end = int(region[1], 16), int(region[2], 16)
            if region[3][:2] == "rw":
                found |= _in_region(memory.fileno(), start, end, keys)
    return found


def _in_region(memory: int, start: int, end: int, keys: Mapping[str, bytes]) -> set[str]:
    found = set[str]()
    for at in range(start, end, PIECE):
        with suppress(OSError):
            found |= names_in(os.pread(memory, min(PIECE + LONGEST, end - at), at), keys)
    return found


def resident(pid: int, beginning: str) -> dict[str, int]:
    """How many bytes of each file whose path begins so a process has mapped and in memory, by the rest of the path."""
    found: dict[str, int] = {}
    name = None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)", line):
            path = mapping[1].removesuffix(" (deleted)")
            name = path.removeprefix(beginning) if path.startswith(beginning) else None
        elif name is not None and (size := re.match(r"Rss: +(\d+) kB", line)):
            found[name] = found.get(name, 0) + int(size[1]) * 1024
    return found
