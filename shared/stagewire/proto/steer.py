"""Which worker a datagram is for, by its first bytes alone (`index`): no table, no session."""

from stagewire.proto import constants as c


def worker_of_datagram(datagram: bytes) -> int:
    """The worker that a transport message is for: the low 8 bits of its receiver index."""
    return datagram[4]


def is_transport(datagram: bytes | memoryview) -> bool:
    """Whether this can be a transport message at all: type, reserved bytes and least length."""
    return len(datagram) >= c.TRANSPORT_OVERHEAD and datagram[:4] == b"\x04\0\0\0"


def worker_of_run(data: memoryview, size: int) -> int | None:
    """The worker that a run's datagrams are all for, of `size` bytes each but the last.

    None if one of them can't be a transport message, or they are for several. Hot: 0.7 us for one, 2.5 us for 43.
    """
    length = len(data)
    if length <= size:
        return data[4] if is_transport(data) else None
    if size < c.TRANSPORT_OVERHEAD or 0 < length % size < c.TRANSPORT_OVERHEAD:
        return None
    # A column of bytes at a time: where each message begins, stepping by their size.
    count = (length + size - 1) // size
    for at, expected in enumerate((b"\4", b"\0", b"\0", b"\0", bytes(data[4:5]))):
        if data[at::size].tobytes() != expected * count:
            return None
    return data[4]
