"""Finds rules of iptables-legacy, which nftables cannot show, where they drop what a gateway passes on. Changes nothing."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

TABLES: Final = {"iptables": Path("/proc/net/ip_tables_names"), "ip6tables": Path("/proc/net/ip6_tables_names")}
"""Lists the tables of iptables-legacy in this network namespace, for root."""
_WAYS: Final = ("-i", "-o")


def warnings(interface: str) -> Iterator[str]:
    """Yields a line for each family whose FORWARD chain may drop the interface's packets, with the commands that mend it."""
    for program, tables in TABLES.items():
        with suppress(OSError):
            if "filter" in tables.read_text().split():
                yield from _judged(program, interface)


def _judged(program: str, interface: str) -> Iterator[str]:
    save = shutil.which(f"{program}-legacy-save")
    if save is None:
        yield f"{program}-legacy has rules that nftables does not show: see that its chain FORWARD passes {interface} on"
        return
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([save, "-t", "filter"], capture_output=True, text=True, timeout=5, check=True)
        if drops(done.stdout, interface):
            commands = " and ".join(f"`{program}-legacy -I FORWARD {way} {interface} -j ACCEPT`" for way in _WAYS)
            yield f"chain FORWARD of {program}-legacy drops what {interface} passes on: {commands}"


def drops(saved: str, interface: str) -> bool:
    """Tells whether a saved table may drop what an interface passes on, either way."""
    rules = [line.split()[2:] for line in saved.splitlines() if line.startswith("-A FORWARD ")]
    closed = ":FORWARD DROP" in saved or any(_ends(rule, interface) for rule in rules)
    return closed and not all([way, interface, "-j", "ACCEPT"] in rules for way in _WAYS)


def _ends(rule: list[str], interface: str) -> bool:
    """Tells whether a rule drops packets, and names no other interface."""
    named = {word for way, word in pairwise(rule) if way in _WAYS}
    return not {"DROP", "REJECT"}.isdisjoint(rule) and named <= {interface}
