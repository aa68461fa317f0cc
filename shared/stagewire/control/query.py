"""Asks an interface's services for their status, and key-service for a number of workers, for a command."""

from dataclasses import is_dataclass, replace
from operator import is_
from typing import Any, Final, TypeVar

import zmq

from stagewire import logs
from stagewire.control.codec import BadControl, Codec
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
from stagewire.pipe.names import CONTROL, STATUS_QUERY, Pipe
from stagewire.pipe.pipes import Pipes

TIMEOUT_MS: Final = 1000
_QUESTIONS: Final[Codec[object]] = Codec(VERSION, [StatusQuery, EventsQuery, Scale, HandshakeNow])
_ANSWERS: Final[Codec[object]] = Codec(VERSION, [GatewayStatus, CountersStatus, EventsStatus, Scaled, HandshakeBegun])
T = TypeVar("T")
_LATEST: Final = 253_402_300_799.0
"""s of UNIX time in the year 9999, after which no date can be written."""


class OtherVersion(Exception):  # noqa: N818 - a state of the host, told to the operator
    """Says that the running processes speak another version of the control messages."""

    def __init__(self, theirs: int) -> None:
        super().__init__(
            f"the running gateway speaks version {theirs} of the control messages, this command version "
            f"{VERSION}: run `stagewire down` and `up` with this command"
        )


def key_service(environment: Environment) -> GatewayStatus | None:
    """Returns the status of the interface, its stages and its peers; None when key-service is away."""
    return _ask(environment, CONTROL, StatusQuery(), GatewayStatus)


def status_service(environment: Environment) -> CountersStatus | None:
    """Returns the counters; None when status-service is away."""
    return _ask(environment, STATUS_QUERY, StatusQuery(), CountersStatus)


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
    with zmq.Context() as context:
        pipes = Pipes(context, environment.run)
        with pipes.connect(pipe) as line:
            if not line.poll(TIMEOUT_MS, zmq.POLLOUT):
                return None
            line.send(_QUESTIONS.pack(question))
            if not line.poll(TIMEOUT_MS):
                return None
            try:
                said = _ANSWERS.unpack_untrusted(line.recv())
            except BadControl as bad:
                if bad.version is not None:
                    raise OtherVersion(bad.version) from None
                return None
            return _cleaned(said) if isinstance(said, answer) else None


def _cleaned(value: Any) -> Any:
    """Cleans every text in an answer, as each may be a stage's or a peer's, and replaces numbers that are no time by 0."""
    if isinstance(value, str):
        return logs.cleaned(value)
    if isinstance(value, float):
        return value if abs(value) < _LATEST else 0.0  # no number is less either
    if isinstance(value, tuple):
        cleaned = tuple(map(_cleaned, value))
        return value if all(map(is_, cleaned, value)) else cleaned
    if value is None or isinstance(value, int | bytes):
        return value
    if not is_dataclass(value) or isinstance(value, type):
        return value
    # Nearly all is clean, and 10,000 peers have 140,000 fields.
    changed = {}
    for name in value.__dataclass_fields__:
        before = getattr(value, name)
        if (after := _cleaned(before)) is not before:
            changed[name] = after
    return replace(value, **changed) if changed else value
