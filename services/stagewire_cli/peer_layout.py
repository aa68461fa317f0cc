"""Lays out `stagewire peer list` and `stagewire peer show` as text, never wider than a terminal of 80 columns."""

import shutil
import sys
from collections.abc import Iterator
from typing import Final

from stagewire.config import values
from stagewire.config.peer_names import label
from stagewire_cli import flow
from stagewire_cli.peer_rows import Row

MOST: Final = 80
"""Columns of a line at most."""
_TITLES: Final = 32
"""Columns of the first column at most; a longer title stands alone in its line."""
_STATE: Final = len("disabled")


def width() -> int:
    """Returns how wide a line may be: in a pipe as on a terminal."""
    return min(MOST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else MOST


def list_lines(rows: list[Row], width: int) -> Iterator[str]:
    """Yields a heading, and each peer's title, state, allowed IPs and limits."""
    if not rows:
        yield "no peers: `stagewire peer add NAME` adds one"
        return
    titles = [title(row) for row in rows]
    first = max(len("peer"), *(size for each in titles if (size := flow.columns(each)) <= _TITLES), 0)
    yield f"{'peer':{first}}  {'state':{_STATE}}  allowed ips"
    for row, shown in zip(rows, titles, strict=True):
        head = flow.padded(shown, first)
        if flow.columns(shown) > first:
            yield from flow.lines("", 0, shown.split(" "), width)
            head = " " * first
        items = flow.listed(row["allowed_ips"] or ["-"])
        if ends := _ends(row):
            items = [*items[:-1], f"{items[-1]};", *flow.listed(ends)]
        yield from flow.lines(f"{head}  {row['state']:{_STATE}} ", first + _STATE + 3, items, width)


def show_lines(row: Row, width: int) -> Iterator[str]:
    """Yields a peer's title, and a line for each thing that is to be said of it."""
    yield from flow.lines("", 0, title(row).split(" "), width)
    for name, items in _facts(row):
        if items:
            yield from flow.lines(f"  {name}:", len(name) + 3, flow.listed(items), width)


def title(row: Row) -> str:
    """Names a peer; one without a name by its whole key."""
    return label(row["public_key"], row["name"]) if row["name"] else str(row["public_key"])


def share(row: Row) -> str:
    """Tells what a peer has used of its quota."""
    used, quota = row["quota_used_bytes"], row["quota_bytes"]
    return f"used {used / quota:.0%} of {values.as_quota(quota)}"


def _ends(row: Row) -> list[str]:
    """Returns what bounds a peer."""
    found = [f"until {row['expires']}"] if row["expires"] else []
    found += [f"rate {row['rate']}"] if row["rate"] else []
    return found + ([share(row)] if row["quota_bytes"] else [])


def _facts(row: Row) -> Iterator[tuple[str, list[str]]]:
    yield "public key", [row["public_key"]]
    yield "pre-shared key", ["yes" if row["has_preshared_key"] else "none"]
    yield "state", [row["state"]]
    yield "expires", _some(row["expires"])
    yield "allowed ips", row["allowed_ips"] or ["none"]
    yield "endpoint", _some(row["endpoint"])
    yield "keepalive", _seconds(row["persistent_keepalive_s"] or None)
    yield "rate", _rate(row["rate"])
    yield "quota", [share(row)] if row["quota_bytes"] else []
    yield "groups", row["groups"]
    yield "may reach", row["allow"]
    yield "forwarded ports", row["forwards"]
    yield "client sends through the tunnel", row["client_allowed_ips"]
    yield "client's DNS", row["client_dns"]
    yield "client's MTU", [f"{row['client_mtu']} bytes"] if row["client_mtu"] else []
    yield "client's keepalive", _seconds(row["client_keepalive_s"])


def _some(value: str | None) -> list[str]:
    return [value] if value else []


def _seconds(value: int | None) -> list[str]:
    return [] if value is None else [f"{value} s" if value else "off"]


def _rate(value: str | None) -> list[str]:
    if value is None:
        return []
    to, slash, back = value.partition("/")
    return [f"{to} bits/s to the peer", f"{back if slash else to} bits/s from it"]
