"""One command at a time starts or ends an interface."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.wait import until
from stagewire.environment import Environment
from stagewire_cli import turn
from stagewire_cli.failures import Failed


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path / "run")})


@contextmanager
def others(environment: Environment, count: int, order: list[int]) -> Iterator[list[threading.Thread]]:
    def wait(number: int) -> None:
        with turn.take(environment):
            order.append(number)
            order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    try:
        yield threads
    finally:
        for each in threads:
            each.join()


def test_each_waits_for_the_one_before_and_nothing_stays(environment: Environment) -> None:
    order: list[int] = []
    with turn.take(environment) as ours:
        assert ours
        with others(environment, 8, order) as threads:
            assert order == []
            assert all(each.is_alive() for each in threads)
            lock = environment.run.with_name("wg0.turn")
            assert lock.exists()
            lock.unlink()  # as its holder does at the end: whoever waits at the old file takes no turn by it
            until(lambda: len(order) == 16, 10, "all to have had their turn")
    assert order[::2] == order[1::2], "none came between another's two words"
    assert list(environment.run.parent.iterdir()) == []


def test_a_turn_that_is_not_needed_any_more_is_not_waited_for(environment: Environment) -> None:
    with turn.take(environment), turn.take(environment, unless=lambda: True) as ours:
        assert not ours


def test_a_place_where_no_turn_can_be_taken_is_named(environment: Environment) -> None:
    environment.run.parent.write_text("no folder")
    with pytest.raises(Failed, match=str(environment.run.parent)), turn.take(environment):
        pass
