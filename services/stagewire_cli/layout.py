"""Lays out `stagewire status` as text: wrapped to the terminal and never cut; in a pipe, no line is wrapped."""

import time
from collections.abc import Iterator
from typing import Any

import click

from stagewire import stats
from stagewire.config.peer_names import label
from stagewire_cli import flow

Status = dict[str, Any]
_SHOWN = {stats.DROP: "  drops:", stats.FAILURE: "  failures:"}
"""Head of the lines for each kind of counters shown; `--json` has all counters."""
_STATE_WIDTH = len("running, not ready")


def lines(status: Status, width: int | None) -> Iterator[str]:
    """Yields the lines for one interface, with colours. `width` is in columns; with None no line is wrapped."""
    healthy = status["healthy"]
    state = click.style("up", fg="green") if healthy else click.style("degraded", fg="yellow")
    yield f"{click.style(status['interface'], bold=True)}: {state}, port {status.get('listen_port') or '?'}"
    yield f"  public key {status.get('public_key') or '(none)'}"
    if status.get("metrics"):
        yield f"  metrics {status['metrics']}"
    for each in status.get("captures", []):
        names = {peer["public_key"]: peer.get("name", "") for peer in status["peers"]}
        of = label(each["public_key"], names.get(each["public_key"], ""))
        told = f"of {of} by {each['by']} for {span(max(0, time.time() - each['since_unix_s']))}: {each['takes']}"
        yield from flow.lines("  " + click.style("capture", fg="yellow"), len("  capture"), told.split(" "), width)
    for warning in status["warnings"]:
        yield from flow.lines("  " + click.style("warning:", fg="yellow"), len("  warning:"), warning.split(" "), width)
    host = status.get("host") or {}
    if host.get("put_back"):
        ago = span(max(0, time.time() - host["put_back_unix_s"])) if host["put_back_unix_s"] else "some time"
        yield from flow.lines(
            f"  put back {ago} ago:", len(f"  put back {ago} ago:"), flow.listed(host["put_back"]), width
        )
    yield ""
    yield click.style(f"{'service':17} {'state':{_STATE_WIDTH}} {'pid':>7}  {'up for':8} {'spares':>6}", bold=True)
    for service in status["services"]:
        yield from _service(service, width)
    if not status["peers"]:
        yield ""
        yield "no peer is in use"
    for peer in sorted(status["peers"], key=lambda peer: -(peer["last_handshake_unix_s"] or 0)):
        yield ""
        yield from _peer(peer, width)


def _service(service: Status, width: int | None) -> Iterator[str]:
    name = service["service"] + (f" {service['number']}" if service["service"] == "device-service" else "")
    state = service["state"].lower() + ("" if service["ready"] else ", not ready")
    shown = click.style(f"{state:{_STATE_WIDTH}}", fg=None if service["ready"] else "yellow")
    yield f"{name:17} {shown} {service['pid'] or '-':>7}  {span(service['uptime_s']):8} {service['spares']:>6}"
    if service["fault"]:
        yield from flow.lines("  fault:", 8, service["fault"].split(" "), width)
    if service["kernel"]:
        yield from flow.lines("  kernel:", 9, service["kernel"].split(" "), width)
    for kind, head in _SHOWN.items():
        found = [f"{name} {count:,}" for name, count in service["counters"].items() if stats.kind_of(name) is kind]
        if found:
            yield from flow.lines(head, len(head), flow.listed(found), width)


def _peer(peer: Status, width: int | None) -> Iterator[str]:
    at = peer["last_handshake_unix_s"]
    when = f"handshake {span(max(0, time.time() - at))} ago" if at else "no handshake yet"
    yield from flow.lines(click.style("peer", bold=True), 4, [*_title(peer).split(" "), f" {when}"], width)
    items = f"endpoint {_place(peer)};".split(" ")
    items += [f"received {size(peer['rx_bytes'])},", f"sent {size(peer['tx_bytes'])};"]
    if peer["clock_skew_s"] is not None:
        items.append(f"clock skew {peer['clock_skew_s']:+.3f} s;")
    allowed = flow.listed(peer["allowed_ips"] or ["(none)"])
    if peer.get("endpoint_fault"):
        yield from flow.lines("  fault:", 8, f"the endpoint {peer['endpoint_fault']}".split(" "), width)
    yield from flow.lines(" ", 1, [*items, f"allowed ips {allowed[0]}", *allowed[1:]], width)
    found = [each for each in peer.get("reasons", []) if each["kind"] in (stats.DROP, stats.FAILURE)]
    if found:
        yield from flow.lines("  reasons:", 10, flow.listed([_reason(each) for each in found]), width)


def _reason(found: Status) -> str:
    ago = span(max(0, time.time() - found["last_unix_s"]))
    place = f", {found['example']['address']}" if found["example"]["address"] else ""
    return f"{found['reason']} {found['count']:,} ({ago} ago{place})"


def _title(peer: Status) -> str:
    return label(peer["public_key"], peer["name"]) if peer.get("name") else str(peer["public_key"])


def _place(peer: Status) -> str:
    if peer.get("unresolved"):
        return f"{peer['endpoint_name']} is not resolved yet ({peer['unresolved']})"
    return peer["endpoint"] or "(unknown)"


def span(seconds: float | None) -> str:
    """Writes a time in the largest unit that gives at least 2."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Writes a number of bytes in the largest unit that gives at least 1."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
