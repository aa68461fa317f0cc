"""What the environment tells every program: which interface, where its files are, how many workers.

| variable                | meaning                                        | default                                    |
|-------------------------|------------------------------------------------|--------------------------------------------|
| `STAGEWIRE_INTERFACE`   | the interface                                  | `wg0`                                      |
| `STAGEWIRE_CONFIG`      | its configuration file                         | `/etc/stagewire/<interface>.conf`          |
| `STAGEWIRE_RUN_DIR`     | pipes, one folder per interface                | `/run/stagewire`                           |
| `STAGEWIRE_STATE_DIR`   | what survives a restart                        | `/var/lib/stagewire`                       |
| `STAGEWIRE_LOG_DIR`     | logs of what `stagewire up` started            | `/var/log/stagewire`                       |
| `STAGEWIRE_WORKERS`     | crypto workers, 1 to 64                        | one per core but one, at least one         |
| `STAGEWIRE_LOG_LEVEL`   | debug, info, warning, error                    | `info`; `LOG_LEVEL` is understood as well  |
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stagewire import config

MAX_WORKERS = 64
"""The receiver index has room for 256; nobody has measured beyond a handful."""
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


@dataclass(frozen=True, slots=True)
class Environment:
    """One interface's surroundings."""

    interface: str
    config: Path
    run: Path
    """The interface's own folder of pipes."""
    state: Path
    log: Path
    workers: int
    log_level: str

    @classmethod
    def read(cls, variables: Mapping[str, str], interface: str | None = None) -> "Environment":
        """From environment variables; `interface` overrides theirs. Raises EnvironmentMistake."""
        name = interface or variables.get("STAGEWIRE_INTERFACE") or "wg0"
        if not config.valid_interface_name(name):
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
            workers=_workers(variables.get("STAGEWIRE_WORKERS")),
            log_level=_LEVELS[level],
        )


def _workers(text: str | None) -> int:
    if not text:
        return min(MAX_WORKERS, max(1, (os.cpu_count() or 1) - 1))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_WORKERS:
        raise EnvironmentMistake(f"STAGEWIRE_WORKERS: {text!r} is no number from 1 to {MAX_WORKERS}")
    return int(text)
