"""Asks the services of an interface how they are."""

import json
from typing import Any

import zmq

from stagewire.environment import Environment
from stagewire.ipc import control, endpoints
from stagewire.ipc.codec import BadControl
from stagewire.ipc.control import StatusQuery, StatusReply

TIMEOUT_MS = 1000
Answer = dict[str, Any]


def key_service(environment: Environment) -> Answer | None:
    """The interface, its stages, its peers; None when key-service is away."""
    question, read = control.FROM_STAGE.pack(StatusQuery()), control.FROM_KEY.unpack_untrusted
    return _ask(environment, zmq.DEALER, endpoints.CONTROL, question, read)


def status_service(environment: Environment) -> Answer | None:
    """The counters; None when status-service is away."""
    question, read = control.TO_STATUS.pack(StatusQuery()), control.TO_STATUS.unpack_untrusted
    return _ask(environment, zmq.REQ, endpoints.STATUS_QUERY, question, read)


def _ask(environment: Environment, kind: int, pipe: str, question: bytes, read: Any) -> Answer | None:
    with zmq.Context() as context:
        pipes = endpoints.Pipes(context, environment.run)
        with pipes.connect(kind, pipe) as line:
            if not line.poll(TIMEOUT_MS, zmq.POLLOUT):
                return None
            line.send(question)
            if not line.poll(TIMEOUT_MS):
                return None
            try:
                answer = read(line.recv())
            except BadControl:
                return None
    if not isinstance(answer, StatusReply):
        return None
    parsed: Answer = json.loads(answer.text)
    return parsed
