"""`stagewire status`: what the services say, as one JSON object or as tables."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from stagewire.environment import Environment
from stagewire.ipc import slots
from stagewire_cli import query
from stagewire_cli.supervision import Process, Supervision

Status = dict[str, Any]
_STAGES = ("tun", "device", "conn", "key", "status")
_DROP_PREFIXES = ("tun_packets", "datagrams")


def gather(environment: Environment) -> Status | None:
    """Everything about one interface; None when it isn't up. What is away is missing, not guessed."""
    if not environment.run.exists():
        return None
    supervision = Supervision(environment)
    processes = supervision.processes()
    keys = query.key_service(environment)
    if processes is None and keys is None:
        return None
    counters = _counters(environment)
    keys = keys or {"interface": environment.interface, "ready": False, "stages": [], "peers": []}
    stages = {(stage["stage"], stage["number"]): stage for stage in keys.pop("stages")}
    counted = {(entry["stage"], entry["number"]): entry for entry in counters["services"]}
    held = slots.held(environment.run)
    supervised = {process.pid: process for process in processes or []}
    workers = keys.get("workers", {}).get("wanted", 1)
    needed = {(stage, 0) for stage in _STAGES} | {("device", number) for number in range(workers)}
    # Workers that `stagewire scale` has sent home are remembered for a while, or for good, by who counts.
    known = {name for name in stages.keys() | counted.keys() if name[0] != "device"}
    names = sorted(known | held.keys() | needed, key=_order)
    return keys | {
        "services": [
            _service(name, held.get(name), supervised.get(held.get(name, 0)), stages.get(name), counted.get(name))
            for name in names
        ]
    }


def _counters(environment: Environment) -> Status:
    with suppress(query.OtherVersion):  # it has counted nothing of what it doesn't understand
        answer = query.status_service(environment)
        if answer is not None and "services" in answer:
            return answer
    return {"services": []}


def _order(name: tuple[str, int]) -> tuple[int, int]:
    return (_STAGES.index(name[0]) if name[0] in _STAGES else len(_STAGES)), name[1]


def _service(
    name: tuple[str, int], pid: int | None, process: Process | None, stage: Status | None, counted: Status | None
) -> Status:
    started = _started(pid) if pid else None
    return {
        "service": f"{name[0]}-service",
        "number": name[1],
        "state": "RUNNING" if pid else "DOWN",
        "pid": pid,
        "program": f"{process.group}:{process.name}" if process else None,
        "uptime_s": int(time.time() - started) if started else None,
        "ready": bool(stage and stage["ready"] and stage["pid"] == pid),
        "fault": (stage or {}).get("fault", ""),
        "spares": (stage or {}).get("spares", 0),
        "lives": (counted or {}).get("lives", 0),
        "counters": (counted or {}).get("counters", {}),
    }


def _started(pid: int) -> float | None:
    """When a process was started, in unix s (proc(5), `stat`, field 22)."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def render(status: Status, console: Console) -> None:
    """As tables."""
    state = "[green]up[/green]" if status["ready"] else "[yellow]not ready[/yellow]"
    console.print(
        f"[bold]{status['interface']}[/bold]  {state}  port {status.get('listen_port', '?')}  "
        f"public key {status.get('public_key', '?')}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_services(status["services"]))
    console.print(_peers(status["peers"]))


def _services(services: list[Status]) -> Table:
    table = Table("service", "state", "pid", "up for", "spares", "drops and failures", box=None, header_style="bold")
    for service in services:
        name = service["service"] + (f" {service['number']}" if service["service"] == "device-service" else "")
        state = (
            service["state"].lower() if service["ready"] else f"[yellow]{service['state'].lower()}, not ready[/yellow]"
        )
        drops = ", ".join(
            f"{reason} {count:,}"
            for reason, count in service["counters"].items()
            if not reason.startswith(_DROP_PREFIXES)
        )
        table.add_row(
            name,
            state,
            str(service["pid"] or "-"),
            span(service["uptime_s"]),
            str(service["spares"]),
            escape(service["fault"] or drops or "none"),
        )
    return table


def _peers(peers: list[Status]) -> Table:
    table = Table(
        Column("peer", min_width=44, no_wrap=True),
        "endpoint",
        "last handshake",
        "received",
        "sent",
        "allowed ips",
        box=None,
        header_style="bold",
    )
    skewed = any(peer["clock_skew_s"] is not None for peer in peers)
    if skewed:
        table.add_column("clock skew")
    for peer in sorted(peers, key=lambda peer: -(peer["last_handshake_unix_s"] or 0)):
        at = peer["last_handshake_unix_s"]
        table.add_row(
            peer["public_key"],
            escape(peer["endpoint"] or "(unknown)"),  # an IPv6 one has brackets, which are markup
            f"{span(max(0, time.time() - at))} ago" if at else "never",
            size(peer["rx_bytes"]),
            size(peer["tx_bytes"]),
            ", ".join(peer["allowed_ips"]) or "(none)",
            *([_skew(peer["clock_skew_s"])] if skewed else []),
        )
    return table


def _skew(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:+.3f} s"


def span(seconds: float | None) -> str:
    """A time as one would say it."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Bytes as one would say them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
