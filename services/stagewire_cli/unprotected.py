"""Finds what the services of an interface do without: by supervisord's word, and by the kernel's for each process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stagewire.environment import Environment
from stagewire.linux import sandbox
from stagewire.stages import WORKER
from stagewire_cli.supervision import Supervision

Status = dict[str, Any]
_FILTERED = "2"
"""What the kernel says of a process with a filter of system calls (proc(5), `Seccomp`)."""
_NOTHING = "0 kB"


def found(environment: Environment, known: Status) -> list[str]:
    """Returns a sentence for each thing that is lacking, and what follows from it."""
    said = Supervision(environment).does_without() or ""
    lacking = [f"{known['interface']} {said}"] if said else []
    swap = sandbox.has_swap() and sandbox.LOCKED_MEMORY not in said
    return lacking + [each for service in known["services"] for each in _of_process(service, swap=swap)]


def _of_process(service: Status, *, swap: bool) -> Iterator[str]:
    stage = service["service"].removesuffix("-service")
    kernels = _kernels_word(service["pid"])
    if not kernels or stage not in sandbox.NEEDS:
        return
    name = f"{service['service']} {service['number']}" if stage == WORKER else service["service"]
    if kernels.get("Seccomp") != _FILTERED:
        yield f"{name} has no filter of system calls, and its log says why: a hostile one could make any call"
    if swap and sandbox.NEEDS[stage].keys and kernels.get("VmLck", _NOTHING) == _NOTHING:
        yield f"{name} has no {sandbox.LOCKED_MEMORY}: its keys may reach the swap"


def _kernels_word(pid: int | None) -> dict[str, str]:
    """Returns what the kernel says of a living process; nothing of another."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
