"""Asks an interface's services for their status, and key-service for a number of workers, for a command."""

from dataclasses import is_dataclass, replace
from operator import is_
from types import NoneType
from typing import Any, Final, Generic, Self, TypeVar

import zmq

from stagewire import logs
from stagewire.control.codec import BadControl, Codec, values
from stagewire.control.questions import (
    VERSION,
    EventsQuery,
    HandshakeBegun,
    HandshakeNow,
    Scale,
    Scaled,
    StatusQuery,
)
from stagewire.control.status import CountersStatus, EventsStatus, GatewayStatus
from stagewire.environment import Environment
from stagewire.limits import LATEST
from stagewire.pipe import zmq_ends
from stagewire.pipe.names import CONTROL, STATUS_QUERY, Pipe

TIMEOUT_MS: Final = 1000
_QUESTIONS: Final[Codec[object]] = Codec(VERSION, [StatusQuery, EventsQuery, Scale, HandshakeNow])
_ANSWERS: Final[Codec[object]] = Codec(VERSION, [GatewayStatus, CountersStatus, EventsStatus, Scaled, HandshakeBegun])
T = TypeVar("T")
_CLEAN: Final = frozenset([int, bool, bytes, NoneType])


class OtherVersion(Exception):  # noqa: N818 - a state of the host, told to the operator
    """Says that the running processes speak another version of the control messages."""

    def __init__(self, theirs: int) -> None:
        super().__init__(
            f"the running gateway speaks version {theirs} of the control messages, this command version "
            f"{VERSION}: run `stagewire down` and `up` with this command"
        )


class Asking(Generic[T]):
    """Asks a service in steps: a command can do other work while it connects, and while the answer comes."""

    def __init__(self, environment: Environment, pipe: Pipe, question: object, answer: type[T]) -> None:
        self._question, self._kind = question, answer
        self._sent: bool | None = None
        self._context = zmq.Context()
        self._line = zmq_ends.connect(self._context, environment.run, pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        self._context.term()

    def send(self) -> bool:
        """Sends the question, once; says whether the service took it within TIMEOUT_MS."""
        if self._sent is None:
            self._sent = bool(self._line.poll(TIMEOUT_MS, zmq.POLLOUT))
            if self._sent:
                self._line.send(_QUESTIONS.pack(self._question))
        return self._sent

    def answer(self) -> T | None:
        """Waits up to TIMEOUT_MS for the answer; None without one. Raises OtherVersion."""
        if not self.send() or not self._line.poll(TIMEOUT_MS):
            return None
        try:
            said = _ANSWERS.unpack_untrusted(self._line.recv())
        except BadControl as bad:
            if bad.version is not None:
                raise OtherVersion(bad.version) from None
            return None
        return _cleaned(said) if isinstance(said, self._kind) else None


def asking_key_service(environment: Environment) -> Asking[GatewayStatus]:
    """Asks for the status of the interface, its stages and its peers."""
    return Asking(environment, CONTROL, StatusQuery(), GatewayStatus)


def asking_status_service(environment: Environment) -> Asking[CountersStatus]:
    """Asks for the counters."""
    return Asking(environment, STATUS_QUERY, StatusQuery(), CountersStatus)


def key_service(environment: Environment) -> GatewayStatus | None:
    """Returns the status of the interface, its stages and its peers; None when key-service is away."""
    with asking_key_service(environment) as asking:
        return asking.answer()


def status_service(environment: Environment) -> CountersStatus | None:
    """Returns the counters; None when status-service is away."""
    with asking_status_service(environment) as asking:
        return asking.answer()


def events(environment: Environment, after: int, kinds: tuple[str, ...], most: int) -> EventsStatus | None:
    """Returns the first events of these kinds after an id; None when status-service is away."""
    return _ask(environment, STATUS_QUERY, EventsQuery(after, kinds, most), EventsStatus)


def scale(environment: Environment, workers: int) -> Scaled | None:
    """Tells key-service the wanted number of workers. Returns its answer; None when key-service is away."""
    return _ask(environment, CONTROL, Scale(workers), Scaled)


def handshake_now(environment: Environment, public_key: bytes) -> HandshakeBegun | None:
    """Has key-service begin a handshake with a peer. Returns its answer; None when key-service is away."""
    return _ask(environment, CONTROL, HandshakeNow(public_key), HandshakeBegun)


def _ask(environment: Environment, pipe: Pipe, question: object, answer: type[T]) -> T | None:
    with Asking(environment, pipe, question, answer) as asking:
        return asking.answer()


def _cleaned(value: Any) -> Any:
    """Cleans every text in an answer, as each may be a stage's or a peer's, and replaces numbers that are no time by 0."""
    kind = type(value)
    if kind is str:
        return logs.cleaned(value)
    if kind is float:
        return value if abs(value) < LATEST else 0.0  # no number is less either
    if kind is tuple:
        cleaned = tuple(map(_cleaned, value))
        return value if all(map(is_, cleaned, value)) else cleaned
    if kind in _CLEAN or not is_dataclass(value):
        return value
    # Nearly all is clean, and 10,000 peers have 140,000 fields.
    changed = {}
    for name, before in zip(value.__dataclass_fields__, values(value), strict=True):
        if type(before) not in _CLEAN and (after := _cleaned(before)) is not before:
            changed[name] = after
    return replace(value, **changed) if changed else value  # type: ignore[type-var]  # it is no class
