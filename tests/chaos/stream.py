"""Sends the numbered packets in one process and receives them in another.

They are small and leave in pairs, at a constant rate, both ways between the gateway and each peer. The kernel stamps
arrivals, so the receiver may be late. The sender notes each sending, so its own pauses don't count as outages.
"""

import contextlib
import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Self

from tests.chaos.children import Child
from tests.chaos.record import PERIOD, TOGETHER, Record

from lab.capture import SO_TIMESTAMPNS, TIMESPEC
from lab.namespaces import SO_RCVBUFFORCE, Namespace

HEADER: Final = struct.Struct("!16sB3xIQ")
"""Marker, flow, tick, time of sending (unix ns)."""
SIZE: Final = 200
"""Bytes of UDP payload."""
PORT: Final = 7000
ARREARS: Final = 0.02
"""s that a late sender makes up for; it skips the rest, which would be a burst."""
TURN: Final = 0.004
NICE: Final = -10

MARKER: Final = secrets.token_bytes(16)
"""In every packet inside the tunnels; it must not appear outside."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Describes one direction of one peer's stream."""

    number: int
    peer: int
    up: bool
    """From the peer to the gateway."""
    sender: socket.socket
    receiver: socket.socket


def make_flow(number: int, peer: int, *, up: bool, ends: tuple[Namespace, str, Namespace, str]) -> Flow:
    """Opens the sockets. `ends` are the sender's namespace and address, then the receiver's."""
    source, source_address, destination, destination_address = ends
    sender = source.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sender.bind((source_address, 0))
    sender.connect((destination_address, PORT + number))
    sender.setblocking(False)
    receiver = destination.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    receiver.bind((destination_address, PORT + number))
    receiver.setblocking(False)
    return Flow(number, peer, up, sender, receiver)


class Streams:
    """Runs all flows, from the start of the context to its end."""

    def __init__(self, record: Record, flows: list[Flow]) -> None:
        self._record, self.flows = record, flows
        self._children = contextlib.ExitStack()
        self._sender = Child("sender", self._send, NICE)
        self._receiver = Child("receiver", self._receive, NICE)

    def __enter__(self) -> Self:
        self._children.enter_context(self._receiver)
        self._children.enter_context(self._sender)
        return self

    def __exit__(self, *_: object) -> None:
        self._children.close()

    def check(self) -> None:
        """Raises RuntimeError unless both processes live."""
        self._sender.check()
        self._receiver.check()

    def pause(self, *, paused: bool) -> None:
        """Stops or continues the sender."""
        self._sender.ask(paused)

    def _send(self, line: Connection) -> None:
        record, ready, sent = self._record, line.poll, self._record.sent
        packets = [(flow.sender.send, flow.number, bytearray(SIZE)) for flow in self.flows]
        pack, number, due = HEADER.pack_into, 0, time.monotonic()
        while number < record.capacity:
            behind = time.monotonic() - due
            if behind < 0 and not number % TOGETHER:
                time.sleep(-behind)
            elif behind > ARREARS:
                due += behind
                record.put("longest_stall_us", max(record.get("longest_stall_us"), int(behind * 1e6)))
            if not number & 15 and ready() and line.recv() is True:
                line.send(True)
                line.recv()  # waits until told to go on
                line.send(True)
                due = time.monotonic()
            now = time.time_ns()
            sent[number] = now / 1e9
            for send, flow, packet in packets:
                pack(packet, 0, MARKER, flow, number, now)
                try:
                    send(packet)
                except OSError:  # no route, no room, refused: the packet counts as lost
                    record.add("refused")
            number += 1
            due += PERIOD
            record.put("ticks", number)
        raise RuntimeError("the run takes longer than its record has room for: choose fewer MINUTES")

    def _receive(self, line: Connection) -> None:
        lates = [memoryview(self._record.late[flow.number]) for flow in self.flows]
        drains = [(flow.receiver.recvmsg, flow.number) for flow in self.flows]
        while not line.poll(TURN):
            for receive, flow in drains:
                self._drain(receive, flow, lates[flow])

    def _drain(self, receive: Callable[[int, int], Any], flow: int, late: memoryview) -> None:
        """Takes all waiting packets of a flow. Hot."""
        unpack, stamp, record = HEADER.unpack_from, TIMESPEC.unpack, self._record
        while True:
            try:
                packet, notes, _, _ = receive(2048, 64)
            except BlockingIOError:
                return
            except OSError:  # the kernel reports ICMP for an earlier packet
                continue
            if len(packet) != SIZE or packet[:16] != MARKER or packet[16] != flow:
                record.add("foreign")
                continue
            _, _, number, sent = unpack(packet)
            seconds, nanoseconds = stamp(notes[0][2])
            if late[number]:
                record.add("twice")
            else:
                late[number] = max(1, (seconds * 1_000_000_000 + nanoseconds - sent) // 1000)
