"""Shows the host a process's own command line and environment after a fork, which otherwise shows its parent's.

A new program has both at the place to which execve(2) copied them. The kernel can be told another place (PR_SET_MM_MAP,
prctl(2)), so that `ps` and /proc/<pid> show there what a new program would show. A library such as setproctitle overwrites
that place instead: its text has one word, and the environment is lost.
"""

import ctypes
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_MM: Final = 35
_PR_SET_MM_MAP: Final = 14
_MAP: Final = struct.Struct("<11QQII")
"""struct prctl_mm_map of linux/prctl.h: eleven addresses, the auxiliary vector (none), its size, a file (none)."""
_NO_FILE: Final = 0xFFFFFFFF
_BEFORE_STAT: Final = 3
"""Number of the first field of /proc/self/stat that follows the name (proc(5))."""
_CODE_AND_STACK: Final = (26, 27, 28)
_DATA_AND_HEAP: Final = (45, 46, 47)
"""Fields of /proc/self/stat: where the code begins and ends, the stack begins; the data begin and end, the heap begins."""
_NAME: Final = 15
"""Letters that a process's name has at most."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sbrk.restype = ctypes.c_void_p
_shown: list[object] = []
"""Memory that the kernel reads; it must stay where it is."""


def show(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Shows these as this process's command line and environment, and its script, the second word, as its name.

    Raises OSError if the kernel can't.
    """
    line = b"".join(os.fsencode(word) + b"\0" for word in words)
    text = b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in variables.items())
    memory = ctypes.create_string_buffer(line + text, len(line) + len(text))
    begin = ctypes.addressof(memory)
    middle, end = begin + len(line), begin + len(line) + len(text)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    code_begin, code_end, stack = (int(fields[each - _BEFORE_STAT]) for each in _CODE_AND_STACK)
    data_begin, data_end, heap = (int(fields[each - _BEFORE_STAT]) for each in _DATA_AND_HEAP)
    told = _MAP.pack(
        code_begin, code_end, data_begin, data_end, heap, _libc.sbrk(0), stack, begin, middle, middle, end, 0, 0, _NO_FILE
    )  # fmt: skip
    if (
        _libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.c_char_p(told), ctypes.c_ulong(len(told)), ctypes.c_ulong(0))
        != 0
    ):
        raise OSError(ctypes.get_errno(), "prctl PR_SET_MM_MAP")
    _shown.append(memory)
    Path("/proc/self/comm").write_text(Path(words[1]).name[:_NAME])
