"""Keeps pages of a file out of the swap, such as those of a memory file or of a file in a tmpfs.

A process that has locked its memory (`sandbox.prepare`) locks each page that it maps as well.
"""

import mmap
import os
from contextlib import suppress
from typing import Final

_POPULATE_READ: Final = 22
"""Advice of madvise(2) since Linux 5.14: map these pages as a read would. A file that shrinks meanwhile gives an error; a
read would end the process."""


def of(descriptor: int) -> mmap.mmap | None:
    """Maps all pages that a file has now; they stay mapped until `close`. Returns None where the kernel can't."""
    with suppress(OSError, ValueError):  # an empty file has no pages
        pages = mmap.mmap(descriptor, os.fstat(descriptor).st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        with suppress(OSError):
            pages.madvise(_POPULATE_READ)
            return pages
        pages.close()
    return None
