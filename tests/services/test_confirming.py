"""What `stagewire apply --confirm` says in the end: that it holds, that all went back, or that it could not go back."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stagewire_cli import confirming
from stagewire_cli.failures import Failed

ENVIRONMENT = cast("Any", SimpleNamespace(interface="wg0"))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], list[str]]:
    """Waits for 5 s of a clock of its own, while key-service says what is left at each time."""

    def wait(left: Callable[[float], float]) -> list[str]:
        now, said = [0.0], list[str]()
        monkeypatch.setattr(
            confirming,
            "time",
            SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)),
        )
        monkeypatch.setattr(confirming, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: False)))
        monkeypatch.setattr(confirming, "key_door", SimpleNamespace(left_to_confirm=lambda _environment: left(now[0])))
        confirming.wait(ENVIRONMENT, 5, said.append)
        return said

    return wait


def test_a_confirmation_elsewhere_is_seen(waits: Callable[..., list[str]]) -> None:
    assert waits(lambda now: 0.0 if now > 2 else 5 - now)[-1] == "confirmed"


def test_without_one_all_went_back(waits: Callable[..., list[str]]) -> None:
    with pytest.raises(Failed, match="all is as it was before"):
        waits(lambda now: max(0.0, 5.5 - now))


def test_a_key_service_that_dies_meanwhile_is_waited_for(waits: Callable[..., list[str]]) -> None:
    def left(now: float) -> float:
        if 2 < now < 7:
            raise Failed("key-service doesn't answer")
        return max(0.0, 5.0 - now)

    with pytest.raises(Failed, match="all is as it was before"):
        waits(left)


def test_a_key_service_that_cannot_go_back_is_said(waits: Callable[..., list[str]]) -> None:
    with pytest.raises(Failed, match="has not gone back yet"):
        waits(lambda _now: 0.001)
