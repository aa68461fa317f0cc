"""Tests a tunnel with numbered packets, pings and a large download."""

import errno
import hashlib
import os
import random
import re
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from lab.namespaces import SO_RCVBUFFORCE, Namespace
from lab.wait import Bell, NeverHappened, until

SO_TIMESTAMPNS: Final = 35
TIMESPEC: Final = struct.Struct("@ll")
HEADER: Final = struct.Struct("!16sQQ")
"""Marker of the stream, number, time of sending (ns since 1970)."""
NOTABLE_GAP: Final = 0.02
"""s from which on a gap is listed."""
ARREARS: Final = 0.05
"""s by which a sender may fall behind; beyond that it skips the packets it owes, which would be a burst."""
UNSENDABLE: Final = {
    *(errno.EAGAIN, errno.ENOBUFS, errno.EPERM),
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EINVAL),
}


@dataclass(frozen=True, slots=True)
class Gap:
    """Describes a time without arrivals. `start` is in seconds since 1970."""

    start: float
    seconds: float


@dataclass(frozen=True, slots=True)
class StreamReport:
    """Counts a stream's packets: `sent` = `received` - `duplicates` + `lost`.

    Times are in seconds; the kernel stamps arrivals.
    """

    sent: int
    received: int
    duplicates: int
    lost: int
    out_of_order: int
    foreign: int
    """Datagrams on the stream's port that were not the stream's, or damaged."""
    refused: int
    """Packets that the sender's kernel did not take (no route, no room); `sent` does not count them."""
    longest_gap: float
    longest_send_gap: float
    """How long the sender itself stood still; a longest_gap near this says nothing about the tunnel."""
    longest_latency: float
    gaps: tuple[Gap, ...]
    """Gaps from NOTABLE_GAP on, in order, to be matched with the faults that caused them."""


class NumberedStream:
    """Sends UDP packets at a constant rate, each with its own number, over any route to `destination`.

    It manages some thousands of packets/s: sender and receiver are threads of one Python process. Every packet
    carries `marker` in the clear, so a capture can look for it outside the tunnel.
    """

    def __init__(
        self,
        sender: Namespace,
        receiver: Namespace,
        destination: str,
        rate: float = 1000,
        size: int = 200,
        port: int = 0,
    ) -> None:
        """Takes the `size` of the UDP payload, and the receiver's `port`, 0 for any."""
        self._sender_namespace, self._receiver_namespace = sender, receiver
        self._destination, self._rate, self._port = (destination, port), rate, port
        self.marker = secrets.token_bytes(16)
        self._padding = bytes(size - HEADER.size)
        self._anywhere = "::" if ":" in destination else "0.0.0.0"
        self.sent = self.received = 0
        self._arrived = bytearray()  # by number: arrivals, up to 255
        self._duplicates = self._out_of_order = self._foreign = self._refused = 0
        self._longest_send_gap = self._longest_latency = 0.0
        self._first_sent = self._last_sent = self._last_arrival = 0.0
        self._highest = -1
        self._gaps: list[Gap] = []
        self._longest = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._in = self._receiver_namespace.udp_socket(self._anywhere, self._port)
        self._in.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._in.setblocking(False)
        self._destination = (self._destination[0], self._in.getsockname()[1])
        self._out = self._sender_namespace.udp_socket(self._anywhere)
        self._out.setblocking(False)
        self._bell = Bell()
        self._first_sent = self._last_sent = self._last_arrival = time.time()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._receive, self._send)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._bell.ring()
        for thread in self._threads:
            thread.join()
        for opened in (self._in, self._out, self._bell):
            opened.close()

    def _send(self) -> None:
        start, begun = time.monotonic(), 0
        while not self._stop.is_set():
            behind = time.monotonic() - start - begun / self._rate
            if behind > ARREARS:
                start += behind
            for _ in range(int(behind * self._rate) if behind <= ARREARS else 0):
                self._send_one()
                begun += 1
            self._stop.wait(max(0.0, start + (begun + 1) / self._rate - time.monotonic()))

    def _send_one(self) -> None:
        now = time.time_ns()
        try:
            self._out.sendto(HEADER.pack(self.marker, self.sent, now) + self._padding, self._destination)
        except OSError as error:
            if error.errno not in UNSENDABLE:
                raise
            self._refused += 1
            return
        self._longest_send_gap = max(self._longest_send_gap, now / 1e9 - self._last_sent)
        self._last_sent = now / 1e9
        self.sent += 1

    def _receive(self) -> None:
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        buffer = bytearray(65535)
        while not self._bell.rung:
            poll.poll()
            try:
                while True:
                    size, notes, _, _ = self._in.recvmsg_into([buffer], 64)
                    seconds, nanoseconds = TIMESPEC.unpack(notes[0][2])
                    self._note(memoryview(buffer)[:size], seconds + nanoseconds / 1e9)
            except BlockingIOError:
                pass

    def _note(self, packet: memoryview, arrival: float) -> None:
        if len(packet) != HEADER.size + len(self._padding) or packet[:16] != self.marker:
            self._foreign += 1
            return
        _, number, sent_at = HEADER.unpack_from(packet)
        self.received += 1
        if number >= len(self._arrived):
            self._arrived.extend(bytes(number + 1000 - len(self._arrived)))
        seen = self._arrived[number]
        self._arrived[number] = min(seen + 1, 255)
        if seen:
            self._duplicates += 1
            return
        self._out_of_order += number < self._highest
        self._highest = max(number, self._highest)
        self._longest_latency = max(self._longest_latency, arrival - sent_at / 1e9)
        self._note_gap(arrival)

    def _note_gap(self, until_time: float) -> None:
        seconds = until_time - self._last_arrival
        self._longest = max(self._longest, seconds)
        if seconds >= NOTABLE_GAP:
            self._gaps.append(Gap(self._last_arrival, seconds))
        self._last_arrival = max(until_time, self._last_arrival)

    def finish(self, quiet: float = 0.3) -> StreamReport:
        """Stops sending, waits until all packets are here or none came for `quiet` seconds, and reports."""
        self._stop.set()
        self._threads[1].join()
        last = [self.received, time.monotonic()]

        def settled() -> bool:
            if self.received != last[0]:
                last[:] = self.received, time.monotonic()
            return self.received - self._duplicates >= self.sent or time.monotonic() >= last[1] + quiet

        until(settled, 60, "the stream's last packets")
        self._bell.ring()
        self._threads[0].join()
        if self._last_sent > self._last_arrival:  # the last packets were lost
            self._note_gap(self._last_sent)
        return StreamReport(
            sent=self.sent,
            received=self.received,
            duplicates=self._duplicates,
            lost=self.sent - (self.received - self._duplicates),
            out_of_order=self._out_of_order,
            foreign=self._foreign,
            refused=self._refused,
            longest_gap=self._longest,
            longest_send_gap=self._longest_send_gap,
            longest_latency=self._longest_latency,
            gaps=tuple(self._gaps),
        )


@dataclass(frozen=True, slots=True)
class PingReport:
    """Holds the counts of `ping`."""

    sent: int
    received: int
    output: str


def ping(
    namespace: Namespace,
    destination: str,
    count: int = 1,
    size: int | None = None,
    family: int | None = None,
    timeout: float = 2,
    interval: float = 0.05,
    cut: bool | None = None,
) -> PingReport:
    """Sends `count` echo requests and waits up to `timeout` seconds for each answer. `family` is 4 or 6.

    `cut` says whether a request may be fragmented; None leaves that to the kernel.
    """
    chosen = ([f"-{family}"] if family else []) + (["-s", str(size)] if size is not None else [])
    chosen += [] if cut is None else ["-M", "dont" if cut else "do"]
    # Each request has its own process: for the last of several, ping(8) waits only two round trips of the others.
    command = ["ping", "-n", *chosen, "-c", "1", "-W", str(timeout), destination]
    sent = received = 0
    output = ""
    for number in range(count):
        time.sleep(interval if number else 0)
        result = namespace.run(*command, check=False, timeout=timeout + 5)
        output += result.stdout + result.stderr
        counted = re.search(r"(\d+) packets transmitted, (\d+) received", result.stdout)
        if counted is None:
            raise RuntimeError(f"ping {destination}: {(result.stderr + result.stdout).strip()}")
        sent, received = sent + int(counted[1]), received + int(counted[2])
    return PingReport(sent, received, output)


@dataclass(frozen=True, slots=True)
class FetchReport:
    """Describes a completed download whose bytes were right."""

    size: int
    seconds: float
    sha256: str


def tcp_fetch(
    server_namespace: Namespace,
    client_namespace: Namespace,
    address: str,
    size: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
    timeout: float = 60,
) -> FetchReport:
    """Downloads `size` pseudo-random bytes over TCP from the server's `address` and compares their SHA-256.

    It calls `progress` with the bytes so far after each read. All bytes are in memory before the clock starts.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    content, digest = _pseudo_random_file(size, seed)
    with os.fdopen(content, "rb") as file, server_namespace.call(lambda: socket.socket(family)) as listener:
        listener.bind((address, 0))
        listener.listen(1)
        listener.settimeout(timeout)
        failures: list[OSError] = []

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(timeout)
                    connection.sendfile(file)
            except OSError as error:  # the client only sees a short download; this tells why
                failures.append(error)

        server = threading.Thread(target=serve, name="tcp-fetch-server", daemon=True)
        server.start()
        begun = time.monotonic()
        try:
            with client_namespace.call(lambda: socket.socket(family)) as client:
                client.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
                client.settimeout(timeout)
                client.connect(listener.getsockname())
                received, found = _download(client, begun + timeout, progress)
        finally:
            # Wakes an accept that no client will answer.
            listener.shutdown(socket.SHUT_RDWR)
            server.join()
    if (received, found) != (size, digest):
        raise AssertionError(f"fetched {received} of {size} bytes, SHA-256 {found}, not {digest}; {failures}")
    return FetchReport(size, time.monotonic() - begun, digest)


def _download(client: socket.socket, deadline: float, progress: Callable[[int], None] | None) -> tuple[int, str]:
    digest, buffer, received = hashlib.sha256(), memoryview(bytearray(1 << 20)), 0
    while count := client.recv_into(buffer):
        digest.update(buffer[:count])
        received += count
        if progress:
            progress(received)
        if time.monotonic() > deadline:
            raise NeverHappened(f"the download did not end in time: {received} bytes so far")
    return received, digest.hexdigest()


def _pseudo_random_file(size: int, seed: int) -> tuple[int, str]:
    generator, digest = random.Random(seed), hashlib.sha256()
    descriptor = os.memfd_create("pseudo-random")
    for start in range(0, size, 1 << 20):
        block = generator.randbytes(min(1 << 20, size - start))
        digest.update(block)
        os.write(descriptor, block)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor, digest.hexdigest()
