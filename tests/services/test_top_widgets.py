"""`stagewire top` with textual: the picture at two sizes, each key, hostile names, an end, and no cost without it."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from tests.services.test_top import NAMES, sample
from textual.pilot import Pilot

from stagewire.config.peer_names import cleaned
from stagewire.environment import Environment
from stagewire_cli import top, top_widgets
from stagewire_cli.failures import Failed, NotUp
from stagewire_cli.top_model import Sample
from stagewire_cli.top_widgets import MOST, Top

Run = Pilot[None]


class Gateway:
    """Answers with one sample after another, a second apart, and counts the questions."""

    def __init__(self, names: list[str] = NAMES) -> None:
        self.names, self.at, self.asked = names, 0.0, list[str]()
        self.failed: Failed | None = None

    def sample(self) -> Sample:
        if self.failed is not None:
            raise self.failed
        self.at += 1.0
        return sample(self.at, names=self.names, lost=int(40 * self.at))

    def why(self, public_key: str) -> list[str]:
        self.asked.append(public_key)
        return [f"[red]{public_key}[/]: give it the right key", "  why: [bold]the key is wrong"]


def tried(does: Callable[[Run, Top], Awaitable[None]], gateway: Gateway, size: tuple[int, int] = (80, 24)) -> Top:
    """Runs `does` while the picture stands there. Only a key or a look of the test renews it."""
    app = Top(gateway.sample(), gateway.sample, gateway.why, interval=3600.0)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await does(pilot, app)

    asyncio.run(run())
    return app


def shown(app: Top) -> list[str]:
    return [strip.text for strip in app.screen._compositor.render_strips()]


def look(app: Top, gateway: Gateway) -> None:
    app.model.take(gateway.sample())
    app.draw()


def peers(app: Top) -> list[str]:
    """The first column of the table."""
    head = next(number for number, line in enumerate(shown(app)) if line.startswith(" peer "))
    return [line[1:16].rstrip() for line in shown(app)[head + 1 :]]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (76, 15), (20, 3)])
def test_the_picture_fills_the_terminal(width: int, height: int) -> None:
    gateway = Gateway()

    async def does(pilot: Run, app: Top) -> None:
        look(app, gateway)
        await pilot.pause()
        lines = shown(app)
        assert len(lines) == height
        assert all(cell_len(line) == width for line in lines)
        if height < 24:
            return
        whole = "\n".join(lines)
        for told in ("wg0 up", "host ▶│ tun      ●○", "device 1 ●○", "60%", "Zoë", "56.0 M", "by rate", "q quit"):
            assert told in whole, told
        assert ("192.0.2.3:51820" in whole) is (width >= 120)
        assert lines[-1].startswith("↵ why")

    tried(does, gateway, (width, height))


def test_keys_and_clicks_sort_and_the_cursor_stays_on_its_peer() -> None:
    gateway = Gateway()

    async def does(pilot: Run, app: Top) -> None:
        look(app, gateway)
        await pilot.pause()
        assert peers(app)[0] == "Zoë"
        await pilot.press("down", "down")
        assert app._chosen == app._rows[2].public_key
        chosen = app._chosen
        await pilot.press("r")
        assert peers(app)[0] == "Anna's phone"
        assert app._rows[app.query_one(top_widgets.Peers).cursor_row].public_key == chosen
        await pilot.press("r", "s", "s", "s", "s", "s")
        assert app.view.sort == "name"
        assert peers(app)[0] == "Anna's phone"
        await pilot.click(top_widgets.Peers, offset=(22, 0))
        assert app.view.sort == "in"
        assert "by in" in shown(app)[0]

    tried(does, gateway)


def test_the_filter_is_typed_and_cleared() -> None:
    gateway = Gateway()

    async def does(pilot: Run, app: Top) -> None:
        await pilot.press("slash", *"BASEQ", "backspace", *"l", "enter")
        await pilot.pause()
        assert [row.name for row in app._rows] == ["office Basel"]
        assert "filter 'BASEl'" in shown(app)[0]
        await pilot.press("slash", "q", "slash")
        await pilot.pause()
        assert app.view.filter == "q/"
        assert "no peer matches the filter" in "\n".join(shown(app))
        await pilot.press("escape")
        await pilot.pause()
        assert len(app._rows) == len(NAMES)

    tried(does, gateway)


def test_a_pause_stops_the_questions() -> None:
    gateway = Gateway()
    app = Top(gateway.sample(), gateway.sample, gateway.why, interval=0.01)

    async def run() -> None:
        async with app.run_test() as pilot:
            while gateway.at < 5:
                await pilot.pause(0.01)
            await pilot.press("p")
            assert "PAUSED" in shown(app)[0]
            await pilot.pause(0.05)
            before = gateway.at
            await pilot.pause(0.1)
            assert gateway.at == before

    asyncio.run(run())


def test_a_peer_tells_its_newest_reason_and_enter_asks_why() -> None:
    gateway = Gateway()

    async def does(pilot: Run, app: Top) -> None:
        look(app, gateway)
        await pilot.pause()
        at = [row.name for row in app._rows].index("laptop")
        await pilot.press(*["down"] * at)
        await pilot.pause()
        whole = "\n".join(shown(app))
        assert "laptop (" in whole
        assert "inner_source_not_allowed: " in whole
        await pilot.press("enter")
        while "asks why" in "\n".join(shown(app)) or not gateway.asked:
            await pilot.pause(0.01)
        assert gateway.asked == [app._chosen]
        whole = "\n".join(shown(app))
        assert f"[red]{app._chosen}[/]: give it the right key" in whole
        assert "  why: [bold]the key is wrong" in whole
        await pilot.press("up")
        await pilot.pause()
        assert "give it the right key" not in "\n".join(shown(app))

    tried(does, gateway)


def test_a_hostile_name_is_no_markup_and_breaks_no_line() -> None:
    hostile = ["[bold red]x[/]", "[@click=app.quit]q[/]", "\x1b[2J\u202eabc", "ab" * 5000]
    gateway = Gateway([cleaned(name) for name in hostile])

    async def does(pilot: Run, app: Top) -> None:
        for _ in hostile:
            await pilot.press("down")
            lines = shown(app)
            assert all(cell_len(line) == 80 for line in lines)
            assert not any(ord(letter) < 32 or letter in "\u202e\u2066" for line in lines for letter in line)
        assert {"[bold red]x[/]", "[@click=app.qu…"} <= {line[1:16].rstrip() for line in lines}

    tried(does, gateway)


def test_of_very_many_peers_the_first_are_shown_and_the_filter_finds_the_others() -> None:
    gateway = Gateway([f"peer {number:04}" for number in range(MOST + 100)])

    async def does(pilot: Run, app: Top) -> None:
        assert len(app._rows) == MOST
        assert f"the first {MOST} of {MOST + 100}" in shown(app)[0]
        await pilot.press("slash", *"0599", "enter")
        await pilot.pause()
        assert [row.name for row in app._rows] == ["peer 0599"]

    tried(does, gateway)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_a_key_ends_it_with_0(key: str) -> None:
    async def does(pilot: Run, app: Top) -> None:
        await pilot.press(*(["slash"] if key == "ctrl+c" else []), key)

    app = tried(does, Gateway())
    assert app.return_code == 0
    assert app.failed is None


def test_an_interface_that_went_down_ends_it_and_is_said() -> None:
    gateway = Gateway()
    app = Top(gateway.sample(), gateway.sample, gateway.why, interval=0.01)
    gateway.failed = NotUp("wg0")

    async def run() -> None:
        async with app.run_test():
            while app.failed is None:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert app.failed is gateway.failed


def test_an_answer_without_key_service_leaves_what_was_said_last() -> None:
    gateway = Gateway()

    async def does(pilot: Run, app: Top) -> None:
        app.model.take(replace(gateway.sample(), gateway=None))
        app.draw()
        await pilot.pause()
        whole = "\n".join(shown(app))
        assert "key-service does not answer" in whole
        assert "office Basel" in whole

    tried(does, gateway)


@pytest.mark.parametrize("plain", [True, False])
def test_without_textual_or_with_plain_the_picture_is_drawn_by_rich(
    plain: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = []
    monkeypatch.setattr(top, "_live", lambda _environment, interval: drawn.append(interval))
    monkeypatch.delitem(sys.modules, "stagewire_cli.top_widgets")
    monkeypatch.delattr("stagewire_cli.top_widgets")
    if not plain:
        monkeypatch.setitem(sys.modules, "textual", None)
        monkeypatch.setitem(sys.modules, "textual.app", None)
    top.live(Environment.read({"STAGEWIRE_RUN": str(tmp_path)}, "wg0"), 2.0, plain=plain)
    assert drawn == [2.0]


def test_other_commands_do_not_import_textual() -> None:
    program = """
import sys
from stagewire_cli import program
from stagewire_cli import top, show, why, events, history, doctor, manual
sys.exit(any(name.partition(".")[0] == "textual" for name in sys.modules))"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
