"""Questions of a command to the services of an interface."""

from pathlib import Path

import pytest
import zmq

from stagewire.control import query
from stagewire.environment import Environment
from stagewire.pipe import zmq_ends
from stagewire.pipe.names import CONTROL


def test_a_service_that_is_away_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`top` sends to both services before it reads: the time limit would pass twice."""
    monkeypatch.setattr(query, "TIMEOUT_MS", 10)
    environment = Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")
    path = zmq_ends.path(environment.run, CONTROL)
    path.parent.mkdir(parents=True)
    with query.asking_key_service(environment) as asking:
        assert not asking.send()
        with zmq.Context() as context, context.socket(zmq.ROUTER) as late:
            late.bind(f"ipc://{path}")
            assert asking._line.poll(10_000, zmq.POLLOUT)
            assert asking.answer() is None
            assert not late.poll(100)
