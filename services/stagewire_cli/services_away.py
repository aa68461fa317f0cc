"""Finds the services that aren't at work, and names the command that brings each back."""

import re
from typing import Any, Final

from stagewire.stages import STAGES
from stagewire_cli import show
from stagewire_cli.evidence import Away
from stagewire_cli.supervision import Supervision

_CARRYING: Final = frozenset(f"{stage}-service" for stage in ("tun", "device", "conn", "key"))
_RENAMED: Final = re.compile(r"was renamed to (\S+);")
Status = dict[str, Any]


def keys_are_missing(known: Status) -> bool:
    """Tells whether key-service has not answered, so that no peer is known."""
    return "public_key" not in known


def found(known: Status) -> list[Away]:
    """Returns each service that isn't at work; without key-service's word, those that plainly aren't, and key-service."""
    silent = keys_are_missing(known)
    services = [
        each for each in known["services"] if each["state"] == "DOWN" or each["fault"] or not (each["ready"] or silent)
    ]
    gone = next((each for each in known["warnings"] if each.startswith(Supervision.GONE)), "")
    away = [_away(each, known["interface"], gone) for each in services]
    if silent and not any(each.service.startswith("key-service") for each in away):
        said = next((text.partition(": ")[2] for text in known["warnings"] if text.startswith(show.SILENT)), "")
        fault = f"does not answer{f': {said}' if said else ''}"
        command = _restart("key-service", known["interface"])
        away.append(Away("key-service", fault, f"`{' '.join(command)}`", command=command))
    return away


def _away(service: Status, interface: str, gone: str) -> Away:
    name = service["service"] + (f" {service['number']}" if service["service"] == "device-service" else "")
    fault = service["fault"] or ("is down" if service["state"] == "DOWN" else "is not ready")
    carries = service["service"] in _CARRYING
    command = _restart(service["service"], interface)
    if service["fault"] == show.STOPPED:
        mend = f"`{' '.join(command)}`, or `kill -CONT {service['pid']}`"
        return Away(f"{name},", service["fault"], mend, carries, command)
    if service["state"] == "DOWN":
        again = gone.partition(": ")[2] or f"supervisord starts it again: `stagewire status {interface}`, and its log"
        return Away(name, fault, again, carries)
    if found := _RENAMED.search(fault):
        back = rename_back(found[1], interface)
        return Away(name, fault, f"`{' && '.join(map(' '.join, back))}`", carries, renamed=found[1])
    return Away(name, fault, f"see its log; `{' '.join(command)}` replaces it", carries, passes=not service["fault"])


def rename_back(now: str, interface: str) -> tuple[tuple[str, ...], ...]:
    """Returns the commands that give an interface its name back, also on a kernel that renames none that is up."""
    set_link = ("ip", "link", "set")
    return (*set_link, now, "down"), (*set_link, now, "name", interface), (*set_link, interface, "up")


def _restart(service: str, interface: str) -> tuple[str, ...]:
    stage = service.removesuffix("-service")
    return ("stagewire", "restart", stage if stage in STAGES else "all", "-i", interface)
