"""The wide lane: runs sealed and opened where they lie, for trains long enough that NumPy pays.

A counter is taken before it is used and a row is opened before its counter is looked at, here as on the narrow lane
(`Session.seal`, `Tunnel.receive`): only the number of packets at a time is another.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag

from stagewire.proto import constants as c
from stagewire.proto.offload import columns, uniform, wide
from stagewire.proto.offload.block import Block
from stagewire.proto.offload.coalesce import Item
from stagewire.proto.offload.rows import Bytes, Laid, Rows, most
from stagewire.proto.offload.segment import SuperPacket
from stagewire.proto.offload.uniform import Uniform
from stagewire.proto.session import Session

_SHORTEST: Final = c.TRANSPORT_OVERHEAD + 20
"""Bytes; below it there is no packet in a datagram."""
_FRONT: Final = c.TRANSPORT_HEADER_LENGTH
_COUNT: Final = np.arange(64, dtype=np.uint64)


@dataclass(slots=True)
class Received:
    """A run that lies in rows: sealed first, then opened in place."""

    rows: Rows
    receiver: bytes
    """Type, reserved bytes and receiver index, the same in all rows."""
    size: int
    last: int
    count: int
    packets: Bytes | None = None
    """Those that were authentic and new, once they are opened, padded; in the last one's row zeros follow."""
    padded_last: int = 0


class Lane:
    """The buffers. What is laid in them is good until `recycle`."""

    LEAST_TO_SEAL: Final = 6
    """Packets from which on `wide.lay` is quicker than `segment.split`; one more for each super-packet more."""
    alike = staticmethod(wide.alike)
    LEAST_TO_OPEN: Final = 8
    """Packets from which on `columns.merge` is quicker than `coalesce.merge`."""

    def __init__(self) -> None:
        self._rows: list[Rows] = []
        self._used = 0

    def recycle(self) -> None:
        """What was given out isn't needed any more."""
        self._used = 0

    def _take(self) -> Rows:
        if self._used == len(self._rows):
            self._rows.append(Rows())
        self._used += 1
        return self._rows[self._used - 1]

    def pays(self, wholes: Sequence[SuperPacket]) -> bool:
        """Whether `seal` is quicker than one by one."""
        return sum([whole.count for whole in wholes]) >= self.LEAST_TO_SEAL + len(wholes) - 1

    # --- sealing -------------------------------------------------------------------------------------------

    def seal(self, session: Session, wholes: Sequence[SuperPacket], mtu: int) -> list[Block]:
        """The runs of super-packets that are alike, sealed. There must be counters left for all of them.

        Hot: 80 us for 43 packets of 1,420 bytes, of which 46 us are the cipher's.
        """
        blocks = []
        for pieces in wide.tables(wholes, mtu):
            blocks += _seal(session, wide.lay(pieces, self._take(), mtu))
        return blocks

    def seal_uniform(self, session: Session, train: Uniform, mtu: int) -> list[Block]:
        """The same, of packets that were single ones."""
        blocks = []
        for run in range(uniform.runs_of(train, mtu)):
            blocks += _seal(session, uniform.lay(train, run, self._take(), mtu))
        return blocks

    # --- opening -------------------------------------------------------------------------------------------

    def receive(self, block: Block) -> Received | None:
        """Lays a run in rows; None if it is for more than one session, or has a datagram without a packet."""
        size, length = block.size, len(block.data)
        count = len(block)
        last = length - (count - 1) * size
        if count > most(size) or size < _SHORTEST or last < _SHORTEST:
            return None
        rows = self._take()
        rows.view[:length] = block.data
        receivers = rows.table(size)[:count, :8].view("<u8")[:, 0]
        if (receivers != receivers[0]).any():
            return None
        return Received(rows, bytes(rows.view[:8]), size, last, count)

    @staticmethod
    def open(session: Session, received: Received, drops: Counter[str]) -> int:
        """Opens the rows where they lie; returns how many bytes of datagrams were authentic and new.

        Hot: 55 us for 43 packets of 1,420 bytes, of which 45 us are the cipher's.
        """
        rows, size, count, last = received.rows, received.size, received.count, received.last
        table = rows.table(size)[:count]
        counters = table[:, 8:16].view("<u8")[:, 0].tolist()
        table[:, 4:8] = 0  # bytes 4 to 16 are the nonce now
        nonces, packets, tagged = (views[:count] for views in rows.views(size))
        if last < size:
            nonces[-1], packets[-1], tagged[-1] = rows.cut((count - 1) * size, last)
        opened, at, authentic = map(session.decrypt_into, nonces, tagged, repeat(None), packets), 0, list(range(count))
        while at < count:
            try:
                for _ in opened:
                    at += 1
            except InvalidTag:
                drops["transport_not_authentic"] += 1
                authentic.remove(at)
                at += 1
        # Only after authentication: a forged counter must not move the window.
        if len(authentic) == count and session.window.accept_run(counters):
            accepted = authentic
        else:
            accept = session.window.accept
            accepted = [position for position in authentic if accept(counters[position])]
            if len(accepted) < len(authentic):
                drops["replayed"] += len(authentic) - len(accepted)
        inner = table[:, _FRONT : size - c.TAG_LENGTH]
        whole = bool(accepted) and accepted[-1] == count - 1
        received.padded_last = (last if whole else size) - c.TRANSPORT_OVERHEAD
        if whole:
            inner[-1, received.padded_last :] = 0
        received.packets = inner if len(accepted) == count else inner[accepted]
        return len(accepted) * size - (size - last if whole else 0)

    @staticmethod
    def merge(received: Received, takes: int) -> list[Item] | None:
        """The packets that were opened, merged as far as they can be; None if it takes `coalesce.merge` to do it."""
        packets, padded_last = received.packets, received.padded_last
        if packets is None or len(packets) < 2:
            return None
        return columns.merge(packets, padded_last, takes)

    @staticmethod
    def packets(received: Received) -> list[bytes]:
        """The packets that were opened, one by one, padded."""
        if received.packets is None or not len(received.packets):
            return []
        found = [row.tobytes() for row in received.packets]
        found[-1] = found[-1][: received.padded_last]
        return found


def _seal(session: Session, laid: Laid) -> list[Block]:
    rows, size, count = laid.rows, laid.size, laid.count
    counter = session.take_counters(count)
    table = rows.table(size)[:count]
    # The index stays zero for now: with it, bytes 4 to 16 are the nonce.
    table[:, :8].view("<u8")[:, 0] = c.TYPE_TRANSPORT
    table[:, 8:16].view("<u8")[:, 0] = _COUNT[:count] + np.uint64(counter)
    nonces, packets, tagged = rows.views(size)
    encrypt_into = session.encrypt_into
    ends, start = [], 0
    for position, length in (*laid.short, (count, 0)):
        rest = slice(start, position)
        deque(map(encrypt_into, nonces[rest], packets[rest], repeat(None), tagged[rest]), 0)
        if length:
            nonce, packet, with_tag = rows.cut(position * size, length)
            encrypt_into(nonce, packet, None, with_tag)
        if start < count:
            ends.append((start * size, position * size + length))
        start = position + 1
    table[:, 4:8].view("<u4")[:, 0] = session.remote_index
    return [Block(rows.view[begin:end], size) for begin, end in ends]
