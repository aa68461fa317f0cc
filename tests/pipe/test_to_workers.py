"""Tests that each worker gets its own trains, also while workers come and go."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from tests.pipe.pipe import TRANSPORTS, pipes_at
from tests.turning import turn_until

from stagewire.loop import Loop, boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import PLAIN_OUT
from stagewire.pipe.to_workers import ToWorkers
from stagewire.pipe.train_builder import PlainBuilder
from stagewire.pipe.trains import REST
from stagewire.proto.packets import fields
from stagewire.reasons import Reasons

ITEM = bytes(fields.VNET_HEADER) + b"a packet"


class Feed:
    """tun-service's end of `plain-out`, and every worker's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
        self.stack = ExitStack()
        pipes = self.stack.enter_context(pipes_at(folder, monkeypatch, transport))
        (folder / "device").mkdir()
        self.loop, self.counters = Loop(), Reasons()
        self.workers = ToWorkers(self.loop, pipes, PLAIN_OUT, PlainBuilder, self.counters)
        self.pulls = [self.stack.enter_context(pipes.bind(PLAIN_OUT, number)) for number in range(3)]
        self.stack.callback(pipes.close_listeners)
        self.stack.callback(self.workers.connect, 0)

    def connect(self, workers: int) -> None:
        self.workers.connect(workers)
        turn_until(self.loop, lambda: all(queue._sender.connected for queue in self.workers._queues), "connections")

    def put(self, worker: int, packets: int = 1) -> None:
        train = self.workers.builder(worker)
        for _ in range(packets):
            train.room()[: len(ITEM)] = ITEM
            train.add(len(ITEM), 1)
        self.workers.last = worker

    def arrived(self, worker: int) -> int:
        """Packets of the next train at a worker."""
        pull: zmq.Socket[bytes] = self.pulls[worker]
        turn_until(self.loop, lambda: pull.poll(0), f"a train at worker {worker}")
        return len(trains.unpack_plain_untrusted(pull.recv(), boot_time()))


@pytest.fixture(params=TRANSPORTS)
def feed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    made = Feed(tmp_path, monkeypatch, request.param)
    with made.stack:
        yield made


def test_each_worker_gets_its_own_train(feed: Feed) -> None:
    feed.connect(3)
    for worker in range(3):
        feed.put(worker, worker + 1)
    feed.workers.send(boot_time())
    assert [feed.arrived(worker) for worker in range(3)] == [1, 2, 3]
    feed.workers.send(boot_time())
    feed.put(1)
    feed.workers.send(boot_time())
    assert feed.arrived(1) == 1
    assert not any(pull.poll(0) for pull in feed.pulls)
    assert not feed.counters


def test_packets_for_a_worker_that_has_no_pipe_are_counted(feed: Feed) -> None:
    feed.connect(1)
    feed.put(2, 5)
    feed.workers.send(boot_time())
    assert feed.counters == {"unknown_worker": 5}
    feed.workers.send(boot_time())
    assert feed.counters == {"unknown_worker": 5}


def test_nothing_is_read_into_the_train_of_a_worker_that_has_left(feed: Feed) -> None:
    """A visit ends at a full train. A train that no pipe takes would end each visit."""
    feed.connect(3)
    feed.put(2)
    feed.connect(2)
    assert feed.workers.last == 0
    assert not feed.workers.builder(2).count
    feed.put(1)
    feed.connect(2)
    assert feed.workers.last == 1
    feed.workers.send(boot_time())
    assert feed.arrived(1) == 1
    assert not feed.counters


def test_the_first_visit_after_a_rest_takes_one_packet_and_no_two_visits_in_a_row_do(feed: Feed) -> None:
    visit = feed.workers.visit
    assert visit(1000.0)
    feed.workers.alone = True
    assert not visit(1000.0 + 2 * REST)
    assert visit(1000.0 + 4 * REST)
    assert not visit(1000.0 + 4.5 * REST)
