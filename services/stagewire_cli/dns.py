"""The interface's DNS servers, by resolvconf(8) or resolvectl(1), as wg-quick(8) sets them."""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

INTERFACE_ORDER: Final = Path("/etc/resolvconf/interface-order")


def set_servers(interface: str, entries: Sequence[str], warn: Callable[[str], None]) -> None:
    """Entries that are addresses are servers, others are search domains."""
    if not entries:
        return
    servers, domains = _split(entries)
    if shutil.which("resolvconf"):
        text = "".join(f"nameserver {server}\n" for server in servers)
        text += f"search {' '.join(domains)}\n" if domains else ""
        failed = _run(["resolvconf", "-a", _called(interface), "-m", "0", "-x"], text)
    elif shutil.which("resolvectl"):
        failed = _run(["resolvectl", "dns", interface, *servers], "")
        failed = failed or _run(["resolvectl", "domain", interface, *domains, "~."], "")
    else:
        failed = "there is neither resolvconf nor resolvectl"
    if failed:
        warn(f"DNS is not set: {failed}")


def unset_servers(interface: str, entries: Sequence[str]) -> None:
    """Takes back what `set_servers` did; resolvectl's setting goes with the interface."""
    if entries and shutil.which("resolvconf"):
        _run(["resolvconf", "-d", _called(interface), "-f"], "")


def _called(interface: str) -> str:
    """Debian's resolvconf has an order of kinds of interfaces; there, as wg-quick(8) has it, ours is of the first kind."""
    try:
        lines = INTERFACE_ORDER.read_text().splitlines()
    except OSError:
        return interface
    kinds = (re.fullmatch(r"([A-Za-z0-9-]+)\*", line.strip()) for line in lines)
    return next((f"{kind[1]}.{interface}" for kind in kinds if kind), interface)


def _split(entries: Sequence[str]) -> tuple[list[str], list[str]]:
    servers, domains = [], []
    for entry in entries:
        try:
            servers.append(str(ip_address(entry)))
        except ValueError:
            domains.append(entry)
    return servers, domains


def _run(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return f"{command[0]} says {(done.stderr or done.stdout).strip().splitlines()[-1:] or done.returncode}"
