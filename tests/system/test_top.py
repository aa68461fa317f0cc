"""`stagewire top` at a real gateway: on a terminal of its own, and into a pipe."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.whys import works

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.stagewire import executable
from lab.terminal import Terminal
from lab.wait import until

pytestmark = pytest.mark.system

ANNA = Spoke(1, name="Anna's phone")


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("o") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    with (
        Hub(network.b, shared_directory, {"anna": ANNA}) as gateway,
        gateway.wireguard_go(ANNA, network.a, Topology.B4),
    ):
        assert works(network.a, ANNA.gateway_inner[0])
        yield gateway


def test_a_pipe_gets_one_picture_of_the_whole(hub: Hub) -> None:
    until(lambda: hub.gateway.status()["peers"][0]["last_handshake_unix_s"], 5, "the handshake to be told")
    told = ""

    def every_pipe_is_told() -> bool:
        nonlocal told
        told = hub.gateway.command("top", hub.name, "--interval", "0.5").stdout
        return " ? " not in told

    until(every_pipe_is_told, 10, "each stage to report its pipes")
    assert "\x1b" not in told
    assert told.startswith(" wg0 up   port 51820   1 of 1 peers with a session")
    assert re.search(r"│ device 0 ● +│─+ 0 B ─+▶│ conn     ● +│▶ peers", told)
    assert re.search(r"^ Anna's phone +\S.* (\d+|1\d\d) s ", told, re.MULTILINE)
    assert "key" in told


def run(hub: Hub, *options: str) -> Terminal:
    argv = hub.namespace.entering([executable("stagewire"), "top", hub.name, "--interval", "0.5", *options])
    return Terminal(argv, 80, 24, hub.gateway.env)


@pytest.mark.parametrize("options", [[], ["--plain"]], ids=["textual", "plain"])
def test_keys_sort_filter_pause_and_quit_and_the_terminal_is_as_before(hub: Hub, options: list[str]) -> None:
    with run(hub, *options) as terminal:
        terminal.until("by rate", 10)
        terminal.press("s")
        terminal.until("by in", 5)
        terminal.press("p")
        terminal.until("PAUSED", 5)
        terminal.press("p/nobody\r")
        terminal.until("no peer matches the filter", 5)
        terminal.press("\x1b")
        terminal.until("Anna's phone", 5)
        assert not terminal.is_restored()
        if not options:
            terminal.press("\r")
            terminal.until("Anna's phone (", 5)
            terminal.until("all is well from here", 5)
        terminal.press("q")
        assert terminal.end() == 0
        assert terminal.is_restored()
        assert "\x1b[?25h" in terminal.text[-400:]  # the cursor is back
        assert "\x1b[?1049l" in terminal.text[-400:]  # and what was on the screen before


@pytest.mark.parametrize("options", [[], ["--plain"]], ids=["textual", "plain"])
@pytest.mark.parametrize("ended_by", ["\x03", signal.SIGTERM])
def test_an_interrupted_top_leaves_the_terminal_as_before(
    hub: Hub, ended_by: str | signal.Signals, options: list[str]
) -> None:
    with run(hub, *options) as terminal:
        terminal.until("by rate", 10)
        if isinstance(ended_by, str):
            terminal.press(ended_by)
        else:
            terminal.process.send_signal(ended_by)
        assert terminal.end() == (0 if isinstance(ended_by, str) else 128 + signal.SIGTERM)
        assert terminal.is_restored()
        assert "Traceback" not in terminal.text
