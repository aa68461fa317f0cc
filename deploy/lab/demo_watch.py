"""Listens for the demo in a process of its own: it reads the wire and one TUN device while the show runs.

It judges each frame at once and then forgets it, so a long transfer takes no memory. It searches both sides of the
encryption for the same plain text: what it finds inside proves that the search outside works.
"""

import multiprocessing
import os
import random
import signal
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Final, Self

from lab.capture import TRANSPORT_HEADER, Capture, Datagram, Frame
from lab.namespaces import Namespace

BUFFER: Final = 256 << 20
"""Bytes that the kernel keeps while the listener yields the processor to the gateways."""
NICE: Final = 5
TURN: Final = 0.1
BLOCK: Final = 1 << 20

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4
KINDS: Final = {INITIATION: "initiation", RESPONSE: "response", COOKIE_REPLY: "cookie reply", TRANSPORT: "transport"}
SIZES: Final = {INITIATION: 148, RESPONSE: 92, COOKIE_REPLY: 64}
KEEPALIVE: Final = 32
TAG: Final = 16
ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
ICMP_NO_PORT: Final = bytes([3, 3])
ICMPV6_LINK: Final = range(130, 144)
"""Types by which a link's ends find neighbours, routers and multicast groups."""


class Slices:
    """Finds thousands of pieces of the file that `tcp_fetch` serves, spread all over it, in one pass.

    All begin with the same two bytes, so a search for these and one look-up find a piece.
    """

    LENGTH: Final = 16

    def __init__(self, size: int, seed: int) -> None:
        generator = random.Random(seed)
        self._start = b""
        self.pieces: set[bytes] = set()
        for start in range(0, size, BLOCK):
            block = generator.randbytes(min(BLOCK, size - start))
            self._start = self._start or block[:2]
            self.pieces.update(self.found_in(block, anything=True))

    def found_in(self, data: bytes, *, anything: bool = False) -> set[bytes]:
        """Returns the pieces in `data`, or with `anything` all that could be one."""
        found = set()
        at = data.find(self._start)
        while at >= 0:
            piece = data[at : at + self.LENGTH]
            if piece in self.pieces or (anything and len(piece) == self.LENGTH):
                found.add(piece)
            at = data.find(self._start, at + 1)
        return found


@dataclass(slots=True)
class Findings:
    """Counts plain text on one side of the encryption."""

    frames: int = 0
    size: int = 0
    pieces: set[bytes] = field(default_factory=set)
    markers: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Frames that the kernel could not keep; the search proves nothing unless it is 0."""


@dataclass(slots=True)
class Report:
    """Holds all findings until now. Times are in seconds since 1970, by the kernel."""

    wire: Findings = field(default_factory=Findings)
    inside: Findings = field(default_factory=Findings)
    kinds: Counter[str] = field(default_factory=Counter)
    keepalives: int = 0
    handshakes: list[tuple[float, str, str]] = field(default_factory=list)
    """Time, address of the sender, and kind of all messages but transport."""
    link: int = 0
    """Frames by which the link's ends find one another."""
    refused: int = 0
    """ICMP for a datagram that met no socket. It quotes the datagram as it was: encrypted."""
    unexpected: list[str] = field(default_factory=list)
    nonces: int = 0
    nonces_again: int = 0
    pair: tuple[bytes, bytes] | None = None
    """The packet that carried `Watch.paired` in the TUN, and the datagram that carried it over the wire."""


class Tap(Capture):
    """Captures frames, and forgets each frame that it hands out."""

    def take(self) -> list[Frame]:
        """Returns the frames since the last call."""
        self._catch_up()
        with self._lock:
            taken, self._frames = self._frames, []
        return taken

    def datagram(self, frame: Frame) -> Datagram | None:
        """Returns the frame's payload if it is UDP."""
        return self._datagram(frame)


class _Listener:
    """Judges the frames within the listener's process."""

    def __init__(self, slices: Slices, markers: Mapping[str, bytes], paired: str, port: int) -> None:
        self._slices, self._markers, self._paired, self._port = slices, markers, paired, port
        self._nonces: set[tuple[tuple[str, int], int, int]] = set()
        self._waiting: Frame | None = None
        self.report = Report()

    def turn(self, wire: Tap, inside: Tap | None) -> None:
        # The wire is taken first and judged last: by then the packet that caused a datagram is known.
        outer = wire.take()
        if inside:
            for frame in inside.take():
                markers = self._search(frame, self.report.inside)
                if self._paired in markers and self._waiting is None:
                    self._waiting = frame
            self.report.inside.missed = inside.dropped
        for frame in outer:
            self._search(frame, self.report.wire)
            datagram = wire.datagram(frame)
            if datagram and self._port in (datagram.source[1], datagram.destination[1]):
                self._message(datagram, frame)
            else:
                self._other(frame.data)
        self.report.wire.missed = wire.dropped

    def _search(self, frame: Frame, findings: Findings) -> list[str]:
        findings.frames += 1
        findings.size += len(frame.data)
        findings.pieces |= self._slices.found_in(frame.data)
        markers = [name for name, plain in self._markers.items() if plain in frame.data]
        findings.markers.update(markers)
        return markers

    def _message(self, datagram: Datagram, frame: Frame) -> None:
        report, payload = self.report, datagram.payload
        (kind,) = struct.unpack_from("<I", payload) if len(payload) >= KEEPALIVE else (0,)
        if kind == TRANSPORT:
            self._transport(datagram, frame)
        elif len(payload) == SIZES.get(kind):
            report.handshakes.append((datagram.time, datagram.source[0], KINDS[kind]))
        else:
            report.unexpected.append(f"{len(payload)} bytes to port {self._port} that are no message")
            return
        report.kinds[KINDS[kind]] += 1

    def _transport(self, datagram: Datagram, frame: Frame) -> None:
        report, payload = self.report, datagram.payload
        _, receiver, counter = TRANSPORT_HEADER.unpack_from(payload)
        nonce = datagram.destination, receiver, counter
        report.nonces_again += nonce in self._nonces
        self._nonces.add(nonce)
        report.nonces = len(self._nonces)
        report.keepalives += len(payload) == KEEPALIVE
        waiting = self._waiting
        if waiting and not report.pair and frame.outgoing and frame.time >= waiting.time:
            padded = -(-len(waiting.data) // 16) * 16
            if len(payload) == TRANSPORT_HEADER.size + padded + TAG:
                report.pair = waiting.data, payload

    def _other(self, data: bytes) -> None:
        (kind,) = struct.unpack_from("!H", data, 12)
        packet = data[14:]
        if kind == ETHERTYPE_ARP or (kind == ETHERTYPE_IPV6 and _finds_neighbours(packet)):
            self.report.link += 1
        elif kind == ETHERTYPE_IPV4 and self._refuses(packet):
            self.report.refused += 1
        else:
            self.report.unexpected.append(f"{len(data)} bytes of type {kind:#06x} that belong to no tunnel")

    def _refuses(self, packet: bytes) -> bool:
        at = (packet[0] & 15) * 4
        quoted = packet[at + 8 :]
        if packet[9] != socket.IPPROTO_ICMP or packet[at : at + 2] != ICMP_NO_PORT or len(quoted) < 28:
            return False
        return quoted[9] == socket.IPPROTO_UDP and self._port in struct.unpack_from("!HH", quoted, (quoted[0] & 15) * 4)


def _finds_neighbours(packet: bytes) -> bool:
    if len(packet) <= 48:
        return False
    # MLD reports have a hop-by-hop header of 8 bytes before ICMPv6.
    protocol, at = (packet[40], 48) if packet[6] == socket.IPPROTO_HOPOPTS else (packet[6], 40)
    return protocol == socket.IPPROTO_ICMPV6 and packet[at] in ICMPV6_LINK


class Watch:
    """Runs the listener's process from the start of the context to its end. It forks: make it before any thread."""

    def __init__(
        self,
        namespace: Namespace,
        wire: str,
        port: int,
        slices: Slices,
        markers: Mapping[str, bytes],
        paired: str,
    ) -> None:
        """Takes the interface `wire` and `markers`, plain texts by name.

        `paired` names the marker reported in both forms.
        """
        self._namespace, self._wire = namespace, wire
        self._listener = _Listener(slices, markers, paired, port)

    def __enter__(self) -> Self:
        self._pipe, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=self._run, args=(theirs, self._pipe), name="demo-watch", daemon=True)
        self._process.start()
        theirs.close()
        self.report()  # its answer shows that it listens
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(5)
        self._process.kill()

    def listen_inside(self, interface: str) -> None:
        """Listens from now on also to a TUN device of the same namespace."""
        self._ask(interface)

    def report(self) -> Report:
        return self._ask(None)

    def _ask(self, question: str | None) -> Report:
        self._pipe.send(question)
        if not self._pipe.poll(30):
            raise RuntimeError("the listener does not answer")
        answer = self._pipe.recv()
        if not isinstance(answer, Report):
            raise TypeError(f"the listener failed: {answer}")
        return answer

    def _run(self, pipe: Connection, other_end: Connection) -> None:
        other_end.close()  # else the pipe would never end here
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.nice(NICE)
        try:
            self._serve(pipe)
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001 - it becomes the answer to the next question
            pipe.send(repr(error))

    def _serve(self, pipe: Connection) -> None:
        with ExitStack() as stack:
            wire = stack.enter_context(Tap(self._namespace, self._wire, buffer=BUFFER))
            inside = None
            while True:
                asked = pipe.poll(TURN)
                question = pipe.recv() if asked else None
                if question:
                    inside = stack.enter_context(Tap(self._namespace, question, buffer=BUFFER))
                self._listener.turn(wire, inside)
                if asked:
                    pipe.send(self._listener.report)
