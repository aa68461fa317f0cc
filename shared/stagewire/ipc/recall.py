"""What key-service has said to a stage, kept for the one that takes over: it goes on with it at once, until it is told anew.

The messages stand as they came in a memory file, whose descriptor is left to the spares (`bequest`). One that was killed
while it was told leaves a snapshot without an end, which is as good as none; so is one that was told more than fits.
"""

import os
import struct
from typing import Final

NAME: Final = "said"
"""What its descriptor is called when it is handed on."""
LIMIT: Final = 128 * 1024
"""Bytes; some 2,000 peers. To read so much takes longer than to be told, and more would be a second copy of it all."""
_LENGTH: Final = struct.Struct("=I")


class Said:
    """The memory file. `inherited` is the descriptor of the one before us, which is ours from here on."""

    def __init__(self, inherited: int | None = None) -> None:
        self.descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC) if inherited is None else inherited
        self._size = os.fstat(self.descriptor).st_size

    def begin(self) -> None:
        """All is said anew."""
        os.ftruncate(self.descriptor, 0)
        self._size = 0

    def add(self, message: bytes) -> None:
        """One more message; the file stays empty, once it was too much."""
        end = self._size + _LENGTH.size + len(message)
        if end > LIMIT:
            os.ftruncate(self.descriptor, 0)
            end = LIMIT
        else:
            os.pwrite(self.descriptor, _LENGTH.pack(len(message)) + message, self._size)
        self._size = end

    def messages(self) -> list[bytes]:
        """All that are whole."""
        data = os.pread(self.descriptor, LIMIT, 0)
        found, offset = [], 0
        while offset + _LENGTH.size <= len(data):
            [length] = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size + length
            if offset > len(data):
                break
            found.append(data[offset - length : offset])
        return found
