"""Sorts an interface's datagrams in the kernel: handshakes get queues of their own, beside that of transport messages.

So no flood of handshakes fills the queue that transport messages wait in. Nine more sockets share the port (SO_REUSEPORT,
socket(7)). A program in the kernel chooses the socket of each datagram:

    0        transport messages
    1 to 8   initiations without mac2, and what is no message: by a secret hash of the source's address and port
    9        initiations with mac2, responses, cookie replies

A flood from one source fills one of the eight, and a flood from many sources leaves the last one alone. The program sorts
and judges nothing: conn-service takes any message from any socket.

Another program that asks for the port is refused as ever. The first socket is bound without SO_REUSEPORT, so it finds a
port that is taken; later the kernel lets only sockets of our uid join, and ours all begin by such a first socket.
"""

import secrets
import socket
from typing import Final

from stagewire.control.socket_door import HANDSHAKE_QUEUES
from stagewire.linux import socket_filter as bpf
from stagewire.proto.constants import INITIATION_LENGTH, MAC_LENGTH, TRANSPORT_OVERHEAD

RECEIVE_BUFFER: Final = 1 << 19
"""Bytes that the kernel doubles: some 1,000 handshake messages. More would only wait longer."""
_HASH_BITS: Final = (HANDSHAKE_QUEUES - 1).bit_length() - 1
"""Bits of the hash, which choose one of the eight."""
_PROVEN: Final = HANDSHAKE_QUEUES
_TYPES: Final = {kind: kind << 24 for kind in (1, 2, 3, 4)}
"""A type and its reserved bytes as BPF loads them, in network byte order."""


def begin(first: socket.socket) -> None:
    """Lets other sockets join a bound one. Raises OSError."""
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def join(opened: socket.socket, first: socket.socket) -> None:
    """Binds a further socket to the same port. Raises OSError."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(("", first.getsockname()[1]))


def sort(first: socket.socket) -> None:
    """Sorts datagrams from now on, once all sockets have joined. Raises OSError."""
    program = _program(_source4() if first.family == socket.AF_INET else _source6())
    bpf.attach(first, bpf.SO_ATTACH_REUSEPORT_CBPF, program)


def _program(source: list[bpf.Step]) -> list[bpf.Step]:
    """Returns the program that chooses a socket. The kernel takes 0 for a datagram that a step can't read."""
    mac2 = INITIATION_LENGTH - MAC_LENGTH
    zeros = [(bpf.LOAD_WORD, 0, 0, mac2), (bpf.TO_INDEX, 0, 0, 0)]
    for at in range(mac2 + 4, INITIATION_LENGTH, 4):
        zeros += [(bpf.LOAD_WORD, 0, 0, at), (bpf.OR_INDEX, 0, 0, 0), (bpf.TO_INDEX, 0, 0, 0)]
    proven = [*zeros, (bpf.IF_EQUAL, 1, 0, 0), (bpf.RETURN, 0, 0, _PROVEN)]
    long_enough = [(bpf.LOAD_LENGTH, 0, 0, 0), (bpf.IF_AT_LEAST, 0, len(proven), INITIATION_LENGTH)]
    initiation = [*long_enough, *proven]
    kinds = [
        (bpf.LOAD_WORD, 0, 0, 0),
        (bpf.IF_EQUAL, 0, 3, _TYPES[4]),
        (bpf.LOAD_LENGTH, 0, 0, 0),
        (bpf.IF_AT_LEAST, 0, 5 + len(initiation), TRANSPORT_OVERHEAD),
        (bpf.RETURN, 0, 0, 0),
        (bpf.IF_EQUAL, 1, 0, _TYPES[2]),
        (bpf.IF_EQUAL, 0, 1, _TYPES[3]),
        (bpf.RETURN, 0, 0, _PROVEN),
        (bpf.IF_EQUAL, 0, len(initiation), _TYPES[1]),
        *initiation,
    ]
    return [
        (bpf.LOAD_LENGTH, 0, 0, 0),
        (bpf.IF_AT_LEAST, 0, len(kinds), 4),
        *kinds,
        *source,
        (bpf.MULTIPLY, 0, 0, _odd()),
        (bpf.SHIFT_RIGHT, 0, 0, 32 - _HASH_BITS),
        (bpf.ADD, 0, 0, 1),
        (bpf.RETURN_VALUE, 0, 0, 0),
    ]


def _source4() -> list[bpf.Step]:
    """Mixes address and port of an IPv4 source. The IP header has a length of its own."""
    return [
        (bpf.LOAD_WORD, 0, 0, bpf.NETWORK_HEADER + 12),
        (bpf.STORE_SLOT, 0, 0, 0),
        (bpf.LOAD_BYTE, 0, 0, bpf.NETWORK_HEADER),
        (bpf.AND, 0, 0, 15),
        (bpf.SHIFT_LEFT, 0, 0, 2),
        (bpf.TO_INDEX, 0, 0, 0),
        (bpf.LOAD_HALF_INDEXED, 0, 0, bpf.NETWORK_HEADER),
        *_mixed(),
    ]


def _source6() -> list[bpf.Step]:
    """Mixes address and port of an IPv6 source; behind extension headers, their first bytes instead of the port."""
    steps = [(bpf.LOAD_WORD, 0, 0, bpf.NETWORK_HEADER + 8), (bpf.STORE_SLOT, 0, 0, 0)]
    for at in (12, 16, 20):
        steps += [(bpf.LOAD_WORD, 0, 0, bpf.NETWORK_HEADER + at), *_mixed(), (bpf.STORE_SLOT, 0, 0, 0)]
    return [*steps, (bpf.LOAD_HALF, 0, 0, bpf.NETWORK_HEADER + 40), *_mixed()]


def _mixed() -> list[bpf.Step]:
    """Adds the slot to what was loaded, times a secret number."""
    return [(bpf.MULTIPLY, 0, 0, _odd()), (bpf.LOAD_SLOT_AS_INDEX, 0, 0, 0), (bpf.ADD_INDEX, 0, 0, 0)]


def _odd() -> int:
    return secrets.randbits(32) | 1
