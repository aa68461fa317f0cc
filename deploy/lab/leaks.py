"""Sends traffic that belongs into a tunnel all the time, and checks how much of it a capture sees outside."""

import itertools
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Self

from lab.capture import Capture, Frame
from lab.namespaces import Namespace
from lab.wait import until

INTERVAL: Final = 0.005
"""s between two packets of one way."""
AT_ONCE: Final = 0.002
"""s between the choice of a source address and the send; after more, the address may have gone meanwhile."""
PORT: Final = 9
NUMBER: Final = struct.Struct("!8sIQ")
"""Marker of the run, way, number."""

NEVER: Final = r"\.*"
UNTIL: Final = r"c+\.+"
FROM: Final = r"\.+c+"
BUT_FOR_ONE_SPAN: Final = r"c+\.+c+"
ANY_BUT_AT_THE_END: Final = r"[.c]*\.{20}"
"""Which packets of a way, in order, a capture may see outside (`c`): none, the first ones, the last ones, and so on."""


@dataclass(frozen=True, slots=True)
class Way:
    """Describes how some packets are sent."""

    name: str
    destination: str
    source: str | None = None
    """The tunnel's own address; without it the kernel chooses one."""
    held: bool = False
    """A socket stays bound to `source`, as a connection does, whatever becomes of the address."""

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.destination else socket.AF_INET


def ways(own: Sequence[str], destinations: Sequence[str], held: bool = False) -> list[Way]:
    """Returns ways to each destination: from a source of the kernel's choice, and from the tunnel's `own` address."""
    found = []
    for destination in destinations:
        [source] = [each for each in own if (":" in each) == (":" in destination)]
        found.append(Way(f"to {destination}", destination))
        found.append(Way(f"from {source} to {destination}", destination, source))
        if held:
            found.append(Way(f"from {source}, bound before, to {destination}", destination, source, held=True))
    return found


@dataclass
class Sent:
    """Records for each packet of a way whether the kernel took it, and which packets don't count."""

    taken: list[bool] = field(default_factory=list)
    unsure: set[int] = field(default_factory=set)


class Leaks:
    """Sends in all ways from the start of the context to its end, and watches an interface of the same namespace.

    `expect` is a pattern for packets whose source the kernel chose. Packets from the tunnel's address must never
    appear.
    """

    def __init__(self, namespace: Namespace, interface: str, these: Sequence[Way], expect: str = NEVER) -> None:
        self._namespace, self._ways, self._expect = namespace, these, expect
        self._capture = Capture(namespace, interface, snap=128)
        self._marker = secrets.token_bytes(8)
        self._sent = {way: Sent() for way in these}
        self._steps: list[tuple[float, str]] = [(time.time(), "start")]
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: namespace.call(self._send), daemon=True)

    def __enter__(self) -> Self:
        self._capture.__enter__()
        self._thread.start()
        self.passing()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.passing()
        self._over.set()
        self._thread.join()
        self._capture.__exit__()
        if kind is None:
            self._check()

    def step(self, name: str) -> None:
        """Names the following events, for the report."""
        self._steps.append((time.time(), name))

    def passing(self, count: int = 20) -> None:
        """Waits until `count` more packets of each way have been sent, or tried."""
        before = {way: len(sent.taken) for way, sent in self._sent.items()}
        until(
            lambda: all(len(sent.taken) >= before[way] + count for way, sent in self._sent.items()), 10, "the traffic"
        )

    def _send(self) -> None:
        held = {way: self._opened(way) for way in self._ways if way.held or not way.source}
        try:
            for number in itertools.count():
                for index, way in enumerate(self._ways):
                    self._send_one(way, held.get(way), NUMBER.pack(self._marker, index, number))
                if self._over.wait(INTERVAL):
                    return
        finally:
            for each in held.values():
                each.close()

    def _opened(self, way: Way) -> socket.socket:
        made = socket.socket(way.family, socket.SOCK_DGRAM)
        if way.source:
            try:
                made.bind((way.source, 0))
            except OSError:
                made.close()
                raise
        return made

    def _send_one(self, way: Way, held: socket.socket | None, payload: bytes) -> None:
        sent, begun, opened = self._sent[way], time.monotonic(), held
        try:
            opened = held or self._opened(way)
            opened.sendto(payload, (way.destination, PORT))
        except OSError:
            sent.taken.append(False)
        else:
            if not held and time.monotonic() - begun > AT_ONCE:
                sent.unsure.add(len(sent.taken))
            sent.taken.append(True)
        finally:
            if not held and opened:
                opened.close()

    def _check(self) -> None:
        seen: dict[Way, dict[int, float]] = {way: {} for way in self._ways}
        others: list[str] = []
        own = {ip_address(way.source).packed for way in self._ways if way.source}
        for frame in self._capture.frames():
            at = frame.data.find(self._marker, 14)
            if at >= 0:
                _, index, number = NUMBER.unpack_from(frame.data, at)
                seen[self._ways[index]][number] = frame.time
            elif _source(frame) in own:
                others.append(f"{frame.data[14:54].hex()} {self._when(frame.time)}")
        found = [line for way in self._ways for line in self._judge(way, seen[way])]
        if found or others:
            raise AssertionError("\n".join(["seen outside:", *found, *others[:5]]))
        if self._capture.dropped:
            raise AssertionError(f"the capture missed {self._capture.dropped} frames")

    def _judge(self, way: Way, seen: dict[int, float]) -> list[str]:
        sent = self._sent[way]
        letters = "".join("c" if number in seen else "." for number in range(len(sent.taken)))
        if way.source:
            letters = "".join("." if number in sent.unsure else each for number, each in enumerate(letters))
        if re.fullmatch(NEVER if way.source else self._expect, letters):
            return []
        runs = " ".join(f"{len(list(group))}{letter}" for letter, group in itertools.groupby(letters))
        times = list(dict.fromkeys(self._when(each) for _, each in sorted(seen.items())))
        return [f"{way.name}: {runs} ({', '.join(times[:3])})"]

    def _when(self, moment: float) -> str:
        at, name = max((each for each in self._steps if each[0] <= moment), default=self._steps[0])
        return f"{name} + {int((moment - at) * 10) / 10} s"


def _source(frame: Frame) -> bytes:
    packet = frame.data[14:]
    return packet[12:16] if packet[:1] and packet[0] >> 4 == 4 else packet[8:24]
