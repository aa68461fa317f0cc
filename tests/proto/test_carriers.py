"""Which worker packets go to and who may deliver them fits into one number, for every worker that there may be."""

import pytest

from stagewire.limits import MAX_WORKERS
from stagewire.proto import carriers


@pytest.mark.parametrize("worker", [0, 1, 31, MAX_WORKERS - 1])
@pytest.mark.parametrize("also", [(), (0,), (5, 62), (MAX_WORKERS - 1,)])
def test_what_is_packed_is_told(worker: int, also: tuple[int, ...]) -> None:
    packed = carriers.pack(worker, also)
    assert carriers.worker_of(packed) == worker
    assert {each for each in range(MAX_WORKERS) if carriers.may_deliver(packed, each)} == {worker, *also}


@pytest.mark.parametrize(("worker", "also"), [(-1, ()), (MAX_WORKERS, ()), (0, (-1,)), (0, (1 << 62,))])
def test_a_worker_that_cannot_be_is_refused(worker: int, also: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a worker's number"):
        carriers.pack(worker, also)
