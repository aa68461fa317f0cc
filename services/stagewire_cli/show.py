"""Gathers all that the services report about themselves and the peers, as one JSON object for `stagewire status`."""

import os
import time
from base64 import b64encode
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from stagewire.control import query
from stagewire.control.codec import values
from stagewire.control.status import CountedStatus, CountersStatus, GatewayStatus, ReasonStatus, StageStatus
from stagewire.control.telemetry import CaptureReport
from stagewire.environment import Environment
from stagewire.limits import MAX_WORKERS
from stagewire.process import slots
from stagewire.stages import STAGES
from stagewire.wall_clock import unix_ns
from stagewire_cli import by_filter, complaints, reasons, the_file
from stagewire_cli.failures import NotUp
from stagewire_cli.supervision import Process, Supervision

Status = dict[str, Any]
FORMAT: Final = 1
"""Version of the JSON object."""
SILENT: Final = "key-service does not answer"
STOPPED: Final = "a signal has stopped its process"
_LOG_TAIL = 4096
"""Bytes at a log's end that hold its last line."""


def known(environment: Environment) -> Status:
    """Returns everything about one interface. Raises NotUp."""
    found = gather(environment)
    if found is None:
        raise NotUp(environment.interface)
    return found


def gather(environment: Environment) -> Status | None:
    """Returns everything about one interface; None when it isn't up. An absent service's part is left out."""
    if not environment.run.exists():
        return None
    supervision = Supervision(environment)
    with query.asking_key_service(environment) as of_keys, query.asking_status_service(environment) as of_counters:
        held = slots.held(environment.run)
        # A stopped process answers nothing, however long a command waits.
        asked = not is_stopped(held.get(("key", 0))) and of_keys.send()
        and_counters = (asked or bool(held)) and not is_stopped(held.get(("status", 0))) and of_counters.send()
        processes, killed = supervision.look()
        answer = of_keys.answer() if asked else None
        if processes is None and answer is None and not held:
            return None
        counted, told, metrics = _counted(of_counters) if and_counters else ({}, (), "")
    silent = [] if answer is not None else [_why_silent(environment, processes or [])]
    keys: Status = {"interface": environment.interface, "ready": False, "peers": []}
    if answer is not None:
        keys = _of_key_service(answer)
    of_peers, strangers = reasons.by_peer(told, {peer["public_key"] for peer in keys["peers"]})
    for peer in keys["peers"]:
        peer["reasons"] = of_peers.get(peer["public_key"], [])
    stages = {(stage.stage, stage.number): stage for stage in answer.stages} if answer is not None else {}
    supervised = {process.pid: process for process in processes or []}
    workers = min(keys.get("workers", {}).get("wanted", 1), MAX_WORKERS)
    needed = {(stage, 0) for stage in STAGES} | {("device", number) for number in range(workers)}
    # key-service and status-service still remember workers that `stagewire scale` has ended.
    known = {name for name in stages.keys() | counted.keys() if name[0] != "device"}
    names = sorted(known | held.keys() | needed, key=_order)
    services = [
        _service(name, held.get(name), supervised.get(held.get(name, 0)), stages.get(name), counted.get(name))
        for name in names
    ]
    at_work = all(service["ready"] and not service["fault"] for service in services)
    keys = {"version": FORMAT, **keys}
    return keys | {
        "healthy": keys["ready"] and at_work and keys.get("link_up") is not False,
        "warnings": [
            *silent,
            *_without_supervisord(supervision),
            *by_filter.warnings(killed),
            *(keys.get("host") or {}).get("warnings", []),
            *the_file.warnings(environment),
        ],
        "killed_by_filter": killed,
        "services": services,
        "strangers": strangers,
        "metrics": metrics,
        "captures": [_capture(each) for service in counted.values() for each in service.captures],
    }


def _of_key_service(answer: GatewayStatus) -> Status:
    # `asdict` copies each field of each of 10,000 peers.
    keys = asdict(replace(answer, stages=(), peers=()))
    del keys["stages"]
    keys["peers"] = [dict(zip(peer.__dataclass_fields__, values(peer), strict=True)) for peer in answer.peers]
    return keys


def _capture(found: CaptureReport) -> Status:
    told = asdict(found) | {"public_key": b64encode(found.public_key).decode()}
    return told | {"since_unix_s": unix_ns(told.pop("since")) / 1e9}


def _without_supervisord(supervision: Supervision) -> list[str]:
    """Warns if no supervisord restarts the stages; root alone can tell."""
    return [supervision.gone] if os.geteuid() == 0 and not supervision.is_there() else []


def _why_silent(environment: Environment, processes: list[Process]) -> str:
    """Returns a warning with the reason from key-service's log, if that has one."""
    logs = [process.log for process in processes if process.group == "key-service" and process.log is not None]
    lines: list[str] = []
    for log in logs:
        with suppress(OSError):
            text = log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")
            lines += [line for line in text.splitlines()[-1:] if complaints.last([line])]
    said = [complaints.reason(line, environment) for line in sorted(lines)[-1:]]
    return ": ".join([SILENT, *said])


def _counted(
    asked: query.Asking[CountersStatus],
) -> tuple[dict[tuple[str, int], CountedStatus], tuple[ReasonStatus, ...], str]:
    answer = None
    with suppress(query.OtherVersion):  # a status-service of another version lacks our counters
        answer = asked.answer()
    if answer is None:
        return {}, (), ""
    return {(each.stage, each.number): each for each in answer.services}, answer.reasons, answer.metrics


def _order(name: tuple[str, int]) -> tuple[int, int]:
    return (STAGES.index(name[0]) if name[0] in STAGES else len(STAGES)), name[1]


def _service(
    name: tuple[str, int],
    pid: int | None,
    process: Process | None,
    stage: StageStatus | None,
    counted: CountedStatus | None,
) -> Status:
    started = _started(pid) if pid else None
    return {
        "service": f"{name[0]}-service",
        "number": name[1],
        "state": "RUNNING" if pid else "DOWN",
        "pid": pid,
        "program": f"{process.group}:{process.name}" if process else None,
        "uptime_s": int(time.time() - started) if started else None,
        "ready": stage is not None and stage.ready and stage.pid == pid,
        "fault": STOPPED if is_stopped(pid) else stage.fault if stage is not None else "",
        "spares": stage.spares if stage is not None else 0,
        "kernel": stage.kernel if stage is not None else "",
        "lives": counted.lives if counted is not None else 0,
        "counters": counted.counters if counted is not None else {},
        "cpu_s": counted.cpu_s if counted is not None else 0.0,
        "queues": [asdict(queue) for queue in counted.queues] if counted is not None else [],
    }


def is_stopped(pid: int | None) -> bool:
    """Tells whether a signal such as SIGSTOP has stopped a process."""
    return pid is not None and _fields(pid)[:1] in (["T"], ["t"])


def _fields(pid: int) -> list[str]:
    """Returns what /proc tells of a process from its state on (proc(5), `stat`, fields 3 and on)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> float | None:
    """Returns when a process was started, in unix s."""
    fields = _fields(pid)
    if not fields:
        return None
    ticks = int(fields[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
