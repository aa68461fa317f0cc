"""Passes sockets from host-service to the stages that send, by a Unix socket of packets: `host/sockets` (SOCK_SEQPACKET).

    conn     -> host       Offer   once, on connecting: the tunnel's UDP sockets that conn-service has, if any
    host     -> conn       Given   the tunnel's UDP sockets, at once and whenever they or their mark change
    conn     -> host       Taken   after each Given: conn-service sends by these sockets and with their mark
    resolver -> host       Ask     for new sockets that reach the network outside the tunnel
    host     -> resolver   Given   the new sockets

A message names the descriptors that are attached to its packet (SCM_RIGHTS), in their order: `udp4`, `udp6`, `udp4.0` to
`udp6.8` for handshakes, `tcp4`, `tcp6`. Both ends check the other's uid. A stage that breaks a rule loses its connection.
host-service never waits for a stage.
"""

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from stagewire import files
from stagewire.control.codec import BadControl, Codec
from stagewire.linux import privileges
from stagewire.linux.peer_credentials import peer_uid
from stagewire.loop import Loop
from stagewire.pipe.speakers import Admission

VERSION: Final = 1
UDP4: Final = "udp4"
UDP6: Final = "udp6"
TCP4: Final = "tcp4"
TCP6: Final = "tcp6"
HANDSHAKE_QUEUES: Final = 9
"""Sockets for handshakes beside each UDP socket: eight for unproven sources, one for all others (`host_service.queues`)."""
UDP4_QUEUES: Final = tuple(f"{UDP4}.{number}" for number in range(HANDSHAKE_QUEUES))
UDP6_QUEUES: Final = tuple(f"{UDP6}.{number}" for number in range(HANDSHAKE_QUEUES))
TUNNEL: Final = (UDP4, UDP6, *UDP4_QUEUES, *UDP6_QUEUES)
"""The tunnel's sockets."""
KINDS: Final = (*TUNNEL, TCP4, TCP6)
LINES: Final = 8
"""Connections of a stage at once; conn-service keeps one, resolver-service opens some for each look-up."""
SPEAK_WITHIN: Final = 2.0
"""s from connecting to the first message."""
RETRY: Final = 0.02
"""s between two attempts to connect."""
_PACKET: Final = 512
_ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Offer:
    """Says which sockets of the tunnel conn-service has."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for a new socket of each kind."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """Says that conn-service uses the sockets that it was given."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """Hands sockets over, except those of a family that the host lacks."""

    names: tuple[str, ...]


_TO_HOST: Final[Codec[Offer | Ask | Taken]] = Codec(VERSION, [Offer, Ask, Taken])
_FROM_HOST: Final[Codec[Given]] = Codec(VERSION, [Given])
_M = TypeVar("_M", bound=Offer | Ask | Taken | Given)


class Door:
    """Gives sockets to stages, in host-service.

    `on_offer` owns the descriptors that it gets. The door closes the sockets that `on_ask` returns, once they are sent.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        on_offer: Callable[[dict[str, int], float], None],
        on_ask: Callable[[Iterable[str]], dict[str, socket.socket]],
        admission: Admission,
    ) -> None:
        """Listens at `path`. Raises OSError."""
        self._loop = loop
        self._admission = admission
        self._on_offer = on_offer
        self._on_ask = on_ask
        self._given: dict[str, int] = {}
        self._lines: dict[socket.socket, float | None] = {}
        """All connections, the oldest first, each with the time by which it must speak (s); None once it has spoken."""
        self._conns: dict[socket.socket, int] = {}
        """Connections of conn-services, each with the number of its Givens without a Taken."""
        self._when_taken: list[Callable[[], object]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        files.clear(path)
        self._listener.bind(str(path))
        self._listener.listen(LINES)
        loop.add(self._listener.fileno(), self._accept)
        loop.add_timed(self)

    def give(self, descriptors: Mapping[str, int]) -> None:
        """Hands the tunnel's sockets to every conn-service, now and later. The caller keeps its descriptors."""
        self._given = dict(descriptors)
        for line in list(self._conns):
            self._give_to(line)

    def when_taken(self, then: Callable[[], object]) -> None:
        """Calls `then` once every connected conn-service uses the sockets that it was given last."""
        self._when_taken.append(then)
        self._see_whether_taken()

    def close(self) -> None:
        """Ends all connections."""
        for opened in (self._listener, *self._lines):
            opened.close()
        self._lines.clear()
        self._conns.clear()

    def next_deadline(self) -> float | None:
        """Returns when the first silent connection must end."""
        return min((until for until in self._lines.values() if until is not None), default=None)

    def act(self, now: float) -> None:
        """Ends the connections that said nothing in time."""
        for line in [line for line, until in self._lines.items() if until is not None and until <= now]:
            self._hang_up(line)

    def _accept(self, now: float) -> None:
        with suppress(OSError):
            line, _ = self._listener.accept()
            line.setblocking(False)
            if not self._admission.admit(line):
                line.close()
                return
            self._lines[line] = now + SPEAK_WITHIN
            self._loop.add(line.fileno(), lambda now: self._read(line, now))

    def _read(self, line: socket.socket, now: float) -> None:
        try:
            message, descriptors = _receive_untrusted(line, _TO_HOST)
        except OSError:
            self._hang_up(line)
            return
        self._lines[line] = None
        match message:
            case Offer() if _is_of(line, "conn") and line not in self._conns:
                self._on_offer(descriptors, now)
                self._conns[line] = 0
                if self._given:
                    self._give_to(line)
            case Taken() if self._conns.get(line):
                self._conns[line] -= 1
                self._see_whether_taken()
            case Ask(names=names) if _is_of(line, "resolver"):
                fresh = self._on_ask(names)
                self._hand_over(line, {name: opened.fileno() for name, opened in fresh.items()})
                for opened in fresh.values():
                    opened.close()
            case _:
                _close_all(descriptors.values())
                self._hang_up(line)

    def _give_to(self, line: socket.socket) -> None:
        self._conns[line] += 1
        self._hand_over(line, self._given)

    def _see_whether_taken(self) -> None:
        if not any(self._conns.values()):
            waiting, self._when_taken = self._when_taken, []
            for then in waiting:
                then()

    def _hand_over(self, line: socket.socket, descriptors: Mapping[str, int]) -> None:
        try:
            socket.send_fds(line, [_FROM_HOST.pack(Given(tuple(descriptors)))], list(descriptors.values()))
        except OSError:  # the stage is gone, or does not read
            self._hang_up(line)

    def _hang_up(self, line: socket.socket) -> None:
        if line in self._lines:
            del self._lines[line]
            self._conns.pop(line, None)
            self._loop.remove(line.fileno())
            self._admission.forget(line.fileno())
            line.close()
            self._see_whether_taken()


class SocketsTaker:
    """Takes the tunnel's sockets, in conn-service. Connects again to each new host-service.

    Offers the sockets that `has` returns. `on_given` owns the descriptors that it gets.
    """

    def __init__(
        self,
        loop: Loop,
        path: Path,
        has: Callable[[], Mapping[str, int]],
        on_given: Callable[[dict[str, int], float], None],
    ) -> None:
        self._loop = loop
        self._path = path
        self._has = has
        self._on_given = on_given
        self._line: socket.socket | None = None
        self._retry: float | None = 0.0
        loop.add_timed(self)

    def next_deadline(self) -> float | None:
        """Returns when to try to connect."""
        return self._retry

    def act(self, now: float) -> None:
        """Tries to connect."""
        try:
            line = _connect(self._path)
        except OSError:
            self._retry = now + RETRY
            return
        has = self._has()
        try:
            socket.send_fds(line, [_TO_HOST.pack(Offer(tuple(has)))], list(has.values()))
        except OSError:
            line.close()
            self._retry = now + RETRY
            return
        self._retry, self._line = None, line
        self._loop.add(line.fileno(), self._read)

    def _read(self, now: float) -> None:
        assert self._line is not None  # noqa: S101 - it is what became readable
        try:
            _, descriptors = _receive_untrusted(self._line, _FROM_HOST)
        except OSError:
            self._loop.remove(self._line.fileno())
            self._line.close()
            self._line, self._retry = None, now + RETRY
        else:
            self._on_given(descriptors, now)
            with suppress(OSError):  # host-service is gone; the next read tells it
                self._line.send(_TO_HOST.pack(Taken()))


def ask(path: Path, kinds: Iterable[str], timeout: float) -> dict[str, socket.socket]:
    """Returns new sockets of these kinds, neither bound nor connected. Their packets leave outside the tunnel.

    Leaves out a family that the host lacks. Blocks for `timeout` s at most, so only resolver-service's threads call it.
    Raises OSError when host-service is away.
    """
    with _connect(path) as line:
        line.settimeout(timeout)
        line.send(_TO_HOST.pack(Ask(tuple(kinds))))
        _, descriptors = _receive_untrusted(line, _FROM_HOST)
    return {name: socket.socket(fileno=descriptor) for name, descriptor in descriptors.items()}


def _connect(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        line.connect(str(path))
        if not _is_of(line, "host"):
            raise PermissionError(f"{path} isn't host-service's")
    except OSError:
        line.close()
        raise
    return line


def _is_of(line: socket.socket, stage: str) -> bool:
    return peer_uid(line) in {_ROOT, privileges.uid_of(stage)}


def _receive_untrusted(line: socket.socket, codec: Codec[_M]) -> tuple[_M, dict[str, int]]:
    """Reads one packet. Raises OSError when the connection has ended or the other end breaks a rule."""
    packet, descriptors, flags, _ = socket.recv_fds(line, _PACKET, len(KINDS))
    with suppress(BadControl):
        message = codec.unpack_untrusted(packet)
        names = () if isinstance(message, Ask) else message.names
        known = set(message.names) <= set(KINDS) and len(set(message.names)) == len(message.names)
        if known and len(names) == len(descriptors) and not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            return message, dict(zip(names, descriptors, strict=True))
    _close_all(descriptors)
    raise ConnectionAbortedError(f"the socket door got {len(packet)} bytes that are no message of its version")


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
