"""Sets an interface's DNS servers by resolvconf(8) or resolvectl(1), as wg-quick(8) does."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from stagewire.config.values import is_server
from stagewire_cli.done import DNS, DoneList

RESOLV_CONF: Final = Path("/etc/resolv.conf")
INTERFACE_ORDER: Final = Path("/etc/resolvconf/interface-order")
_EVERYTHING: Final = "~."
"""The domain that routes all questions through the tunnel, as resolvconf's `-x` does."""


def keep_copy(path: Path) -> None:
    """Copies the host's own resolv.conf for resolver-service, before the tunnel's servers replace it. Raises OSError."""
    try:
        text = RESOLV_CONF.read_bytes()
    except OSError:  # a host may have none
        return
    path.write_bytes(text)
    path.chmod(0o644)


def set_servers(
    interface: str, entries: Sequence[str], warn: Callable[[str], None], note: Callable[[str], None]
) -> None:
    """Sets servers (entries that look like addresses) and search domains (the others); domains alone change nothing.

    Calls `note` beforehand with the name that `unset_servers` needs.
    """
    servers = [entry for entry in entries if is_server(entry)]
    domains = [entry for entry in entries if not is_server(entry)]
    if not servers:
        return
    if shutil.which("resolvconf"):
        text = "".join(f"nameserver {server}\n" for server in servers)
        text += f"search {' '.join(domains)}\n" if domains else ""
        note(name := called(interface))
        failed = _run(["resolvconf", "-a", name, "-m", "0", "-x"], text)
    elif shutil.which("resolvectl"):
        failed = _run(["resolvectl", "dns", interface, *servers], "")
        routed = domains if _EVERYTHING in domains else [*domains, _EVERYTHING]
        failed = failed or _run(["resolvectl", "domain", interface, *routed], "")
    else:
        failed = "neither resolvconf nor resolvectl is installed"
    if failed:
        warn(f"DNS is not set: {failed}")


def set_noted(interface: str, entries: Sequence[str], done: DoneList, warn: Callable[[str], None]) -> None:
    """Sets servers as `set_servers`, and notes what `down` undoes and what `doctor` tells. Raises OSError."""

    def failed(text: str) -> None:
        warn(text)
        with suppress(OSError):  # then `doctor` doesn't know
            done.note_dns_failure(text)

    done.note_dns_failure("")
    set_servers(interface, entries, failed, lambda name: done.note(DNS, name))


def unset_servers(name: str) -> str:
    """Makes resolvconf(8) forget the servers; returns an error or nothing. resolvectl's setting goes with the interface."""
    if not shutil.which("resolvconf"):
        return f"DNS is still set: resolvconf is gone; install it again and run `resolvconf -d {name} -f`"
    failed = _run(["resolvconf", "-d", name, "-f"], "")
    return f"DNS is still set: {failed}" if failed else ""


def revert(interface: str) -> None:
    """Makes resolvectl(1) forget the servers; `unset_servers` does so for resolvconf(8)."""
    if not shutil.which("resolvconf") and shutil.which("resolvectl"):
        _run(["resolvectl", "revert", interface], "")


def called(interface: str) -> str:
    """Returns resolvconf's name for an interface: Debian's takes the first kind of its order, as in wg-quick(8)."""
    try:
        lines = INTERFACE_ORDER.read_text(errors="replace").splitlines()
    except OSError:
        return interface
    kinds = (re.fullmatch(r"([A-Za-z0-9-]+)\*", line.strip()) for line in lines)
    return next((f"{kind[1]}.{interface}" for kind in kinds if kind), interface)


def _run(command: list[str], text: str) -> str:
    """Runs a program; returns how it failed, or an empty text. Does not wait for daemons that the program starts."""
    with os.fdopen(os.memfd_create("stdout"), "w+b") as stdout, os.fdopen(os.memfd_create("stderr"), "w+b") as stderr:
        given = text.encode(errors="surrogateescape")
        try:
            status = subprocess.run(command, input=given, stdout=stdout, stderr=stderr, check=False).returncode
        except OSError as error:  # such as a script whose interpreter is gone
            return f"{command[0]} does not start: {error.strerror}"
        if status == 0:
            return ""
        said = _read(stderr) or _read(stdout)
    return f"{command[0]} says: {said[-1]}" if said else f"{command[0]} ended with status {status}"


def _read(file: BinaryIO) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()
