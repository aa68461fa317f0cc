"""Runs `stagewire top`: asks the services from time to time, reads keys, and has the screen drawn."""

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Final

from rich.console import Console
from rich.live import Live

from stagewire.control import query
from stagewire.environment import Environment
from stagewire.process import slots
from stagewire_cli import host_facts, top_view
from stagewire_cli.failures import NotUp
from stagewire_cli.top_model import SORTS, Model, Sample, View

_LOOK: Final = 0.25
"""s between two looks at the terminal's size."""
_PAGE: Final = 10
_MANY: Final = 500
"""Peers from which a single picture goes without colours."""
_LONGEST: Final = 64
"""Letters of a filter."""
_ESCAPES: Final = {b"[A": "up", b"[B": "down", b"[5~": "page up", b"[6~": "page down", b"": "escape"}
_QUIT: Final = frozenset({"q", "Q", "\x03", "\x04"})


def sample(environment: Environment) -> Sample:
    """Asks the services. Raises NotUp if none of them lives."""
    with query.asking_key_service(environment) as of_keys, query.asking_status_service(environment) as of_counters:
        of_keys.send()
        of_counters.send()
        held = slots.held(environment.run)
        gateway = of_keys.answer()
        counted = of_counters.answer()
    if gateway is None and not held:
        raise NotUp(environment.interface)
    used = {(place, pid): host_facts.used(pid) for place, pid in held.items()}
    return Sample(time.monotonic(), time.time(), gateway, counted, used)


def once(environment: Environment, interval: float | None) -> None:
    """Prints one picture at once, with the rates that the services tell; with `interval`, those of so many s."""
    model = Model()
    model.take(sample(environment))
    if interval is not None:
        time.sleep(interval)
        model.take(sample(environment))
    width = shutil.get_terminal_size().columns
    console = Console(width=width, highlight=False, emoji=False, markup=False)
    many = model.gateway is not None and len(model.gateway.peers) > _MANY
    console.print(top_view.draw(model, View(), width, None, peers=not many))
    if many:
        console.file.writelines(f"{line}\n" for line in top_view.lines_of_many(model, width))


def live(environment: Environment, interval: float, *, plain: bool = False) -> None:
    """Shows the picture until the operator quits, with textual if it can be had. Raises NotUp once the interface is down."""
    show = _live
    if not plain:
        with suppress(ImportError):  # no textual, or one that is too old
            from stagewire_cli import top_widgets

            show = top_widgets.live
    show(environment, interval)


def _live(environment: Environment, interval: float) -> None:
    """Redraws with rich alone."""
    console = Console(highlight=False, emoji=False, markup=False)
    model, view = Model(), View()
    model.take(sample(environment))
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _end)
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as screen:
        due = time.monotonic() + min(1.0, interval)  # the first rates come soon
        drawn = (View(), (0, 0), 0.0)
        while True:
            state = (view, console.size, model.last.at)
            if state != drawn:
                screen.update(top_view.draw(model, view, *console.size), refresh=True)
                drawn = state
            if select.select([sys.stdin], [], [], max(0.0, min(_LOOK, due - time.monotonic())))[0]:
                for key in _pressed():
                    if key in _QUIT and not (view.typing and key in "qQ"):
                        return
                    view = after(view, key)
            if time.monotonic() >= due:
                due = time.monotonic() + interval
                if not view.paused:
                    model.take(sample(environment))


def _end(ending: int, _frame: FrameType | None) -> None:
    """Ends the program by way of all that puts the terminal back."""
    sys.exit(128 + ending)


def after(view: View, key: str) -> View:
    """Returns the operator's choices after a key."""
    if view.typing:
        return _typed(view, key)
    sorts = list(SORTS)
    match key:
        case "s":
            return replace(view, sort=sorts[(sorts.index(view.sort) + 1) % len(sorts)], first=0)
        case "r":
            return replace(view, reverse=not view.reverse, first=0)
        case "p" | " ":
            return replace(view, paused=not view.paused)
        case "/":
            return replace(view, typing=True, filter="", first=0)
        case "escape":
            return replace(view, filter="", first=0)
        case "down" | "j":
            return replace(view, first=view.first + 1)
        case "up" | "k":
            return replace(view, first=max(0, view.first - 1))
        case "page down":
            return replace(view, first=view.first + _PAGE)
        case "page up":
            return replace(view, first=max(0, view.first - _PAGE))
    return view


def _typed(view: View, key: str) -> View:
    match key:
        case "\r" | "\n":
            return replace(view, typing=False)
        case "escape":
            return replace(view, typing=False, filter="")
        case "\x7f" | "\b":
            return replace(view, filter=view.filter[:-1])
    if len(key) == 1 and key.isprintable() and len(view.filter) < _LONGEST:
        return replace(view, filter=view.filter + key)
    return view


@contextmanager
def _keys() -> Iterator[None]:
    """Has the terminal hand over each key at once, unseen, and puts it back afterwards."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed() -> list[str]:
    """Returns the keys that were pressed. A terminal that is gone counts as the key that quits."""
    data = os.read(sys.stdin.fileno(), 256)
    if not data:
        return ["q"]
    keys: list[str] = []
    while data:
        if data[:1] == b"\x1b":
            found = max((each for each in _ESCAPES if data[1:].startswith(each)), key=len)
            keys.append(_ESCAPES[found])
            data = data[1 + len(found) :]
        else:
            text = data.partition(b"\x1b")[0]
            keys += text.decode(errors="ignore")
            data = data[len(text) :]
    return keys
