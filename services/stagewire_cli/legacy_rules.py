"""Finds rules of iptables-legacy, which nftables cannot show, where they drop what a gateway passes on. Changes nothing."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress

from stagewire.config import InterfaceConfig
from stagewire.linux.forwarded import ANSWERS, NEW, PORTS, WAYS, Needs, obstacles
from stagewire_cli import legacy_listing

_VERSIONS = {"iptables": 4, "ip6tables": 6}


def warnings(name: str, interface: InterfaceConfig | None = None) -> Iterator[str]:
    """Yields a line for each chain that drops packets of an interface's peers, with the commands that mend it.

    Without `interface`, the host passes packets on by other means than ours.
    """
    for program, tables in legacy_listing.TABLES.items():
        with suppress(OSError):
            if "filter" in tables.read_text().split():
                yield from _judged(program, name, interface)


def _judged(program: str, name: str, interface: InterfaceConfig | None) -> Iterator[str]:
    save = shutil.which(f"{program}-legacy-save")
    if save is None:
        yield f"{program}-legacy has rules that nftables does not show: see that its chain FORWARD passes {name} on"
        return
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run([save, "-t", "filter"], capture_output=True, text=True, timeout=5, check=True)
        yield from dropping(program, done.stdout, name, interface)


def dropping(program: str, saved: str, name: str, interface: InterfaceConfig | None) -> Iterator[str]:
    """Yields the warnings of a saved table. Raises ValueError."""
    version = _VERSIONS[program]
    for each in obstacles(legacy_listing.listed(program, saved), name, {version}, _needs(interface, version)):
        begin = f"{program}-legacy -I {each.place.name}"
        commands = " and ".join(f"`{begin} {options}`" for options in each.options(name))
        yield f"chain {each.chain.name} of {program}-legacy drops what {name} passes on: {commands}"


def _needs(interface: InterfaceConfig | None, version: int) -> Needs:
    """Returns the kinds of packets that must pass."""
    if interface is None:
        return {WAYS[0]: (NEW, ANSWERS), WAYS[1]: (ANSWERS,)}
    routed = interface.exit == "routed" or (interface.exit == "routed-ipv6" and version == 6)
    forwards = interface.access.forwards or any(peer.access.forwards for peer in interface.peers)
    to_peers = (NEW, ANSWERS) if routed else (ANSWERS, PORTS) if forwards else (ANSWERS,)
    return dict(zip(WAYS, ((ANSWERS,) if interface.exit == "off" else (NEW, ANSWERS), to_peers), strict=True))
