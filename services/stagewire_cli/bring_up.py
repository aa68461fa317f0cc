"""`stagewire up` and `down`: an interface's supervisord, from nothing until traffic can flow, and back to nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from stagewire import config, privileges
from stagewire.config import InterfaceConfig
from stagewire.environment import Environment
from stagewire.ipc import slots
from stagewire_cli import default_route, dns, in_force, query
from stagewire_cli.supervision import Supervision, lives

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
    remembered_configuration(environment).symlink_to(environment.config)
    try:
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
    left = slots.contenders(environment.run)
    if left:
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
        raise Failed(str(error)) from None


def start_and_wait(environment: Environment, meanwhile: Callable[[], None]) -> None:
    """Starts the services and returns when all are at work; calls `meanwhile` again and again. Raises Failed."""
    supervision = Supervision(environment)
    _start(supervision)
    _wait_until_ready(environment, supervision, meanwhile)


def down(environment: Environment, interface: InterfaceConfig | None) -> None:
    """Stops an interface and removes all that it made. Raises Failed."""
    supervision = Supervision(environment)
    if supervision.pid() is None and not environment.run.exists():
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
    """A link to the file that an interface was brought up with, for who names only the interface later."""
    return environment.run / "config"


def _start(supervision: Supervision) -> None:
    supervisord = Path(sys.executable).parent / "supervisord"
    started = subprocess.run(
        [str(supervisord), "-c", str(supervision.configuration)],
        env=supervision.variables(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if started.returncode != 0:
        last = (started.stderr or started.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise Failed(f"supervisord did not start: {last[0]}")


def _wait_until_ready(environment: Environment, supervision: Supervision, meanwhile: Callable[[], None]) -> None:
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
            _look_for_the_dead(supervision)
        time.sleep(_POLL)
    raise Failed(f"not ready within {READY_WITHIN:.0f} s, waiting for {', '.join(waiting_for)}; see {environment.log}")


def _look_for_the_dead(supervision: Supervision) -> None:
    """A program that refused to work has said why in its log, and is no use being started again."""
    for process in supervision.processes() or []:
        if process.state in {"EXITED", "BACKOFF", "FATAL"} and process.log is not None and process.log.exists():
            complaints = [line for line in process.log.read_text().splitlines() if "level=error" in line]
            if complaints:
                raise Failed(f"{process.name}: {complaints[-1]}")


def stop(environment: Environment) -> None:
    """Stops the services and removes what they made. Raises Failed."""
    supervision = Supervision(environment)
    pid = supervision.pid()
    supervision.shut_down()
    if pid is not None:
        _wait_for_end(pid, environment.interface)
    _end_left_behind(environment)
    _remove_interface(environment.interface)
    default_route.remove_rules(environment.interface)
    in_force.remove_stale(environment.wg / f"{environment.interface}.sock")
    shutil.rmtree(environment.run, ignore_errors=True)


def _refuse_anothers(environment: Environment, supervision: Supervision) -> None:
    """Services that another supervisord runs it would only start again."""
    for pid in slots.held(environment.run).values():
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if parent not in {1, supervision.pid()} and "supervisord" in Path(f"/proc/{parent}/cmdline").read_text():
            raise Failed(f"{environment.interface} is run by a supervisord of its own; stop that (pid {parent})")


def _end_left_behind(environment: Environment) -> None:
    """What a supervisord that was killed has left behind. Raises Failed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GONE_WITHIN / 2
        for pid in slots.contenders(environment.run):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        while slots.contenders(environment.run):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL)
        else:
            return
    raise Failed(f"{environment.interface}: processes {slots.contenders(environment.run)} do not end")


def _wait_for_end(pid: int, interface: str) -> None:
    deadline = time.monotonic() + GONE_WITHIN
    while time.monotonic() < deadline:
        if not lives(pid):
            return
        time.sleep(_POLL)
    # It doesn't answer its socket: tell it directly, once.
    os.kill(pid, signal.SIGTERM)
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
