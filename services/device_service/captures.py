"""Copies packets in clear for `stagewire capture`, as root alone may order it (`control.capture`).

Nothing here waits: a train is looked at after the tunnel's work is done with it, or before it begins, and what the pipe has
no room for is missed.
"""

import os
import socket
import stat
import time
from base64 import b64encode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from device_service import pcapng
from device_service.selection import Selection
from stagewire import logs
from stagewire.control import capture
from stagewire.control.capture import Order, Progress
from stagewire.control.codec import BadControl
from stagewire.control.telemetry import CaptureReport
from stagewire.limits import MAX_CAPTURE
from stagewire.linux.peer_credentials import credentials
from stagewire.pipe import trains
from stagewire.pipe.contract import Frame
from stagewire.pipe.names import CAPTURE
from stagewire.process.stage import Stage
from stagewire.proto import constants as c
from stagewire.proto.packets import fields, ip, split
from stagewire.proto.packets.merge import Item
from stagewire.proto.packets.split import SuperPacket
from stagewire.proto.packets.virtio import BadSuperPacket
from stagewire.proto.tunnel import Train
from stagewire.proto.worker import Worker

MOST: Final = 4
"""Captures at a time."""
_LINES: Final = 2 * MOST
"""Connections at a time."""
_MAX_BY: Final = 64
_MAX_OF: Final = 100
_PATIENCE: Final = 2.0
"""s from a connection to its order."""
_ROOT: Final = 0


@dataclass(slots=True, eq=False)
class _Capture:
    """Holds one capture that runs. `until` is in s on the boot-time clock."""

    order: Order
    selection: Selection
    line: socket.socket
    pipe: int
    by: str
    until: float
    since: float
    packets: int = 0
    size: int = 0
    missed: int = 0
    rest: bytes = b""
    """Of blocks that the pipe took a part of."""
    ended: str = ""
    waiting: list[bytes] = field(default_factory=list)
    """Blocks of the train in hand."""


class Captures:
    """Listens for orders and carries them out. `running` is empty but for the captures that run."""

    def __init__(self, stage: Stage, worker: Worker) -> None:
        self._stage, self._worker = stage, worker
        self.running: list[_Capture] = []
        self._new: dict[socket.socket, float] = {}
        """Connections without an order, the oldest first, each with its time limit (s)."""
        self._admission = stage.pipes.admission(CAPTURE)
        self._listener = stage.pipes.listening(CAPTURE, stage.number)
        stage.loop.add(self._listener.fileno(), self._accept)
        stage.loop.add_paced(1.0, self._look_after)
        stage.captures = self._reports

    # --- packets -------------------------------------------------------------------------------------------

    def outbound(self, frames: Iterable[Frame], now: float) -> None:
        """Looks at trains from the OS, before they are judged and sealed."""
        for data, start, end in frames:
            self._look_into(bytes(data[start:end]), pcapng.OUTBOUND, now)
        self._flush()

    def inbound(self, opened: Sequence[Train], packets: Sequence[Item], now: float) -> None:
        """Looks at packets that were opened and may pass."""
        for train, _ in opened:
            self._look_into(bytes(train), pcapng.INBOUND, now)
        for item in packets:
            if isinstance(item, bytes):
                self._take(item, pcapng.INBOUND)
            else:
                self._take_item(item.header, item.packet, pcapng.INBOUND)
        self._flush()

    def _look_into(self, train: bytes, way: int, now: float) -> None:
        try:
            spans = trains.spans_untrusted(train, now)
        except trains.BadTrain:  # it is dropped and counted where it is judged
            return
        for start, end, _ in spans:
            packet = start + fields.VNET_HEADER
            self._take_item(train[start:packet], train[packet:end], way)

    def _take_item(self, header: bytes, packet: bytes | memoryview, way: int) -> None:
        """Takes an item apart before it is filtered, so that a capture has the packets that the tunnel carries."""
        address = ip.destination(packet) if way == pcapng.OUTBOUND else ip.source(packet)
        if not self._of(address):
            return
        with suppress(BadSuperPacket):
            opened = split.open_untrusted(header, packet)
            for each in opened.packets() if isinstance(opened, SuperPacket) else [opened]:
                self._take(each, way)

    def _of(self, address: bytes | None) -> list[_Capture]:
        """Returns the captures of the peer that an address belongs to."""
        owner = self._worker.owners.key_at(address) if address is not None else None
        return [each for each in self.running if each.order.public_key == owner]

    def _take(self, packet: bytes, way: int) -> None:
        length = ip.inner_length(packet)
        if not length:
            return
        for each in self._of(ip.destination(packet) if way == pcapng.OUTBOUND else ip.source(packet)):
            if kept := each.selection.kept(packet[:length]):
                each.waiting.append(pcapng.packet(packet[:kept], length, way, time.time_ns()))

    # --- the pipe ------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        for each in list(self.running):
            if each.waiting:
                self._write(each)

    def _write(self, one: _Capture) -> None:
        blocks, one.waiting = one.waiting, []
        room = one.order.most - one.size
        fitting = 0
        while blocks[fitting:] and room >= len(blocks[fitting]):
            room -= len(blocks[fitting])
            fitting += 1
        if fitting and self._put(one, b"".join(blocks[:fitting])):
            one.packets += fitting
        else:
            one.missed += fitting
        if fitting < len(blocks):
            self._end(one, f"it has {one.order.most:,} bytes")

    def _put(self, one: _Capture, data: bytes) -> bool:
        """Writes what has waited, then `data`, all of it sooner or later or nothing; tells which."""
        try:
            if one.rest:
                one.rest = one.rest[os.write(one.pipe, one.rest) :]
            if one.rest:
                return False
            if data:
                one.rest = data[os.write(one.pipe, data) :]
                one.size += len(data)
        except BlockingIOError:
            return False
        except OSError:
            one.ended = one.ended or "its reader is gone"
            return False
        return True

    # --- orders --------------------------------------------------------------------------------------------

    def _accept(self, now: float) -> None:
        with suppress(OSError):
            line, _ = self._listener.accept()
            line.setblocking(False)
            # A stage of the operator's own might be admitted.
            if credentials(line).uid != _ROOT or not self._admission.admit(line):
                line.close()
                return
            if len(self._new) >= _LINES:
                self._hang_up(next(iter(self._new)))
            self._new[line] = now + _PATIENCE
            self._stage.loop.add(line.fileno(), lambda at: self._read(line, at))

    def _read(self, line: socket.socket, now: float) -> None:
        try:
            data, descriptors, flags, _ = socket.recv_fds(line, capture.MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors, flags = b"", [], 0
        if self._new.pop(line, None) is None or not data:  # the command is done, or says too much
            for one in [one for one in self.running if one.line is line]:
                self._end(one, "the command has ended")
            _close(descriptors)
            self._hang_up(line)
            return
        whole = not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
        try:
            self._begin(capture.TO_WORKER.unpack_untrusted(data if whole else b""), line, descriptors, now)
        except BadControl as bad:
            self._stage.drop(bad)
            _close(descriptors)
            self._hang_up(line)

    def _begin(self, order: Order, line: socket.socket, descriptors: list[int], now: float) -> None:
        refusal = self._refusal(order, descriptors)
        if refusal:
            self._say(line, Progress(0, 0, 0, refusal))
            _close(descriptors)
            self._hang_up(line)
            return
        [pipe] = descriptors
        os.set_blocking(pipe, False)
        by = logs.cleaned(order.by)[:_MAX_BY] or f"pid {credentials(line).pid}"
        one = _Capture(order, Selection(order), line, pipe, by, now + order.seconds, now)
        self.running.append(one)
        self._say(line, Progress(0, 0, 0, ""))
        self._stage.log.info("capture begins", of=_peer(order), by=by, takes=_about(order), seconds=order.seconds)
        self._put(one, pcapng.begin(self._stage.environment.interface, f"{_about(order)} of peer {_peer(order)}"))

    def _refusal(self, order: Order, descriptors: list[int]) -> str:
        if len(descriptors) != 1 or not stat.S_ISFIFO(os.fstat(descriptors[0]).st_mode):
            return "the order came without a pipe to write into"
        if len(order.public_key) != c.KEY_LENGTH or self._worker.owners.tunnel(order.public_key) is None:
            return capture.NOT_HERE
        if max(map(len, (order.hosts, order.ports, order.protocols))) > capture.MAX_VALUES:
            return f"a filter has {capture.MAX_VALUES} values of a kind at most"
        if not 0 < order.seconds <= MAX_CAPTURE or order.most <= 0:
            return "a capture lasts between a moment and a day, and has some bytes"
        return f"{MOST} captures run in this worker already" if len(self.running) >= MOST else ""

    # --- time ----------------------------------------------------------------------------------------------

    def _look_after(self, now: float) -> None:
        if self._new or self.running:
            self._stage.loop.worked += 1  # so that it looks again in a second
        for line in [line for line, until in self._new.items() if until <= now]:
            del self._new[line]
            self._hang_up(line)
        for one in list(self.running):
            self._put(one, b"")
            if one.ended:
                self._end(one, one.ended)
            elif now >= one.until:
                self._end(one, "its time is over")
            elif self._worker.owners.tunnel(one.order.public_key) is None:
                self._end(one, capture.NOT_HERE)
            else:
                self._say(one.line, Progress(one.packets, one.size, one.missed, ""))

    def _end(self, one: _Capture, why: str) -> None:
        self.running.remove(one)
        self._put(one, pcapng.end(one.packets, one.missed, time.time_ns()))
        os.close(one.pipe)
        self._say(one.line, Progress(one.packets, one.size, one.missed, why))
        self._hang_up(one.line)
        self._stage.log.info(
            "capture ends", of=_peer(one.order), by=one.by, why=why, packets=one.packets, missed=one.missed
        )

    def _say(self, line: socket.socket, message: Progress) -> None:
        with suppress(OSError):  # the command reads late, or has ended
            line.send(capture.FROM_WORKER.pack(message))

    def _hang_up(self, line: socket.socket) -> None:
        if line.fileno() < 0:
            return
        self._new.pop(line, None)
        self._stage.loop.remove(line.fileno())
        self._admission.forget(line.fileno())
        line.close()

    def _reports(self) -> tuple[CaptureReport, ...]:
        return tuple(
            CaptureReport(one.order.public_key, one.by, one.since, _about(one.order), one.packets, one.missed)
            for one in self.running
        )


def _peer(order: Order) -> str:
    """Names the peer as the command does; by its key alone if the command gives no name."""
    return logs.cleaned(order.of)[:_MAX_OF] or b64encode(order.public_key).decode()[:10]


def _about(order: Order) -> str:
    """Describes in a few words what a capture takes."""
    kinds = [("host", len(order.hosts)), ("port", len(order.ports)), ("protocol", len(order.protocols))]
    limited = [f"{name}s" if count > 1 else name for name, count in kinds if count]
    return ("whole packets" if order.whole else "headers") + (f" filtered by {', '.join(limited)}" if limited else "")


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
