"""Asks the services of an interface how they are, and tells them."""

import json
from typing import Any

import zmq

from stagewire.environment import Environment
from stagewire.ipc import control, endpoints
from stagewire.ipc.codec import BadControl
from stagewire.ipc.control import Scale, Scaled, StatusQuery, StatusReply

TIMEOUT_MS = 1000
Answer = dict[str, Any]


class OtherVersion(Exception):  # noqa: N818 - a state of the host, told to the operator
    """What runs speaks another version of our messages than we."""

    def __init__(self, theirs: int) -> None:
        super().__init__(
            f"what runs speaks version {theirs} of the control messages, this command version {control.VERSION}: "
            "neither understands the other; `stagewire down` with the version that runs, and `up` with this one"
        )


def key_service(environment: Environment) -> Answer | None:
    """The interface, its stages, its peers; None when key-service is away."""
    question, read = control.FROM_STAGE.pack(StatusQuery()), control.FROM_KEY.unpack_untrusted
    return _ask(environment, zmq.DEALER, endpoints.CONTROL, question, read)


def status_service(environment: Environment) -> Answer | None:
    """The counters; None when status-service is away."""
    question, read = control.TO_STATUS.pack(StatusQuery()), control.TO_STATUS.unpack_untrusted
    return _ask(environment, zmq.REQ, endpoints.STATUS_QUERY, question, read)


def scale(environment: Environment, workers: int) -> Scaled | None:
    """Tells key-service how many workers there are to be; None when it is away."""
    question, read = control.FROM_STAGE.pack(Scale(workers)), control.FROM_KEY.unpack_untrusted
    answer = _exchange(environment, zmq.DEALER, endpoints.CONTROL, question, read)
    return answer if isinstance(answer, Scaled) else None


def _ask(environment: Environment, kind: int, pipe: str, question: bytes, read: Any) -> Answer | None:
    answer = _exchange(environment, kind, pipe, question, read)
    if not isinstance(answer, StatusReply):
        return None
    parsed: Answer = json.loads(answer.text)
    return parsed


def _exchange(environment: Environment, kind: int, pipe: str, question: bytes, read: Any) -> object:
    with zmq.Context() as context:
        pipes = endpoints.Pipes(context, environment.run)
        with pipes.connect(kind, pipe) as line:
            if not line.poll(TIMEOUT_MS, zmq.POLLOUT):
                return None
            line.send(question)
            if not line.poll(TIMEOUT_MS):
                return None
            try:
                return read(line.recv())
            except BadControl as bad:
                if bad.version is not None:
                    raise OtherVersion(bad.version) from None
                return None
