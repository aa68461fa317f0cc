"""What `steady` decides about an ordinary peer is what Python's steps decide."""

from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.proto import byhand
from tests.proto.byhand import T
from tests.proto.kernel.test_opening import frame_of
from tests.proto.kernel.visits import NAMES, PLACES, index_of, keys_of, theirs

from stagewire.pipe import trains
from stagewire.proto import constants as c
from stagewire.proto.kernel.choice import Kernel, choose
from stagewire.proto.kernel.rule import COMPILED
from stagewire.proto.tunnel import Output, TunnelSettings
from stagewire.proto.worker import PeerFacts, Worker

pytest.importorskip("stagewire.proto.kernel.steady")

PEERS = 2
Step = tuple[str, float, list[int]]
"""(what happens, seconds before it, peers of its packets)"""


def by_python() -> Kernel:
    """Returns the compiled kernel, which leaves each peer to Python's steps."""

    def settle(opened: Any, _agenda: Any, other: Any, _now: float) -> None:
        for entry in opened:
            other(*entry)

    return replace(choose(COMPILED), seal=lambda sealing, *_: list(range(len(sealing.owners()))), settle=settle)


class Pair:
    """Gives two workers the same, and compares them."""

    def __init__(self, **facts: Any) -> None:
        self.workers = [self._worker(kernel, **facts) for kernel in (choose(COMPILED), by_python())]
        self.now = T
        self.counters = [0] * PEERS

    @staticmethod
    def _worker(
        kernel: Kernel, *, initiator: bool, age: float, rekey: float, counter: int, keepalive: int, cap: int | None
    ) -> Worker:
        worker = Worker(lambda: 0.1, kernel=kernel)
        worker.set_settings(TunnelSettings(rekey_after_time=rekey))
        for peer in range(PEERS):
            networks = (IPv4Network(f"10.0.0.{peer}"),)
            worker.set_peer(PeerFacts(NAMES[peer], networks, True, keepalive, PLACES[peer], cap=cap), T)
            for index, created in ((index_of(peer) + 1, T - age - 30), (index_of(peer), T - age)):
                session = kernel.session(index, 7, *keys_of(peer), initiator=initiator, created=created)
                worker.install(NAMES[peer], session, None, T)
                session.send_counter = counter
        return worker

    def take(self, step: Step) -> None:
        what, later, peers = step
        self.now += later
        frames = [self._frame(what, peer) for peer in peers]
        outs, made = [], []
        for worker in self.workers:
            if what == "act":
                outs.append(worker.act(self.now))
                continue
            taker: Any = worker.sealing if what == "out" else worker.opening
            for frame in frames:
                assert taker.add(frame, 0, len(frame), self.now, trains.MAX_AGE)
            outs.append(worker.seal((), self.now) if what == "out" else worker.open((), self.now))
            made.append(self._trains(outs[-1]))
        assert outs[0].runs == outs[1].runs
        assert outs[0].packets == outs[1].packets
        assert outs[0].events == outs[1].events
        assert made[:1] == made[1:]
        assert self._state(self.workers[0]) == self._state(self.workers[1])

    def _frame(self, what: str, peer: int) -> bytes:
        if what == "out":
            return trains.pack_plain([byhand.v4("10.1.1.1", destination=f"10.0.0.{peer}")], self.now)
        self.counters[peer] += 1
        inner = b"" if what == "empty" else byhand.v4(f"10.0.0.{peer}")
        index = index_of(peer) + (what == "old")
        place = PLACES[2] if what == "moved" else PLACES[peer]
        return frame_of([(place, [theirs(peer, self.counters[peer], inner, index)])], self.now)

    def _trains(self, out: Output) -> list[Any]:
        """Copies the trains, which are good until the worker's next call; the order of peers within one may differ."""
        read = trains.unpack_cipher_untrusted
        sealed: list[Any] = sorted(run for train, _ in out.sealed for run in read(bytes(train), self.now))
        return [sealed, [bytes(train) for train, _ in out.opened]]

    @staticmethod
    def _state(worker: Worker) -> list[Any]:
        return [
            +worker.drops,
            worker.next_deadline(),
            [
                (
                    tunnel.tx_bytes, tunnel.rx_bytes, tunnel.endpoint, tunnel.timers.due, list(tunnel.staged._packets),
                    worker._agenda.standing.get(tunnel), [(each.index, each.send_counter) for each in tunnel.slots],
                )
                for tunnel in worker.owners.tunnels()
            ],
        ]  # fmt: skip


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["out", "in", "out", "in", "empty", "old", "moved", "act"]),
        st.sampled_from([0.0, 0.001, 1.0, 9.9, 10.0, 15.2, 60.0]),
        st.lists(st.integers(0, PEERS - 1), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=12,
)
FACTS = st.fixed_dictionaries({
    "initiator": st.booleans(),
    "age": st.sampled_from([0.0, 50.0, 119.9, 120.0, 120.1, 165.0, 179.9, 180.0]),
    "rekey": st.sampled_from([120.0, 30.0]),
    "counter": st.sampled_from([
        0, c.REKEY_AFTER_MESSAGES - 2, c.REKEY_AFTER_MESSAGES, c.REJECT_AFTER_MESSAGES - 2, c.REJECT_AFTER_MESSAGES,
    ]),
    "keepalive": st.sampled_from([0, 25]),
    "cap": st.sampled_from([None, None, 500]),
})  # fmt: skip
USUAL = {"initiator": True, "age": 0.0, "rekey": 120.0, "counter": 0, "keepalive": 0, "cap": None}


@settings(deadline=None)
@given(FACTS, STEPS)
@example(USUAL, [("out", 0.0, [0, 1]), ("in", 0.001, [0, 0]), ("act", 10.0, [0]), ("out", 0.0, [1])])
@example({**USUAL, "counter": c.REKEY_AFTER_MESSAGES - 1}, [("out", 0.0, [0]), ("out", 0.0, [0])])
@example({**USUAL, "age": 119.0}, [("out", 1.0, [0]), ("out", 0.001, [0])])
@example({**USUAL, "rekey": 30.0}, [("out", 30.0, [0]), ("out", 0.001, [0])])
def test_both_decide_the_same(facts: dict[str, Any], steps: list[Step]) -> None:
    pair = Pair(**facts)
    for step in steps:
        pair.take(step)


def test_ordinary_peers_need_no_python() -> None:
    kernel = choose(COMPILED)
    left: list[Any] = []

    def seal(*arguments: Any) -> list[int]:
        assert kernel.seal is not None
        left.extend(kernel.seal(*arguments))
        return []

    def settle(opened: Any, agenda: Any, _other: Any, now: float) -> None:
        assert kernel.settle is not None
        kernel.settle(opened, agenda, lambda *entry: left.append(entry), now)

    pair = Pair(**USUAL)
    for worker in pair.workers:
        worker.kernel = replace(kernel, seal=seal, settle=settle)
    pair.take(("out", 0.0, [0, 1, 0]))
    pair.take(("in", 0.001, [0, 1, 0]))
    assert not left
    pair.take(("empty", 0.001, [0]))
    assert left
