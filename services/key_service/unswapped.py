"""Keeps the files with keys in key-service's folder out of the swap: this folder is in a tmpfs as a rule."""

import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.limits import MAX_ACCEPTED
from stagewire.linux import mapped_pages

LOOK_INTERVAL: Final = 1.0
"""s between two looks: no page of a new file is swapped out so soon."""
_MOST: Final = 2 * MAX_ACCEPTED


class Unswapped:
    """Maps every file of the folder. A journal that has grown, or a file in the place of another, is mapped anew."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[tuple[int, int], mmap.mmap | None] = {}
        """By the inode and the size of each file."""

    def look(self) -> None:
        found: dict[tuple[int, int], mmap.mmap | None] = {}
        with suppress(OSError), os.scandir(self._folder) as entries:  # the folder is wiped
            for entry in entries:
                with suppress(OSError):  # gone
                    seen = entry.stat(follow_symlinks=False)
                    known = seen.st_ino, seen.st_size
                    if stat.S_ISREG(seen.st_mode) and seen.st_size:
                        found[known] = self._held.pop(known, None) or _mapped(Path(entry))
        for pages in self._held.values():
            if pages is not None:
                pages.close()
        self._held = found


def _mapped(path: Path) -> mmap.mmap | None:
    descriptor = files.opened(path, _MOST)
    try:
        return mapped_pages.of(descriptor)
    finally:
        os.close(descriptor)
