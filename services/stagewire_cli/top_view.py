"""Draws `stagewire top`: a head, the pipeline as it is, and the peers, as large as the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.cells import set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stagewire.control.status import GatewayStatus
from stagewire_cli.layout import span
from stagewire_cli.top_model import Model, PeerRow, Place, StageRow, View

KEYS: Final = "q quit  p pause  s sort  r reverse  / filter  ↑↓ scroll"
LEAST_WIDTH: Final = 76
"""Columns; a narrower terminal shows the left part."""
WIDE: Final = 120
"""Columns from which endpoints are shown as well."""
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_LEFT, _RIGHT = 6, 7
"""Columns of the host and of the peers, beside the boxes."""
_INNER: Final = 13
"""Columns in a box."""
_MAX_GAP: Final = 30
_RATE, _AGE, _LOST = 12, 11, 8
"""Columns of a number in a picture of very many peers."""
_WAYS: Final = (("in", "cyan", "tun_packets_out"), ("out", "magenta", "tun_packets_in"))
"""Name and colour of each way, and the counter of its packets."""
_BESIDE: Final = ("key", "host", "resolver", "status")
_BUSY, _FULL = 0.5, 0.85
_NAME: Final = Text("stagewire top ", style="dim")
_QUEUED, _CROWDED = 64 * 1024, 256 * 1024


@dataclass(frozen=True, slots=True)
class Column:
    """Describes a column of the peers: its least width, and its share of what is left, 0 for a column of numbers."""

    name: str
    least: int
    ratio: int

    @property
    def justify(self) -> Literal["left", "right"]:
        return "left" if self.ratio else "right"


def lines_of_many(model: Model, width: int) -> Iterator[str]:
    """Yields a line for each peer below the table's head, without colours: rich takes seconds for 10,000 rows."""
    width = max(width, LEAST_WIDTH)
    wide = width >= WIDE
    numbers = _RATE + _RATE + _AGE + _LOST
    name = max(16, (width - numbers) * 3 // (10 if wide else 7)) - 2
    place = name if wide else 0
    reasons = width - numbers - name - 2 - (place + 2 if wide else 0) - 2
    where = f" {'endpoint':<{place}} " if wide else ""
    speeds = f"{'in bit/s':>{_RATE}}{'out bit/s':>{_RATE}}"
    yield f" {'peer':<{name}} {where}{speeds}{'handshake':>{_AGE}}{'lost/s':>{_LOST}}  reasons of late"
    for row in model.peers(View()):
        where = f" {set_cell_size(row.endpoint or '-', place)} " if wide else ""
        speeds = f"{_speed(row.received):>{_RATE}}{_speed(row.sent):>{_RATE}}"
        why = set_cell_size(", ".join(row.reasons), reasons) if row.reasons else ""
        line = f" {set_cell_size(''.join(_names(row, wide)), name)} {where}{speeds}"
        yield f"{line}{_age(row.shaken):>{_AGE}}{_lost(row):>{_LOST}}  {why}".rstrip()


def draw(model: Model, view: View, width: int, height: int | None, *, peers: bool = True) -> RenderableType:
    """Draws everything in `height` lines; all peers with None, unless without `peers`."""
    width = max(width, LEAST_WIDTH)
    above = above_peers(model, width, height, _NAME)
    if not peers or model.gateway is None:
        return Group(*above)
    below = [_foot(view, width)] if height is not None else []
    rows = model.peers(view)
    room = len(rows) if height is None else max(1, height - len(above) - len(below) - 1)
    first = max(0, min(view.first, len(rows) - room))
    shown = rows[first : first + room]
    padding = [Text("") for _ in range(0 if height is None else room - len(shown))]
    if not rows:
        padding[:1] = [Text("  no peer matches the filter" if view.filter else "  no peers", style="dim")]
    for line in (*padding, *below):
        line.no_wrap, line.overflow = True, "crop"
    return Group(*above, _peers(shown, width), *padding, *below)


def above_peers(model: Model, width: int, height: int | None, corner: Text) -> list[Text]:
    """Draws all but the peers, with `corner` at the right of the first line. A terminal of few lines shows less workers."""
    gateway = model.gateway
    if gateway is None:
        return [Text("key-service does not answer", style="yellow")]
    most = 8 if height is None or height >= 30 else 4
    lines = [*_head(model, gateway, width, corner), *_pipeline(model, width, most)]
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return lines


# --- head ---------------------------------------------------------------------------------------------------


def _head(model: Model, gateway: GatewayStatus, width: int, corner: Text) -> Iterator[Text]:
    state = ("up", "green") if gateway.ready and gateway.link_up is not False else ("degraded", "yellow")
    shaken = sum(1 for peer in gateway.peers if _is_up(model, peer.last_handshake_unix_s))
    left = Text.assemble(
        " ", (gateway.interface, "bold"), " ", state, f"   port {gateway.listen_port or '?'}   ",
        f"{shaken} of {len(gateway.peers)} peers with a session",
    )  # fmt: skip
    yield _both_ends(left, corner, width)
    graph = width // 2 - 33
    line = Text()
    for position, (name, style, counter) in enumerate(_WAYS):
        course = [each[position] for each in model.course]
        rate = f"{bits(course[-1])}, {model.packets(counter):,.0f}/s" if course else "-"
        line.append(f" {name:>3} ", style="bold")
        line.append(_sparks(course, graph), style=style)
        line.append(f" {rate:<26} ")
    yield line
    if gateway.waiting_for:
        yield _fitted(Text(f" waits for {', '.join(gateway.waiting_for)}", style="yellow"), width)
    elif model.last.gateway is None:
        yield Text(" key-service does not answer; this is what it said last", style="yellow")
    elif captured := model.captured():
        yield _fitted(Text(f" packets are captured: {', '.join(captured)}", style="yellow"), width)
    else:
        yield Text("")


def _is_up(model: Model, shaken: float | None) -> bool:
    return shaken is not None and model.last.unix - shaken <= 180


def _sparks(course: Sequence[float], width: int) -> str:
    newest = list(course)[-width:]
    most = max([*newest, 1.0])
    return "".join(_BLOCKS[min(7, int(8 * each / most))] for each in newest).rjust(width)


# --- pipeline -----------------------------------------------------------------------------------------------


def _pipeline(model: Model, width: int, most: int) -> Iterator[Text]:
    """Yields two lines for each worker: what goes out above, what comes in below."""
    stages = model.stages()
    workers = sorted(place for place in stages if place[0] == "device")
    shown = workers[:most]
    gap = min(_MAX_GAP, (width - _LEFT - _RIGHT - 3 * (_INNER + 2)) // 2)
    yield _edges("╭╮", gap)
    for place in shown:
        yield from _lines(stages, place, gap, first=place == shown[0])
    yield _edges("╰╯", gap)
    beside = Text(" " * _LEFT)
    for stage in _BESIDE:
        beside.append(" ")
        beside.append_text(_short(stages[stage, 0]))
        beside.append("  ")
    if len(workers) > len(shown):
        beside.append(f"+{len(workers) - len(shown)} workers", style="dim")
    yield _fitted(beside, width)
    yield Text("")


def _edges(corners: str, gap: int) -> Text:
    each = f"{corners[0]}{'─' * _INNER}{corners[1]}"
    return Text(" " * _LEFT + (" " * gap).join([each] * 3), style="dim")


def _lines(stages: dict[Place, StageRow], place: Place, gap: int, *, first: bool) -> Iterator[Text]:
    tun, worker, conn, number = stages["tun", 0], stages[place], stages["conn", 0], place[1]
    yield Text.assemble(
        ("host ▶" if first else " " * _LEFT, "dim"), *_box(_title(tun) if first else Text()),
        _arrow(tun.queues.get(f"plain-out.{number}"), gap, out=True), *_box(_title(worker)),
        _arrow(worker.queues.get("cipher-out"), gap, out=True), *_box(_title(conn) if first else Text()),
        ("▶ peers" if first else "", "dim"),
    )  # fmt: skip
    yield Text.assemble(
        (f"{'◀' if first else '':>{_LEFT}}", "dim"), *_box(_load(tun) if first else Text()),
        _arrow(worker.queues.get("plain-in"), gap, out=False), *_box(_load(worker)),
        _arrow(conn.queues.get(f"cipher-in.{number}"), gap, out=False), *_box(_load(conn) if first else Text()),
        ("◀" if first else "", "dim"),
    )  # fmt: skip


def _box(text: Text) -> tuple[tuple[str, str], Text, tuple[str, str]]:
    text.truncate(_INNER, pad=True)
    return ("│", "dim"), text, ("│", "dim")


def _title(row: StageRow) -> Text:
    name = f"{row.stage} {row.number}" if row.stage == "device" else row.stage
    style = "bold" if row.active and not row.fault else "bold red"
    dots = _dots(row)
    return Text.assemble(" ", (f"{name:<9}", style), dots)


def _dots(row: StageRow) -> Text:
    """Draws the process at work and each spare."""
    return Text.assemble(("●", "green") if row.active else ("✗", "red"), ("○" * min(row.spares, 3), "green"))


def _load(row: StageRow) -> Text:
    if row.cpu is None:
        return Text("     -", style="dim")
    style = "red" if row.cpu >= _FULL else "yellow" if row.cpu >= _BUSY else "green"
    bar = _INNER - 7
    full = min(bar, round(row.cpu * bar))
    return Text.assemble(f" {100 * row.cpu:3.0f}% ", ("━" * full, style), ("╌" * (bar - full), "dim"))


def _short(row: StageRow) -> Text:
    """Draws a stage that no packet passes, in a few columns."""
    share = "-" if row.cpu is None else f"{100 * row.cpu:.0f}%"
    return Text.assemble((row.stage, "" if row.active and not row.fault else "red"), f" {share} ", _dots(row))


def _arrow(queued: int | None, gap: int, *, out: bool) -> Text:
    """Draws a pipe with the bytes that wait in it."""
    told = "?" if queued is None else f"{queued} B" if queued < 1024 else f"{queued / 1024:.0f} KiB"
    style = "" if not queued or queued < _QUEUED else "yellow" if queued < _CROWDED else "bold red"
    line = gap - 1 - len(told) - 2
    before, after = "─" * (line // 2), "─" * (line - line // 2)
    middle = (f" {told} ", style or ("dim" if not queued else ""))
    if out:
        return Text.assemble((before, "dim"), middle, (f"{after}▶", "dim"))
    return Text.assemble((f"◀{before}", "dim"), middle, (after, "dim"))


# --- peers --------------------------------------------------------------------------------------------------


def columns(width: int) -> list[Column]:
    """Returns the columns of the peers."""
    found = [
        Column("peer", 16, 3), Column("in bit/s", 8, 0), Column("out bit/s", 9, 0), Column("handshake", 9, 0),
        Column("lost/s", 6, 0), Column("reasons of late", 15, 4),
    ]  # fmt: skip
    return [found[0], Column("endpoint", 16, 3), *found[1:]] if width >= WIDE else found


def cells(row: PeerRow, width: int) -> list[Text]:
    """Draws one peer, a text for each column."""
    wide = width >= WIDE
    name, key = _names(row, wide)
    age = "dim" if row.shaken is None else "green" if row.shaken <= 135 else "" if row.shaken <= 180 else "yellow"
    return [
        Text.assemble(name, (key, "dim")) if row.name else Text(key, style="italic"),
        *([Text(row.endpoint or "-", style="dim")] if wide else ()),
        *(Text(_speed(each), style="" if each else "dim") for each in (row.received, row.sent)),
        Text(_age(row.shaken), style=age),
        Text(_lost(row), style="red" if row.lost else "dim"),
        Text(", ".join(row.reasons), style="yellow"),
    ]


def _peers(rows: Sequence[PeerRow], width: int) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 1), header_style="bold reverse")
    for each in columns(width):
        share = each.ratio or None
        table.add_column(
            each.name, justify=each.justify, no_wrap=True, overflow="ellipsis", ratio=share, min_width=each.least
        )
    for row in rows:
        table.add_row(*cells(row, width))
    return table


def _names(row: PeerRow, wide: bool) -> tuple[str, str]:
    """Returns a peer's name, and what there is room for of its key."""
    if not row.name:
        return "", row.public_key[:10] + "…"
    return row.name, f" {row.public_key[:10]}" if wide else ""


def _speed(rate: float) -> str:
    return bits(8 * rate).removesuffix("bit/s")


def _age(shaken: float | None) -> str:
    return "never" if shaken is None else span(shaken)


def _lost(row: PeerRow) -> str:
    return f"{row.lost:,.1f}" if row.lost else "-"


def bits(rate: float) -> str:
    """Writes bits a second in the largest unit that gives at least 1."""
    for unit in ("bit", "kbit", "Mbit"):
        if rate < 1000:
            return f"{rate:.0f} {unit}/s" if unit == "bit" else f"{rate:.1f} {unit}/s"
        rate /= 1000
    return f"{rate:.1f} Gbit/s"


# --- foot ---------------------------------------------------------------------------------------------------


def _foot(view: View, width: int) -> Text:
    if view.typing:
        return _fitted(
            Text.assemble((" filter: ", "bold"), view.filter, ("█", "blink"), ("  Enter ends", "dim")), width
        )
    return _both_ends(Text(f" {KEYS}", style="dim"), chosen(view), width)


def chosen(view: View) -> Text:
    """Tells the operator's choices."""
    told = f"by {view.sort}{' reversed' if view.reverse else ''}"
    told += f"  filter {view.filter!r}" if view.filter else ""
    return Text.assemble(("PAUSED  " if view.paused else "", "bold yellow"), (f"{told} ", "bold"))


def _both_ends(left: Text, right: Text, width: int) -> Text:
    left.truncate(max(0, width - right.cell_len), pad=True)
    return left.append_text(right)


def _fitted(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text
