"""What `stagewire init` asks, and what becomes of the answers."""

from pathlib import Path

import pytest

from stagewire import config
from stagewire_cli import init


def test_the_answers_are_in_the_file(tmp_path: Path) -> None:
    answers = {
        "Address or name where clients find this gateway": "vpn.example.org:4500",
        "Networks of the tunnel": "10.9.0.0/24",
        "DNS servers of the clients, if any": "10.9.0.1, corp.example",
    }
    path = tmp_path / "wg7.conf"
    init.make(path, None, None, None, None, lambda question, **_options: answers.pop(question), exits=False)
    made = config.load(path)
    assert not answers
    assert str(made.client_endpoint) == "vpn.example.org:4500"
    assert [str(each) for each in made.addresses] == ["10.9.0.1/24"]
    assert made.client.dns == ("10.9.0.1", "corp.example")


def test_who_only_presses_enter_gets_what_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def enter(question: str, *, default: str, **_options: object) -> str:
        asked.append((question, default))
        return default

    monkeypatch.setattr(init, "own_address", lambda: "192.0.2.7")
    path = tmp_path / "wg7.conf"
    port, place = init.make(path, None, None, None, None, enter, exits=False)
    made = config.load(path)
    assert str(place) == f"192.0.2.7:{port}"
    assert ", ".join(str(each.network) for each in made.addresses) == asked[1][1]
    assert made.client.dns == ()
    assert len(asked) == 3


def test_what_an_option_says_is_not_asked_for(tmp_path: Path) -> None:
    def never(question: str, **_options: object) -> str:
        raise AssertionError(question)

    init.make(tmp_path / "wg7.conf", "vpn.example.org", "10.9.0.0/24", "", 4500, never, exits=False)
    assert config.load(tmp_path / "wg7.conf").listen_port == 4500
