"""Services start in any order: each waits for the others, and none of them has to be first."""

import itertools
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.system.test_restart import BACK_WITHIN, Pair, Side

from lab.stagewire import executable
from lab.wait import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

ORDERS = list(
    itertools.permutations(f"{stage}-service:{stage}-service_00" for stage in ("tun", "device", "conn", "key"))
)
PARTS = 4


class Operator:
    """Types into one supervisorctl, whose start would cost more than what it is told to do."""

    def __init__(self, side: Side) -> None:
        self._side = side
        conf = side.gateway.run_directory / "wg0" / "supervisord.conf"
        self._shell = side.namespace.popen(executable("supervisorctl"), "-c", conf, stdin=subprocess.PIPE)

    def _type(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{line}\n".encode())
        self._shell.stdin.flush()

    def start_in_order(self, order: tuple[str, ...]) -> None:
        """Each is at work, as far as it can be alone, before the next is begun."""
        self._type(f"stop {' '.join(order)}")
        stopped = {name for program in order for name in program.split(":")}
        until(lambda: not {*self._side.pids()} & stopped, BACK_WITHIN, "all to be stopped")
        for program in order:
            self._start(program)

    def _start(self, program: str) -> None:
        log = self._side.gateway.log_directory / "wg0" / f"{program.rpartition(':')[2]}.log"
        size = log.stat().st_size
        self._type(f"start {program}")
        until(lambda: "event=started" in log.read_text()[size:], BACK_WITHIN, f"{program} to start")

    def close(self) -> None:
        """Leaves the shell."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait(5)


@pytest.fixture(scope="module")
def pair(shared_directory: Path) -> Iterator[Pair]:
    with Pair(shared_directory, workers=1) as made:
        yield made
        made.no_nonce_twice()


@pytest.fixture(scope="module")
def operators(pair: Pair) -> Iterator[list[Operator]]:
    made = [Operator(side) for side in pair.sides]
    yield made
    for operator in made:
        operator.close()


@pytest.fixture(scope="module")
def plan() -> list[tuple[str, ...]]:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed).sample(ORDERS, len(ORDERS))


@pytest.mark.parametrize("part", range(PARTS))
def test_every_order_works_unattended(
    pair: Pair, operators: list[Operator], plan: list[tuple[str, ...]], part: int
) -> None:
    """Both gateways at once, each in another order than the other."""
    for orders in zip(plan[part :: 2 * PARTS], plan[part + PARTS :: 2 * PARTS], strict=True):
        print(orders)
        with ThreadPoolExecutor() as both:
            list(both.map(Operator.start_in_order, operators, orders))
        pair.wait_for_traffic()
    pair.no_nonce_twice()
