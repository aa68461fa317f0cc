"""Reads the environment variables that every program obeys.

| variable | meaning | default |
|---|---|---|
| `STAGEWIRE_INTERFACE` | the interface | `wg0` |
| `STAGEWIRE_CONFIG` | its configuration file | `/etc/stagewire/<interface>.conf` |
| `STAGEWIRE_RUN_DIR` | pipes, one folder per interface | `/run/stagewire` |
| `STAGEWIRE_STATE_DIR` | timestamps, which survive a reboot | `/var/lib/stagewire` |
| `STAGEWIRE_LOG_DIR` | logs of the programs that `stagewire up` starts | `/var/log/stagewire` |
| `STAGEWIRE_WG_DIR` | folder of the `wg` socket | `/var/run/wireguard`, where `wg` looks |
| `STAGEWIRE_WORKERS` | workers, 1 to 64 | one per core but one, at least one |
| `STAGEWIRE_SPARES` | spares of each program, 0 to 4 | 1 |
| `STAGEWIRE_OFFLOAD` | 0: the kernel hands over and takes packets one by one | 1, as far as the kernel can |
| `STAGEWIRE_KERNEL` | `plain` or `compiled`: what carries packets | compiled, where it is built |
| `STAGEWIRE_PIPES` | `libzmq`: libzmq carries trains too, slower; see docs/PIPES.md | `direct` |
| `STAGEWIRE_UIDS` | FIRST-LAST: uids and gids that each interface takes 128 of | 1879048192-1879113727 |
| `STAGEWIRE_STAGES` | the operator's own stages, `name:pipe,...`; see docs/PIPES.md | none |
| `STAGEWIRE_METRICS` | ADDRESS:PORT of metrics and health, or the next free port; `off` for none | `127.0.0.1:9586` |
| `STAGEWIRE_METRICS_NAMES` | host names under which they may be asked for, `NAME,...` | addresses and `localhost` |
| `STAGEWIRE_TELEMETRY` | 0: stages count for themselves alone, and status, why and metrics know no counters | 1 |
| `STAGEWIRE_LOG_LEVEL` | debug, info, warning, error; without it, `LOG_LEVEL` counts | `info` |
| `STAGEWIRE_SHOW_PRIVATE_KEY` | 0: the `wg` socket doesn't show the private key | 1: without it `wg` shows no public key |
| `STAGEWIRE_MANAGED` | 0: no file; other programs set addresses and routes | 1; `stagewire INTERFACE` sets 0 |
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from stagewire.limits import MAX_PORT, MAX_SPARES, MAX_WORKERS
from stagewire.stages import MAX_OWN_STAGES, STAGES, UID_RANGES, UIDS

_INTERFACE_NAME = re.compile(r"[a-zA-Z0-9_=+.-]{1,15}")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9-]{0,15}")
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,252})")
_LAST_UID = 4294967293
"""The kernel and others use the two above for "none"."""
TRANSPORTS = ("direct", "libzmq")
KERNELS = ("plain", "compiled")
BLOCK = "STAGEWIRE_UID_BLOCK"
"""Tells a program which block of uids its interface has; no variable for an operator."""
_LEVELS = {
    "debug": "debug",
    "verbose": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "silent": "error",
}


METRICS = "127.0.0.1:9586"
"""Where exporters for WireGuard usually listen."""


_ADMINISTRATORS = {"/usr/local/bin": "/usr/local/sbin", "/usr/bin": "/usr/sbin", "/bin": "/sbin"}


def search_path(path: str | None) -> str:
    """Returns PATH with the administrators' folders at its end: cron(8) and a plain su(1) leave them out."""
    folders = (path or os.defpath).split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*folders, *filter(None, map(_ADMINISTRATORS.get, folders))]))


class EnvironmentMistake(Exception):  # noqa: N818 - a mistake of the operator's
    """Names a wrong variable in one line for the operator."""


def valid_interface_name(name: str) -> bool:
    """Tells whether Linux and wg-quick both accept this as an interface's name."""
    return _INTERFACE_NAME.fullmatch(name) is not None and name not in (".", "..")


@dataclass(frozen=True, slots=True)
class Environment:
    """Describes one interface's folders and options."""

    interface: str
    config: Path
    run: Path
    """The interface's own folder, with its pipes."""
    state: Path
    log: Path
    wg: Path
    """Folder of the `wg` socket."""
    workers: int
    spares: int
    managed: bool
    """False for a bare interface: it has no configuration file, and other programs set addresses, MTU and routes."""
    show_private_key: bool
    offload: bool
    """The kernel hands over many packets at a time, where it can."""
    log_level: str
    pipes: str
    """One of TRANSPORTS, which carries trains."""
    kernel: str = ""
    """One of KERNELS, which a worker must have; empty for the better one that can be loaded."""
    uids: tuple[tuple[int, int], ...] = UID_RANGES
    """Ranges of uids that the interface's block may come from, the preferred first."""
    uid_block: int | None = None
    """First uid of the interface's block, as the process that started this one says (BLOCK)."""
    metrics: tuple[str, int] | None = None
    """Address and port of metrics and health; None for none."""
    metrics_names: tuple[str, ...] = ()
    """Host names, in lower case, under which metrics and health may be asked for."""
    telemetry: bool = True
    """Stages report to status-service."""
    own_stages: tuple[tuple[str, str], ...] = ()
    """The operator's own stages, each with the name of the pipe that it stands in."""

    @property
    def resolv_conf_before(self) -> Path:
        """Returns the path of the host's resolv.conf as it was before `up` set the tunnel's DNS servers."""
        return self.run / "resolv.conf"

    @classmethod
    def read(cls, variables: Mapping[str, str], interface: str | None = None) -> "Environment":
        """Reads environment variables; `interface` overrides theirs. Raises EnvironmentMistake."""
        name = interface or variables.get("STAGEWIRE_INTERFACE") or "wg0"
        if not valid_interface_name(name):
            raise EnvironmentMistake(
                f"STAGEWIRE_INTERFACE: {name!r} is no interface name; use 1 to 15 of a-z A-Z 0-9 _ = + . -"
            )

        def folder(variable: str, default: str) -> Path:
            return _absolute(variables, variable, default) / name

        level = (variables.get("STAGEWIRE_LOG_LEVEL") or variables.get("LOG_LEVEL") or "info").lower()
        if level not in _LEVELS:
            raise EnvironmentMistake(f"STAGEWIRE_LOG_LEVEL: {level!r} is no level; set debug, info, warning or error")
        return cls(
            interface=name,
            config=_path(variables.get("STAGEWIRE_CONFIG") or f"/etc/stagewire/{name}.conf"),
            run=folder("STAGEWIRE_RUN_DIR", "/run/stagewire"),
            state=folder("STAGEWIRE_STATE_DIR", "/var/lib/stagewire"),
            log=folder("STAGEWIRE_LOG_DIR", "/var/log/stagewire"),
            wg=_absolute(variables, "STAGEWIRE_WG_DIR", "/var/run/wireguard"),
            managed=_flag(variables, "STAGEWIRE_MANAGED"),
            show_private_key=_flag(variables, "STAGEWIRE_SHOW_PRIVATE_KEY"),
            offload=_flag(variables, "STAGEWIRE_OFFLOAD"),
            workers=_number(variables, "STAGEWIRE_WORKERS", 1, MAX_WORKERS) or _one_per_core_but_one(),
            spares=_number(variables, "STAGEWIRE_SPARES", 0, MAX_SPARES, default=1),
            log_level=_LEVELS[level],
            pipes=_choice(variables, "STAGEWIRE_PIPES", TRANSPORTS),
            kernel=_choice(variables, "STAGEWIRE_KERNEL", KERNELS) if variables.get("STAGEWIRE_KERNEL") else "",
            uids=_uids(variables),
            metrics=_place(variables, "STAGEWIRE_METRICS", METRICS),
            metrics_names=_host_names(variables, "STAGEWIRE_METRICS_NAMES"),
            uid_block=int(told) if (told := variables.get(BLOCK, "")).isdecimal() else None,
            telemetry=_flag(variables, "STAGEWIRE_TELEMETRY"),
            own_stages=_own_stages(variables),
        )


def _absolute(variables: Mapping[str, str], name: str, default: str) -> Path:
    path = _path(variables.get(name) or default)
    if not path.is_absolute():  # it would mean another folder to each program
        raise EnvironmentMistake(f"{name}: {str(path)!r} is no absolute path; begin it with /")
    return path


def _path(text: str) -> Path:
    try:
        text.encode()
    except UnicodeEncodeError:  # it could not be written into supervisord's configuration
        raise EnvironmentMistake(f"{text!r} is no path in UTF-8; rename its parts that are not") from None
    return Path(text)


def _place(variables: Mapping[str, str], name: str, default: str) -> tuple[str, int] | None:
    text = variables.get(name) or default
    if text == "off":
        return None
    address, _, port = text.rpartition(":")
    mistake = EnvironmentMistake(f"{name}: {text!r} is no ADDRESS:PORT such as {default}; `off` is none")
    try:
        place = str(ip_address(address.strip("[]"))), int(port)
    except ValueError:
        raise mistake from None
    if not 1 <= place[1] <= MAX_PORT:
        raise mistake
    return place


def _host_names(variables: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = variables.get(name)
    found = tuple(each.strip().lower().removesuffix(".") for each in text.split(",")) if text else ()
    for each in found:
        if not _HOST_NAME.fullmatch(each):
            raise EnvironmentMistake(f"{name}: {each!r} is no host name; set NAME,... without ports")
    return found


def _choice(variables: Mapping[str, str], name: str, words: tuple[str, ...]) -> str:
    """Returns the variable's word; by default the first of `words`."""
    value = variables.get(name) or words[0]
    if value not in words:
        raise EnvironmentMistake(f"{name}: {value!r} is unknown; set {' or '.join(words)}")
    return value


def _flag(variables: Mapping[str, str], name: str) -> bool:
    value = variables.get(name) or "1"
    if value not in {"0", "1"}:
        raise EnvironmentMistake(f"{name}: {value!r} is no switch; set 0 or 1")
    return value == "1"


def _number(variables: Mapping[str, str], name: str, least: int, most: int, default: int = 0) -> int:
    text = variables.get(name)
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise EnvironmentMistake(f"{name}: {text!r} is no number from {least} to {most}")
    return int(text)


def _uids(variables: Mapping[str, str]) -> tuple[tuple[int, int], ...]:
    text = variables.get("STAGEWIRE_UIDS")
    if not text:
        return UID_RANGES
    if found := re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", text):
        first, last = int(found[1]), int(found[2])
        if 0 < first <= last + 1 - UIDS and last <= _LAST_UID:
            return ((first, last),)
    raise EnvironmentMistake(f"STAGEWIRE_UIDS: {text!r} is no range of at least {UIDS} uids; set FIRST-LAST")


def _own_stages(variables: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    text = variables.get("STAGEWIRE_STAGES")
    parts = [each.strip().partition(":") for each in text.split(",")] if text else []
    found = tuple((name, pipe) for name, _, pipe in parts)
    for name, pipe in found:
        if not (_STAGE_NAME.fullmatch(name) and pipe) or name in STAGES:
            raise EnvironmentMistake(
                f"STAGEWIRE_STAGES: {name!r} is no name for a stage of your own; set NAME:PIPE,..."
            )
    if len({name for name, _ in found}) != len(found) or len(found) > MAX_OWN_STAGES:
        raise EnvironmentMistake(f"STAGEWIRE_STAGES: name each stage once, {MAX_OWN_STAGES} at most")
    return found


def _one_per_core_but_one() -> int:
    return min(MAX_WORKERS, max(1, (os.cpu_count() or 1) - 1))
