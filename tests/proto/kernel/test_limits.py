"""Both kernels hold a limited peer to the same rate and quota, and leave other peers alone."""

import pytest
from tests.proto import byhand
from tests.proto.byhand import T
from tests.proto.kernel.test_opening import frame_of
from tests.proto.kernel.visits import NAMES, PLACES, Both, Side, prefixes_of, theirs

from stagewire.pipe import trains
from stagewire.proto.worker import PeerFacts

pytest.importorskip("stagewire.proto.kernel.opening")

RATE = 800_000
LIMITED, FREE = 1, 2


def limit(side: Side, *, rate: int = 0, cap: int | None = None, held_back: bool = False) -> None:
    facts = PeerFacts(
        NAMES[LIMITED], prefixes_of(LIMITED), home=True, endpoint=PLACES[LIMITED], rates=(rate, rate), cap=cap,
        held_back=held_back,
    )  # fmt: skip
    side.worker.set_peer(facts, T)


def limited(*, rate: int = 0, cap: int | None = None, held_back: bool = False) -> Both:
    both = Both()
    for side in (both.plain, both.compiled):
        limit(side, rate=rate, cap=cap, held_back=held_back)
    return both


def plain_train(peer: int, count: int, size: int = 1000) -> bytes:
    packets = [byhand.v4("10.99.0.1", f"10.0.0.{peer}", size=size) for _ in range(count)]
    return b"".join(trains.plain_parts(packets, T))


def cipher_train(peer: int, first: int, count: int, size: int = 1000) -> bytes:
    inner = byhand.v4(f"10.0.0.{peer}", size=size)
    inner += bytes(-len(inner) % 16)
    return frame_of([(PLACES[peer], [theirs(peer, first + number, inner) for number in range(count)])])


@pytest.mark.parametrize("rate", [0, RATE])
def test_a_rate_from_the_os_holds_in_both(rate: int) -> None:
    both = limited(rate=rate)
    for _ in range(3):
        both.plain_in(plain_train(LIMITED, 40), plain_train(FREE, 40))
    dropped = both.compiled.counters["rate_exceeded"]
    assert (dropped > 0) == (rate > 0)
    assert both.compiled.worker.owners.tunnel(NAMES[FREE]).tx_bytes > 120 * 1000  # type: ignore[union-attr]


@pytest.mark.parametrize("rate", [0, RATE])
def test_a_rate_from_the_network_holds_in_both(rate: int) -> None:
    both = limited(rate=rate)
    for turn in range(3):
        both.cipher_in(cipher_train(LIMITED, 40 * turn, 40), cipher_train(FREE, 40 * turn, 40))
    dropped = both.compiled.counters["rate_exceeded"]
    assert (dropped > 0) == (rate > 0)
    refused = [side.worker.owners.tunnel(NAMES[LIMITED]).refused for side in (both.plain, both.compiled)]  # type: ignore[union-attr]
    assert refused == [dropped * 1032] * 2, "it uses up no quota"


def test_a_quota_ends_in_both_at_the_visit_that_uses_it_up() -> None:
    both = limited(cap=30_000)
    for turn in range(3):
        both.cipher_in(cipher_train(LIMITED, 20 * turn, 20), cipher_train(FREE, 20 * turn, 20))
        both.plain_in(plain_train(LIMITED, 20))
    assert both.compiled.counters["quota_reached"] > 0
    assert 30_000 <= both.compiled.worker.owners.tunnel(NAMES[LIMITED]).tx_bytes + 20_000 < 62_000  # type: ignore[union-attr]


def test_a_quota_that_ends_within_a_train_of_many_runs_ends_with_the_visit_in_both() -> None:
    """The compiled kernel once let the rest of the visit pass alone."""
    both = limited(cap=30_000)
    inner = byhand.v4(f"10.0.0.{LIMITED}", size=1000)
    inner += bytes(-len(inner) % 16)
    for turn in range(2):
        runs = [
            (PLACES[LIMITED], [theirs(LIMITED, 40 * turn + 10 * run + n, inner) for n in range(10)]) for run in range(4)
        ]
        both.cipher_in(frame_of(runs))
    assert both.compiled.counters["quota_reached"] == 40


def test_a_quota_that_is_not_used_up_keeps_the_compiled_way() -> None:
    both = limited(cap=10**9)
    both.cipher_in(cipher_train(LIMITED, 0, 20))
    assert not both.compiled.worker._diverted
    assert both.compiled.worker.opening is not None
    assert both.compiled.worker.opening.aside() == []


@pytest.mark.parametrize("rate", [0, RATE])
@pytest.mark.parametrize("cap", [None, 0, 10**9])
def test_what_is_held_back_has_its_own_reason_in_both(rate: int, cap: int | None) -> None:
    both = limited(rate=rate, cap=cap, held_back=True)
    both.cipher_in(cipher_train(LIMITED, 0, 20), cipher_train(FREE, 0, 20))
    both.plain_in(plain_train(LIMITED, 20))
    counted = both.compiled.counters
    assert (counted["held_back"], counted["quota_reached"], counted["rate_exceeded"]) == (40, 0, 0)
    for side in (both.plain, both.compiled):
        limit(side, rate=rate, cap=cap)
    both.plain_in(plain_train(LIMITED, 3))
    assert (counted["held_back"], counted["quota_reached"]) == (40, 3 if cap == 0 else 0)
