"""When a change is answered: by what the stages say, by their deaths, and by the time."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.services.test_odd_stamps import Lines

from key_service import answers
from key_service.answers import WITHIN, Answers
from key_service.hub import Member
from stagewire.control.confirm import Cleared, Confirm, Confirmed
from stagewire.control.messages import FromKey
from stagewire.pipe.trains import MAX_AGE

NOW = 1000.0


@dataclass
class Hub:
    """Two workers, tun, conn and host; `gone` can't be told anything."""

    members: dict[tuple[str, int], Member] = field(default_factory=dict)
    gone: set[tuple[str, int]] = field(default_factory=set)
    told: list[tuple[str, int, FromKey]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for stage, number in (("tun", 0), ("conn", 0), ("host", 0), ("device", 0), ("device", 1)):
            self.members[stage, number] = Member(b"", stage, number, 1, 1, NOW, NOW)

    def numbers(self, stage: str) -> list[int]:
        return [number for each, number in self.members if each == stage]

    def member(self, stage: str, number: int = 0) -> Member | None:
        return self.members.get((stage, number))

    def tell(self, stage: str, number: int, message: FromKey) -> bool:
        self.told.append((stage, number, message))
        return (stage, number) not in self.gone


class House:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        monkeypatch.setattr(answers, "boot_time", lambda: self.now)
        self.hub, self.log = Hub(), Lines()
        self.answers = Answers(self.hub, self.log)  # type: ignore[arg-type]
        self.given: list[str] = []

    def hold(self, name: str = "change", prefixes: int = 1, *, host: bool = False) -> int:
        """Returns the number that the stages are asked by."""
        self.answers.hold(lambda: self.given.append(name), prefixes, host=host)
        confirm: Any = self.hub.told[-1][2]
        assert isinstance(confirm, Confirm)
        return confirm.number

    def confirm(self, number: int, *stages: tuple[str, int]) -> None:
        for stage in stages:
            self.answers.on_confirmed(self.hub.members[stage], Confirmed(number), self.now)

    def clear(self, number: int, *workers: int) -> None:
        for stage in ("tun", "conn"):
            for worker in workers:
                self.answers.on_cleared(self.hub.members[stage, 0], Cleared(worker, number), self.now)

    def later(self, seconds: float) -> None:
        self.now += seconds
        due = self.answers.next_deadline()
        if due is not None and due <= self.now:
            self.answers.act(self.now)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


ALL = (("tun", 0), ("conn", 0), ("device", 0), ("device", 1))


@pytest.mark.parametrize("last", ["tun", "conn", "device 0", "device 1", "mark"])
def test_an_answer_waits_for_each_stage_and_each_mark(house: House, last: str) -> None:
    number = house.hold()
    lacking = [stage for stage in ALL if last in {stage[0], f"{stage[0]} {stage[1]}"}]
    house.confirm(number, *(stage for stage in ALL if stage not in lacking))
    house.clear(number, 0)
    if last != "mark":
        house.clear(number, 1)
    assert house.given == []
    house.confirm(number, *lacking)
    house.clear(number, 1)
    assert house.given == ["change"]
    assert house.answers.next_deadline() is None


def test_host_service_is_asked_where_it_has_a_part(house: House) -> None:
    number = house.hold(host=True)
    house.confirm(number, *ALL)
    house.clear(number, 0, 1)
    assert house.given == []
    house.confirm(number, ("host", 0))
    assert house.given == ["change"]
    house.hub.told.clear()
    house.hold(prefixes=answers.MANY_ROUTES + 1, host=True)
    assert "host" not in {stage for stage, _, _ in house.hub.told}


def test_a_later_word_counts_for_earlier_changes(house: House) -> None:
    house.hold("first")
    number = house.hold("second")
    house.confirm(number, *ALL)
    house.clear(number - 1, 0, 1)
    assert house.given == ["first"]
    house.clear(number, 0, 1)
    assert house.given == ["first", "second"]


def test_a_stage_that_is_away_is_not_waited_for(house: House) -> None:
    house.hub.gone = set(ALL)
    for member in house.hub.members.values():
        member.heard = NOW - 60
    house.hold()
    assert house.given == ["change"]


def test_the_packets_of_a_worker_that_just_died_may_still_pass(house: House) -> None:
    house.hub.gone = {("device", 1)}
    number = house.hold()
    house.confirm(number, *ALL[:3])
    house.clear(number, 0)
    house.later(MAX_AGE - 0.01)
    assert house.given == []
    house.later(0.02)
    assert house.given == ["change"]


def test_a_worker_that_dies_is_not_waited_for(house: House) -> None:
    number = house.hold()
    house.confirm(number, *ALL[:3])
    house.clear(number, 0)
    house.later(0.5)
    assert house.given == []
    house.answers.on_gone(1, house.now)
    house.later(MAX_AGE + 0.01)
    assert house.given == ["change"]
    assert house.log.said == []


def test_a_lost_mark_costs_no_more_than_the_age_of_a_train(house: House) -> None:
    number = house.hold()
    house.confirm(number, *ALL)
    house.later(MAX_AGE + 0.01)
    assert house.given == ["change"]


def test_a_hung_stage_does_not_block_for_ever(house: House) -> None:
    number = house.hold(prefixes=0)
    house.confirm(number, *ALL[1:])
    house.clear(number, 0, 1)
    house.later(WITHIN - 0.01)
    assert house.given == []
    house.later(0.02)
    assert house.given == ["change"]
    assert [line["lacking"] for line in house.log.said] == ["tun 0"]


def test_a_successor_is_asked_again_and_its_predecessor_not_believed(house: House) -> None:
    number = house.hold()
    assert list(house.answers.again("tun")) == [Confirm(number)]
    assert list(house.answers.again("status")) == []
    house.confirm(number, *ALL[1:])
    house.clear(number, 0, 1)
    former = house.hub.members["tun", 0]
    house.hub.members["tun", 0] = Member(b"2", "tun", 0, 2, 2, NOW, NOW)
    house.answers.on_confirmed(former, Confirmed(number), house.now)
    assert house.given == []
    house.confirm(number, ("tun", 0))
    assert house.given == ["change"]
    assert list(house.answers.again("tun")) == []
