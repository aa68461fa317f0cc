"""Has a worker copy the packets of one of its peers into a pipe, by a Unix socket of packets: `device/capture.<n>`.

    command -> worker   Order      once, with the writing end of a pipe attached (SCM_RIGHTS)
    worker -> command   Progress   each second, and a last one that says why the capture ends

The worker listens to root alone. It never waits for the pipe's reader: what finds no room is missed, and counted. The
capture ends with the connection.
"""

from dataclasses import dataclass
from typing import Final

from stagewire.control.codec import Codec

VERSION: Final = 2
MAX_MESSAGE: Final = 4096
MAX_VALUES: Final = 64
"""Hosts, ports or protocols of a filter."""
NOT_HERE: Final = "the peer is not at home in this worker"
"""Ends a capture whose peer has moved to another worker."""


@dataclass(frozen=True, slots=True)
class Order:
    """Orders a capture of one peer's packets in clear.

    `whole` takes payloads as well as headers. `hosts` are packed addresses. `most` is in bytes of the file, `seconds` is how
    long it may go on. `by` names the user, and `of` the peer as the log shows it.
    """

    public_key: bytes
    whole: bool
    hosts: tuple[bytes, ...]
    ports: tuple[int, ...]
    protocols: tuple[int, ...]
    most: int
    seconds: float
    by: str
    of: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts the packets and bytes written so far, and packets that were missed. `ended` says why it is over; else empty."""

    packets: int
    size: int
    missed: int
    ended: str


TO_WORKER: Final[Codec[Order]] = Codec(VERSION, [Order])
FROM_WORKER: Final[Codec[Progress]] = Codec(VERSION, [Progress])
