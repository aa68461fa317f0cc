"""What the environment tells every program: which interface, where its files are, how many workers.

| variable | meaning | default |
|---|---|---|
| `STAGEWIRE_INTERFACE` | the interface | `wg0` |
| `STAGEWIRE_CONFIG` | its configuration file | `/etc/stagewire/<interface>.conf` |
| `STAGEWIRE_RUN_DIR` | pipes, one folder per interface | `/run/stagewire` |
| `STAGEWIRE_STATE_DIR` | what survives a restart | `/var/lib/stagewire` |
| `STAGEWIRE_LOG_DIR` | logs of what `stagewire up` started | `/var/log/stagewire` |
| `STAGEWIRE_WG_DIR` | where the `wg` socket is | `/var/run/wireguard`, where `wg` looks |
| `STAGEWIRE_WORKERS` | crypto workers, 1 to 64 | one per core but one, at least one |
| `STAGEWIRE_SPARES` | processes that wait to take over, of each program, 0 to 4 | 1 |
| `STAGEWIRE_OFFLOAD` | 0: packets go by one by one, without segmentation and coalescing | 1, as far as the kernel can |
| `STAGEWIRE_LOG_LEVEL` | debug, info, warning, error; `LOG_LEVEL` will do | `info` |
| `STAGEWIRE_SHOW_PRIVATE_KEY` | 0: the `wg` socket doesn't show the private key | 1: without it `wg` shows no public key |
| `STAGEWIRE_MANAGED` | 0: no file; addresses and routes are somebody else's | 1; `stagewire INTERFACE` sets 0 |
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_WORKERS = 64
"""The receiver index has room for 256; nobody has measured beyond a handful."""
MAX_SPARES = 4
_INTERFACE_NAME = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")
_LEVELS = {
    "debug": "debug",
    "verbose": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "silent": "error",
}


class EnvironmentMistake(Exception):  # noqa: N818 - it is the operator's, and reads as one
    """A variable that doesn't make sense; the text is one line for the operator."""


def valid_interface_name(name: str) -> bool:
    """Whether Linux and wg-quick both take this for an interface's name."""
    return _INTERFACE_NAME.fullmatch(name) is not None and name not in (".", "..")


@dataclass(frozen=True, slots=True)
class Environment:
    """One interface's surroundings."""

    interface: str
    config: Path
    run: Path
    """The interface's own folder of pipes."""
    state: Path
    log: Path
    wg: Path
    """Where the `wg` socket is."""
    workers: int
    spares: int
    managed: bool
    """Addresses, MTU and routes are ours to set; otherwise there is no configuration file, and somebody else does."""
    show_private_key: bool
    offload: bool
    """The TUN device and the UDP sockets hand over many packets at a time, where the kernel can."""
    log_level: str

    @classmethod
    def read(cls, variables: Mapping[str, str], interface: str | None = None) -> "Environment":
        """From environment variables; `interface` overrides theirs. Raises EnvironmentMistake."""
        name = interface or variables.get("STAGEWIRE_INTERFACE") or "wg0"
        if not valid_interface_name(name):
            raise EnvironmentMistake(
                f"STAGEWIRE_INTERFACE: {name!r} is no interface name: 1 to 15 of a-z A-Z 0-9 _ = + . -"
            )

        def folder(variable: str, default: str) -> Path:
            return Path(variables.get(variable) or default) / name

        level = (variables.get("STAGEWIRE_LOG_LEVEL") or variables.get("LOG_LEVEL") or "info").lower()
        if level not in _LEVELS:
            raise EnvironmentMistake(f"STAGEWIRE_LOG_LEVEL: {level!r} is none of debug, info, warning, error")
        return cls(
            interface=name,
            config=Path(variables.get("STAGEWIRE_CONFIG") or f"/etc/stagewire/{name}.conf"),
            run=folder("STAGEWIRE_RUN_DIR", "/run/stagewire"),
            state=folder("STAGEWIRE_STATE_DIR", "/var/lib/stagewire"),
            log=folder("STAGEWIRE_LOG_DIR", "/var/log/stagewire"),
            wg=Path(variables.get("STAGEWIRE_WG_DIR") or "/var/run/wireguard"),
            managed=_flag(variables, "STAGEWIRE_MANAGED"),
            show_private_key=_flag(variables, "STAGEWIRE_SHOW_PRIVATE_KEY"),
            offload=_flag(variables, "STAGEWIRE_OFFLOAD"),
            workers=_number(variables, "STAGEWIRE_WORKERS", 1, MAX_WORKERS) or _one_per_core_but_one(),
            spares=_number(variables, "STAGEWIRE_SPARES", 0, MAX_SPARES, default=1),
            log_level=_LEVELS[level],
        )


def _flag(variables: Mapping[str, str], name: str) -> bool:
    value = variables.get(name) or "1"
    if value not in {"0", "1"}:
        raise EnvironmentMistake(f"{name}: {value!r} is neither 0 nor 1")
    return value == "1"


def _number(variables: Mapping[str, str], name: str, least: int, most: int, default: int = 0) -> int:
    text = variables.get(name)
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise EnvironmentMistake(f"{name}: {text!r} is no number from {least} to {most}")
    return int(text)


def _one_per_core_but_one() -> int:
    return min(MAX_WORKERS, max(1, (os.cpu_count() or 1) - 1))
