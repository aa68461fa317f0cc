"""`stagewire up` and `down`: an interface's supervisord, from nothing until traffic can flow, and back to nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from stagewire import config, privileges
from stagewire.config import InterfaceConfig
from stagewire.environment import Environment
from stagewire.ipc import slots
from stagewire_cli import default_route, dns, in_force, processes, query
from stagewire_cli.processes import lives
from stagewire_cli.supervision import Supervision

READY_WITHIN = 30.0
"""s; on two cores a start takes two to five, on very busy ones it took fifteen."""
GONE_WITHIN = 10.0
_POLL = 0.05
_RULE_PROTOCOL = "87"  # tun-service marks its routes and rules with it


class Failed(Exception):  # noqa: N818 - the text is what the operator reads
    """What went wrong, in one line."""


def up(environment: Environment, interface: InterfaceConfig, warn: Callable[[str], None]) -> None:
    """Starts an interface and returns when traffic can flow. Raises Failed, having left nothing behind."""
    supervision = Supervision(environment)
    if supervision.pid() is not None:
        raise Failed(f"{environment.interface} is up already; `stagewire down {environment.interface}` takes it down")
    prepare(environment)
    try:
        _remember_configuration(environment)
        _hooks(interface.pre_up, environment)
        default_route.set_rules(environment.interface, interface, warn)
        start_and_wait(environment, lambda: None)
        dns.set_servers(environment.interface, interface.dns, warn)
        _hooks(interface.post_up, environment)
    except BaseException:
        stop(environment)
        raise


def prepare(environment: Environment) -> None:
    """Makes the folders and supervisord's configuration. Raises Failed."""
    if left := processes.services(environment):
        pids = ", ".join(map(str, left))
        raise Failed(
            f"services of an earlier {environment.interface} still run (pids {pids}); `stagewire down` ends them"
        )
    try:
        shutil.rmtree(environment.run, ignore_errors=True)
        privileges.make_folder(environment.run, None, 0o710)
        environment.log.mkdir(parents=True, exist_ok=True)
        Supervision(environment).write_configuration()
    except OSError as error:
        shutil.rmtree(environment.run, ignore_errors=True)
        raise Failed(f"{error.filename or environment.run}: {error.strerror}") from None


def start_and_wait(environment: Environment, meanwhile: Callable[[], None]) -> None:
    """Starts the services and returns when all are at work; calls `meanwhile` again and again. Raises Failed."""
    supervision = Supervision(environment)
    logged = {path: path.stat().st_size for path in environment.log.glob("*.log")}
    _start(supervision)
    _wait_until_ready(environment, supervision, logged, meanwhile)


def down(environment: Environment, interface: InterfaceConfig | None) -> None:
    """Stops an interface and removes all that it made. Raises Failed."""
    supervision = Supervision(environment)
    if supervision.pid() is None and not environment.run.exists() and not processes.services(environment):
        raise Failed(f"{environment.interface} is not up")
    _refuse_anothers(environment, supervision)
    _hooks(interface.pre_down if interface else (), environment)
    if interface and interface.save_config:
        save(environment)
    if interface:
        dns.unset_servers(environment.interface, interface.dns)
    stop(environment)
    _hooks(interface.post_down if interface else (), environment)


def save(environment: Environment) -> None:
    """Writes what is in force back to the file, keeping its comments. Raises Failed or ConfigError."""
    path = remembered_configuration(environment).resolve()
    standing = config.load(path)
    lines = in_force.ask(environment.wg / f"{environment.interface}.sock")
    if lines is None:
        raise Failed(f"{environment.interface}: the wg socket doesn't answer, so what is in force isn't known")
    config.save(path, in_force.over(standing, lines))


def remembered_configuration(environment: Environment) -> Path:
    """The file that an interface was brought up with, for who names only the interface later: a link in the run folder.

    When that was wiped, its supervisord knows.
    """
    link = environment.run / "config"
    pid = None if link.is_symlink() else Supervision(environment).pid()
    named = processes.variables(pid).get("STAGEWIRE_CONFIG") if pid is not None else None
    return Path(named) if named else link


def _remember_configuration(environment: Environment) -> None:
    try:
        (environment.run / "config").symlink_to(environment.config)
    except OSError as error:
        raise Failed(f"{environment.run}: {error.strerror}") from None


def _start(supervision: Supervision) -> None:
    supervisord = Path(sys.executable).parent / "supervisord"
    started = subprocess.run(
        [str(supervisord), "-c", str(supervision.configuration)],
        env=supervision.variables(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if started.returncode != 0:
        last = (started.stderr or started.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise Failed(f"supervisord did not start: {last[0]}")


def _wait_until_ready(
    environment: Environment, supervision: Supervision, logged: Mapping[Path, int], meanwhile: Callable[[], None]
) -> None:
    deadline = time.monotonic() + READY_WITHIN
    waiting_for = ["key 0"]
    while time.monotonic() < deadline:
        meanwhile()
        answer = query.key_service(environment)
        if answer is not None:
            faults = [f"{stage['stage']}-service: {stage['fault']}" for stage in answer["stages"] if stage["fault"]]
            if faults:
                raise Failed("; ".join(faults))
            if answer["ready"]:
                return
            waiting_for = answer["waiting_for"]
        else:
            _look_for_complaints(supervision, logged)
        time.sleep(_POLL)
    raise Failed(f"not ready within {READY_WITHIN:.0f} s, waiting for {', '.join(waiting_for)}; see {environment.log}")


def _look_for_complaints(supervision: Supervision, logged: Mapping[Path, int]) -> None:
    """Who can't work has said why in its log; `logged` is how long the logs were before."""
    for process in supervision.processes() or []:
        if process.log is None or not process.log.exists():
            continue
        lines = process.log.read_bytes()[logged.get(process.log, 0) :].decode(errors="replace").splitlines()
        complaints = [line for line in lines if "level=error" in line]
        dead = process.state in {"EXITED", "BACKOFF", "FATAL"}
        if complaints and (dead or complaints[-1] == lines[-1]):  # the others found a way
            raise Failed(f"{process.name}: {complaints[-1]}")


def stop(environment: Environment) -> None:
    """Stops the services and removes what they made. Raises Failed."""
    supervision = Supervision(environment)
    told = supervision.pid() if supervision.socket.exists() else None
    supervision.shut_down()
    for pid in supervision.pids():
        _wait_for_end(pid, environment.interface, told=pid == told)
    _end_left_behind(environment)
    _remove_interface(environment.interface)
    default_route.remove_rules(environment.interface)
    in_force.remove_stale(environment.wg / f"{environment.interface}.sock")
    shutil.rmtree(environment.run, ignore_errors=True)


def _refuse_anothers(environment: Environment, supervision: Supervision) -> None:
    """Services that another supervisord runs it would only start again."""
    for pid in slots.held(environment.run).values():
        parent = processes.parent(pid)
        if parent not in supervision.pids() and processes.is_supervisord(parent):
            raise Failed(f"{environment.interface} is run by a supervisord of its own; stop that (pid {parent})")


def _end_left_behind(environment: Environment) -> None:
    """What a supervisord that was killed has left behind. Raises Failed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GONE_WITHIN / 2
        while left := processes.services(environment):
            if time.monotonic() > deadline:
                break
            for pid in left:  # again and again: one may only now be able to hear
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(_POLL)
        else:
            return
    raise Failed(f"{environment.interface}: processes {processes.services(environment)} do not end")


def _wait_for_end(pid: int, interface: str, *, told: bool) -> None:
    """`told`: it was, by its socket; if not, or if it doesn't listen, it is told directly, and then made to."""
    for number in (*((0,) if told else ()), signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)  # one that is stopped can't listen
        deadline = time.monotonic() + GONE_WITHIN
        while time.monotonic() < deadline:
            if not lives(pid):
                return
            time.sleep(_POLL)
    raise Failed(f"{interface}: supervisord {pid} does not end; its programs may still run")


def _remove_interface(interface: str) -> None:
    """The TUN device is persistent, and its routes go with it; policy rules don't. One that isn't ours stays."""
    described = subprocess.run(
        ["ip", "-json", "-details", "link", "show", "dev", interface], capture_output=True, text=True, check=False
    )
    found = json.loads(described.stdout)[0].get("linkinfo", {}) if described.returncode == 0 else {}
    if found.get("info_kind") == "tun" and found["info_data"].get("user") == privileges.uid_of("tun"):
        subprocess.run(["ip", "link", "delete", "dev", interface], capture_output=True, check=False)
        for family in ("-4", "-6"):
            _flush_rules(family)


def _flush_rules(family: str) -> None:
    """Removes our policy rules, unless another interface of ours still has its default route."""
    routes = ["ip", family, "route", "show", "table", "all", "proto", _RULE_PROTOCOL, "default"]
    if subprocess.run(routes, capture_output=True, text=True, check=False).stdout.strip():
        return
    subprocess.run(["ip", family, "rule", "flush", "protocol", _RULE_PROTOCOL], capture_output=True, check=False)


def _hooks(commands: Iterable[str], environment: Environment) -> None:
    for command in commands:
        command = command.replace("%i", environment.interface)  # noqa: PLW2901
        shell = shutil.which("bash") or "/bin/sh"
        done = subprocess.run([shell, "-c", command], check=False)
        if done.returncode != 0:
            raise Failed(f"hook failed with {done.returncode}: {command}")
