"""Attaches classic BPF programs to sockets (linux/filter.h, socket(7))."""

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final

SO_ATTACH_FILTER: Final = 26
SO_ATTACH_REUSEPORT_CBPF: Final = 51
NETWORK_HEADER: Final = 0xFFF00000
"""Added to an offset from the network header (SKF_NET_OFF)."""

LOAD_WORD: Final = 0x20
LOAD_HALF: Final = 0x28
LOAD_BYTE: Final = 0x30
LOAD_HALF_INDEXED: Final = 0x48
LOAD_LENGTH: Final = 0x80
LOAD_SLOT_AS_INDEX: Final = 0x61
STORE_SLOT: Final = 0x02
TO_INDEX: Final = 0x07
IF_EQUAL: Final = 0x15
IF_AT_LEAST: Final = 0x35
AND: Final = 0x54
OR_INDEX: Final = 0x4C
ADD: Final = 0x04
ADD_INDEX: Final = 0x0C
MULTIPLY: Final = 0x24
SHIFT_LEFT: Final = 0x64
SHIFT_RIGHT: Final = 0x74
RETURN: Final = 0x06
RETURN_VALUE: Final = 0x16

Step = tuple[int, int, int, int]
"""(code, steps to skip if true, steps to skip if false, constant)."""
Program = Sequence[Step]


def attach(opened: socket.socket, option: int, program: Program) -> None:
    """Attaches a program by one of the SO_ATTACH options. Raises OSError."""
    packed = b"".join(struct.pack("=HBBI", *step) for step in program)
    loaded = ctypes.create_string_buffer(packed)  # the kernel reads it during the call alone
    opened.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(program), ctypes.addressof(loaded)))
