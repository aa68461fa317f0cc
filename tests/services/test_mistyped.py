"""Which words are meant as commands, and which may name an interface."""

import pytest

from stagewire_cli import mistyped
from stagewire_cli.__main__ import MODULE_OF


@pytest.mark.parametrize(
    ("word", "meant"),
    [("show", "status"), ("peers", "peer list"), ("logs", "/var/log"), ("stop", "down"), ("start", "up"),
     ("Show", "status"), ("statsu", "status"), ("dwon", "down"), ("UP", "up"), ("relaod", "reload"), ("delete", "down"),
     ("showconf", "wg"), ("help", "--help"), ("version", "--version"), ("list-peers", "peer list"), ("save_config", "save"),
     ("shwo", "status"), ("keygen", "genkey"), ("wg-quick", "--help"), ("uo", "up"), ("pu", "up"),
     ("wg7.conf", "up wg7.conf"), ("add", "peer add NAME"), ("list", "peer list"), ("export", "backup")],
)  # fmt: skip
def test_a_word_that_looks_like_a_command_is_refused_with_a_suggestion(word: str, meant: str) -> None:
    said = mistyped.refusal(word, MODULE_OF)
    assert said is not None
    assert repr(word) in said
    assert meant in said


@pytest.mark.parametrize(
    "name",
    ["wg0", "wg1", "tun0", "utun", "vpn", "office", "home", "mullvad", "proton", "server", "client", "corp", "lan", "mesh",
     "nb0", "kilo0", "wt0", "sw0", "evilcorp", "tunnel", "de-fra-001", "show1", "status2", "a", "eth-x", "x.y", "wgs-prod",
     "site-link", "new-york", "w"],
)  # fmt: skip
def test_a_name_is_none(name: str) -> None:
    assert mistyped.refusal(name, MODULE_OF) is None
