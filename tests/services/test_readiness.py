"""Whether traffic can flow, as `stagewire ready` and systemd hear it."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stagewire.control import query
from stagewire.control.status import CountersStatus
from stagewire.environment import Environment
from stagewire_cli import readiness
from stagewire_cli.failures import NotUp
from stagewire_cli.foreground import Foreground


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")


@pytest.mark.parametrize(
    ("counted", "gateway", "reasons"),
    [
        (CountersStatus(()), None, []),
        (CountersStatus((), unready=("a", "b")), None, ["a", "b"]),
        (None, SimpleNamespace(link_up=True, waiting_for=()), []),
        (None, SimpleNamespace(link_up=False, waiting_for=()), ["the link is down"]),
        (None, SimpleNamespace(link_up=None, waiting_for=("conn 0",)), ["waits for conn 0"]),
        (None, None, ["neither status-service nor key-service answers"]),
    ],
)
def test_status_service_says_it_and_without_it_key_service(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, counted: Any, gateway: Any, reasons: list[str]
) -> None:
    with pytest.raises(NotUp):
        readiness.why_not(environment)
    environment.run.mkdir()
    monkeypatch.setattr(query, "status_service", lambda _: counted)
    monkeypatch.setattr(query, "key_service", lambda _: gateway)
    assert readiness.why_not(environment) == reasons


def test_systemd_hears_of_each_change_once(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []
    monkeypatch.setattr(readiness, "why_not", lambda _: reasons)
    foreground = Foreground(environment, cast("Any", None), cast("Any", None))
    foreground._look()  # nobody listens
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        foreground._look()
        reasons.append("the link is down")
        foreground._look()
        foreground._look()
        reasons.clear()
        foreground._look()
        assert [systemd.recv(999) for _ in range(2)] == [
            b"STATUS=no traffic can flow: the link is down", b"STATUS=traffic can flow"
        ]  # fmt: skip
        with pytest.raises(BlockingIOError):
            systemd.recv(999)
