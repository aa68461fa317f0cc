"""What `stagewire apply --confirm` says in the end: that it holds, that all went back, or why neither is so."""

import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stagewire_cli import confirming
from stagewire_cli.failures import Failed
from stagewire_cli.key_door import Trial

ENVIRONMENT = cast("Any", SimpleNamespace(interface="wg0"))
Stands = Callable[[float], Trial]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Waits for 5 s of a clock of its own, while key-service says how the trial stands at each time."""

    def wait(stands: Stands, *, up: Callable[[float], bool] = lambda _now: True) -> list[str]:
        now, said = [0.0], list[str]()
        monkeypatch.setattr(confirming, "boot_time", lambda: now[0])
        sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)  # noqa: E731
        monkeypatch.setattr(confirming, "time", SimpleNamespace(sleep=sleep))
        monkeypatch.setattr(confirming, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: False)))
        monkeypatch.setattr(confirming, "bring_up", SimpleNamespace(is_up=lambda _environment: up(now[0])))

        def trial(_environment: object, number: str) -> Trial:
            assert number == "17"
            return stands(now[0])

        monkeypatch.setattr(confirming, "key_door", SimpleNamespace(trial=trial))
        before = signal.getsignal(signal.SIGTERM)
        try:
            confirming.wait(ENVIRONMENT, "17", 5, said.append)
        finally:
            signal.signal(signal.SIGTERM, before)
        return said

    return wait


def _dead(_now: float) -> Trial:
    raise Failed("key-service doesn't answer")


def test_a_confirmation_elsewhere_is_seen(waits: Callable[..., list[str]]) -> None:
    said = waits(lambda now: Trial(0.0, "kept") if now > 2 else Trial(5 - now, ""))
    assert said[-1] == "confirmed: what was applied stays in force"


@pytest.mark.parametrize("at", [4.5, 5.5])  # key-service began to count a little earlier
def test_without_one_all_went_back(waits: Callable[..., list[str]], at: float) -> None:
    with pytest.raises(Failed, match="all is as it was before"):
        waits(lambda now: Trial(1.0, "") if now < at else Trial(0.0, "back"))


def test_the_end_of_the_interface_is_no_confirmation(waits: Callable[..., list[str]]) -> None:
    with pytest.raises(Failed, match="not confirmed: the interface was taken down"):
        waits(lambda now: Trial(5 - now, "") if now < 2 else _dead(now), up=lambda now: now < 3)
    with pytest.raises(Failed, match="not confirmed, and nothing goes back any more"):
        waits(lambda now: Trial(5 - now, "") if now < 2 else Trial(0.0, ""))


def test_a_key_service_that_dies_meanwhile_is_waited_for(waits: Callable[..., list[str]]) -> None:
    def stands(now: float) -> Trial:
        return _dead(now) if 2 < now < 7 else Trial(5 - now, "") if now < 7 else Trial(0.0, "back")

    with pytest.raises(Failed, match="all is as it was before"):
        waits(stands)


def test_a_key_service_that_cannot_go_back_is_said(waits: Callable[..., list[str]]) -> None:
    with pytest.raises(Failed, match="has not gone back yet"):
        waits(lambda _now: Trial(0.001, ""))
    with pytest.raises(Failed, match="does not answer"):
        waits(_dead)


def test_an_interrupted_command_says_what_follows(waits: Callable[..., list[str]]) -> None:
    def stands(now: float) -> Trial:
        if now > 2:
            raise KeyboardInterrupt
        return Trial(5 - now, "")

    with pytest.raises(Failed, match="not confirmed: all goes back within 3 s, unless you run `stagewire confirm wg0`"):
        waits(stands)
