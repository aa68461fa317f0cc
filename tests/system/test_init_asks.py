"""`stagewire init` on a terminal: what it asks, hostile answers, and an operator that leaves; nothing is half made."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.namespaces import Namespace
from lab.terminal import Terminal
from stagewire import config

pytestmark = pytest.mark.system

EXIT = "Shall clients reach the internet"
PLACE = "Address or name where clients find this gateway"
NETWORKS = "Networks of the tunnel"
DNS = "DNS servers of the clients"
QUESTIONS = (EXIT, PLACE, NETWORKS, DNS)


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with Namespace("init") as namespace:
        namespace.run("ip", "link", "set", "lo", "up")
        namespace.run("ip", "address", "add", "192.0.2.7/24", "dev", "lo")
        yield namespace


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "wg7.conf"


@pytest.fixture
def terminal(host: Namespace, file: Path) -> Iterator[Terminal]:
    file.parent.mkdir()
    argv = host.entering([Path(sys.executable).parent / "stagewire", "init", file])
    with Terminal(argv, 100, 30, {"PYTHONDONTWRITEBYTECODE": "1"}) as opened:
        yield opened


def answer(terminal: Terminal, *answers: str) -> None:
    for question, said in zip(QUESTIONS, answers, strict=False):
        terminal.until(question, 20)
        terminal.press(f"{said}\r")


def nothing_is_left(file: Path) -> bool:
    return not list(file.parent.iterdir())


def test_answers_make_a_gateway(terminal: Terminal, file: Path) -> None:
    answer(terminal, "n", "vpn.example.org", "10.9.0.0/24", "10.9.0.1")
    assert terminal.end(20) == 0
    made = config.load(file)
    assert (made.exit, made.client.dns) == ("off", ("10.9.0.1",))
    assert str(made.client_endpoint) == f"vpn.example.org:{made.listen_port}"
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"next: stagewire up {file}" in terminal.text.replace("\r\n", "")
    assert "PrivateKey" not in terminal.text


def test_enter_takes_what_is_suggested(terminal: Terminal, file: Path) -> None:
    answer(terminal, "", "", "", "")
    assert terminal.end(20) == 0
    made = config.load(file)
    assert (made.exit, str(made.client_endpoint)) == ("on", f"192.0.2.7:{made.listen_port}")
    assert len(made.addresses) == 2


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (("n", "vpn example org"), "is no place of a gateway"),
        (("n", "vpn.example.org:99999"), "is no place of a gateway"),
        (("n", "x" * 3000), "is no place of a gateway"),
        (("n", "$(reboot)"), "is no place of a gateway"),
        (("n", "\x1b[2Jvpn"), "is no place of a gateway"),
        (("n", "", "10.9.0.0/33"), "must be a prefix"),
        (("n", "", "10.9.0.0/24, 10.10.0.0/24"), "one network of each family"),
        (("n", "", "10.9.0.0/31"), "no room for clients"),
        (("n", "", "[Peer]"), "must be a prefix"),
        (("n", "", "", "nowhere..example"), "must be"),
        (("n", "", "", "10.9.0.1\x0bPostUp = id"), "must be"),
    ],
)  # fmt: skip
def test_a_bad_answer_is_named_and_asked_for_again(
    terminal: Terminal, file: Path, answers: tuple[str, ...], why: str
) -> None:
    answer(terminal, *answers)
    terminal.until("Error: ", 20)
    assert nothing_is_left(file)
    terminal.press("\r" * len(QUESTIONS[len(answers) - 1 :]))
    assert terminal.end(20) == 0
    said = terminal.text.replace("\r\n", "")
    assert why in said
    assert "Traceback" not in said
    made = config.load(file)
    assert (made.post_up, made.client.dns) == ((), ())
    assert str(made.client_endpoint).startswith("192.0.2.7:")


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["^C", "^D"])
def test_an_operator_that_leaves_leaves_nothing(terminal: Terminal, file: Path, at: int, key: str) -> None:
    answer(terminal, *["n", "", "", ""][:at])
    terminal.until(QUESTIONS[at], 20)
    for _ in range(20):  # Python overlooks a signal that comes just before it waits for a line, until the next one
        terminal.press(key)
        terminal.watch(1)
        if terminal.process.poll() is not None:
            break
    assert terminal.end(20) != 0
    assert "Traceback" not in terminal.text
    assert terminal.is_restored()
    assert nothing_is_left(file)
