"""Shows `stagewire top` with textual, which `stagewire[top]` brings: the same picture, with a table to move in.

Texts reach textual as rich's `Text`, which it takes as they are: a name is never markup.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Final

from rich.console import Group
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Footer, Input, Static

from stagewire import stats
from stagewire.environment import Environment
from stagewire_cli import top, top_view
from stagewire_cli.failures import Failed
from stagewire_cli.top_model import Model, PeerRow, Sample, View

MOST: Final = 500
"""Rows of the table; the filter finds the other peers."""
_SOON: Final = 1.0
"""s until the second look, which brings the first rates."""
_ORDERS: Final = {"peer": "name", "in bit/s": "in", "out bit/s": "out", "handshake": "handshake", "lost/s": "lost"}
"""The order that a click on a column's head chooses."""


def live(environment: Environment, interval: float) -> None:
    """Shows the picture until the operator quits. Raises NotUp once the interface is down."""
    first = top.sample(environment)
    app = Top(first, lambda: top.sample(environment), lambda key: _why(environment, key), interval)
    app.run()
    if app.failed is not None:
        raise app.failed
    if app.return_code:
        sys.exit(app.return_code)


def _why(environment: Environment, public_key: str) -> list[str]:
    from stagewire_cli import why

    return why.lines(why.answer(environment, public_key, trying=False))


class Peers(DataTable[Text]):
    """Holds the peers, a line for each."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "why", key_display="↵"),
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
    ]


class Top(App[None]):
    """Draws the samples that `ask` returns, and what `why` tells of a peer. Both may block: they have a thread."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { overflow: hidden; }
    Screen, #above, DataTable, #peer, Input { background: ansi_default; color: ansi_default; }
    #above, #peer { height: auto; }
    #peer { max-height: 7; padding: 0 1; }
    DataTable { height: 1fr; min-height: 2; scrollbar-size-vertical: 1; }
    Input { display: none; height: 1; border: none; padding: 0 1; }
    Input.typing { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c,ctrl+d", "quit", "quit", show=False, priority=True),
        Binding("p,space", "choose('p')", "pause", key_display="p"),
        Binding("s", "choose('s')", "sort"),
        Binding("r", "choose('r')", "reverse"),
        Binding("slash", "type", "filter", key_display="/", priority=True),
        Binding("escape", "clear", "clear", key_display="esc", priority=True),
    ]

    def __init__(
        self, first: Sample, ask: Callable[[], Sample], why: Callable[[str], list[str]], interval: float
    ) -> None:
        super().__init__(ansi_color=True)
        self.model, self.view = Model(), View()
        self.model.take(first)
        self.failed: Failed | None = None
        """Why the picture ended, if not at the operator's wish."""
        self._ask, self._why, self._interval = ask, why, interval
        self._rows: list[PeerRow] = []
        self._chosen = ""
        """Public key of the peer under the cursor."""
        self._told: tuple[str, list[str]] = ("", [])
        """A public key, and what was told of it."""

    def compose(self) -> ComposeResult:
        yield Static(id="above")
        yield Peers(cursor_type="row")
        yield Static(id="peer")
        yield Input(placeholder="a name, key, endpoint or reason", max_length=64, compact=True)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for ending in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(ending, self.exit, None, 128 + ending)
        self._table.focus()
        self.run_worker(self._follow(), exit_on_error=True)

    async def _follow(self) -> None:
        due = time.monotonic() + min(_SOON, self._interval)
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = time.monotonic() + self._interval
            if self.view.paused:
                continue
            try:
                self.model.take(await asyncio.to_thread(self._ask))
            except Failed as failed:
                self.failed = failed
                self.exit()
                return
            self.draw()

    # --- the picture ----------------------------------------------------------------------------------------

    def on_resize(self, _event: events.Resize) -> None:
        self._lay_out()
        self.draw()

    @property
    def _table(self) -> Peers:
        return self.query_one(Peers)

    def _lay_out(self) -> None:
        """Gives the table columns as wide as the terminal."""
        table, found = self._table, top_view.columns(self.size.width)
        left = self.size.width - 1 - sum((0 if each.ratio else each.least) + 2 * table.cell_padding for each in found)
        parts = sum(each.ratio for each in found)
        table.clear(columns=True)
        for each in found:
            width = left * each.ratio // parts if each.ratio else each.least
            table.add_column(Text(each.name, justify=each.justify), width=max(1, width), key=each.name)

    def draw(self) -> None:
        """Draws the model's state."""
        peers = self.model.peers(self.view)
        self._rows = peers[:MOST]
        corner = top_view.chosen(self.view)
        if len(peers) > MOST:
            corner = Text.assemble((f"the first {MOST} of {len(peers):,}  ", "dim"), corner)
        width = max(self.size.width, top_view.LEAST_WIDTH)
        above = top_view.above_peers(self.model, width, self.size.height, corner)
        self.query_one("#above", Static).update(Group(*above))
        self._fill()
        self._tell()

    def _fill(self) -> None:
        """Writes what has changed into the table. The cursor stays on its peer, unless it is on the first line."""
        table, first = self._table, self._table.cursor_row == 0
        while table.row_count > len(self._rows):
            table.remove_row(str(table.row_count - 1))
        for number, row in enumerate(self._rows):
            drawn = self._drawn(row)
            if number >= table.row_count:
                table.add_row(*drawn, key=str(number))
                continue
            before = table.get_row_at(number)
            for column, cell in enumerate(drawn):
                if (cell, cell.style) != (before[column], before[column].style):
                    table.update_cell_at(Coordinate(number, column), cell)
        keys = [row.public_key for row in self._rows]
        if not first and self._chosen in keys:
            table.move_cursor(row=keys.index(self._chosen))
        self._look_under_cursor()

    def _drawn(self, row: PeerRow) -> list[Text]:
        cells = top_view.cells(row, self.size.width)
        for cell, column in zip(cells, top_view.columns(self.size.width), strict=True):
            cell.justify, cell.no_wrap, cell.overflow = column.justify, True, "ellipsis"
        return cells

    def _look_under_cursor(self) -> None:
        at = self._table.cursor_row
        self._chosen = self._rows[at].public_key if at < len(self._rows) else ""

    def _tell(self) -> None:
        """Tells of the peer under the cursor: what was answered to `why`, or what its newest reason means."""
        row = next((row for row in self._rows if row.public_key == self._chosen), None)
        if row is None:
            lines = ["no peer matches the filter" if self.view.filter else "no peers"]
        elif self._told[0] == row.public_key:
            lines = self._told[1]
        else:
            lines = [_of(row)]
        self.query_one("#peer", Static).update(_text(lines))

    # --- keys -----------------------------------------------------------------------------------------------

    def action_choose(self, key: str) -> None:
        self._set(top.after(self.view, key))

    def _set(self, view: View) -> None:
        self.view = view
        self.draw()

    def action_type(self) -> None:
        """Opens the filter's field at once, for keys may wait behind this one."""
        field = self.query_one(Input)
        if field.has_focus:
            field.insert_text_at_cursor("/")
            return
        field.add_class("typing")
        self.screen.set_focus(field)

    def action_clear(self) -> None:
        """Ends the filter, and the answer to `why`."""
        self._told = ("", [])
        self.query_one(Input).value = ""
        self._end_typing()
        self._set(replace(self.view, filter=""))

    def _end_typing(self) -> None:
        self.query_one(Input).remove_class("typing")
        self._table.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._set(replace(self.view, filter=event.value))

    def on_input_submitted(self, _event: Input.Submitted) -> None:
        self._end_typing()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        order = _ORDERS.get(str(event.column_key.value))
        if order is not None:
            self._set(replace(self.view, sort=order))

    def on_data_table_row_highlighted(self, _event: DataTable.RowHighlighted) -> None:
        self._look_under_cursor()
        self._tell()

    def on_data_table_row_selected(self, _event: DataTable.RowSelected) -> None:
        if self._chosen:
            self._told = (self._chosen, ["asks why …"])
            self._tell()
            self.run_worker(self._answer(self._chosen), group="why", exclusive=True)

    async def _answer(self, public_key: str) -> None:
        try:
            lines = await asyncio.to_thread(self._why, public_key)
        except Failed as failed:
            lines = [str(failed)]
        self._told = (public_key, lines)
        self._tell()


def _of(row: PeerRow) -> str:
    """Tells the meaning of a peer's newest reason."""
    if not row.reasons:
        return f"{row.label}: nothing was dropped of late"
    reason = row.reasons[0].partition(" ")[0]
    meaning = stats.COUNTERS[reason].meaning if reason in stats.COUNTERS else ""
    mend = stats.mend_of(reason)
    return f"{row.label}: {reason}: {meaning}" + (f"; {mend}" if mend else "")


def _text(lines: Sequence[str]) -> Text:
    return Text("\n".join(lines), overflow="fold")
