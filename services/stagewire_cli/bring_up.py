"""Brings an interface up until traffic can flow, and takes it down, for `stagewire up` and `down`."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stagewire import config, files, logs
from stagewire.config import ConfigError, InterfaceConfig, unconfirmed
from stagewire.environment import Environment
from stagewire.linux import privileges, sandbox, uids
from stagewire.linux.uids import UidsRefused
from stagewire.process import holders
from stagewire_cli import (
    apart,
    claim,
    complaints,
    dns,
    ending,
    hooks,
    host_warnings,
    kernels,
    moved_link,
    peers_file,
    predecessors,
    processes,
    saving,
    the_file,
    turn,
    unresolved,
)
from stagewire_cli.done import FOLDER, POST_UP, PRE_UP, Done, DoneList, Plan
from stagewire_cli.failures import Failed, NotUp
from stagewire_cli.host_undo import network_of, undo_host
from stagewire_cli.networks import Identity
from stagewire_cli.supervision import Supervision
from stagewire_cli.undoing import Undoing
from stagewire_cli.wg_file import WgFile

READY_WITHIN = 30.0
"""s that a start may take on a busy machine."""
RUNNER_GONE_WITHIN = 120.0
"""s that a `stagewire run` gets to end: its hooks may take long."""
_POLL = 0.05

Start = Callable[[Supervision], None]
"""Starts a supervisord. Raises Failed."""


def up(
    environment: Environment,
    interface: InterfaceConfig,
    warn: Callable[[str], None],
    *,
    start: Start | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Starts an interface and returns when traffic can flow. Raises Failed and leaves nothing behind.

    `start` starts a supervisord in the foreground; without it one starts in the background. `meanwhile` is called often.
    """
    kernels.refuse_unloadable(environment)
    if start is None:  # in the foreground, supervisord itself warns of missing privileges, and no log files are written
        environment = on_this_host(environment, warn)
    with predecessors.start(environment, lambda _environment: _take_down(environment, None, warn)):
        _up(environment, interface, warn, start, meanwhile)


def _up(
    environment: Environment,
    interface: InterfaceConfig,
    warn: Callable[[str], None],
    start: Start | None,
    meanwhile: Callable[[], None],
) -> None:
    peers_file.clear_former(environment.config)
    _undo_what_is_left(environment, warn)
    predecessors.refuse_anothers_device(environment)
    prepare(environment, foreground=start is not None)
    done = DoneList(environment.run)
    try:
        _note(done.begin, Plan.of(interface))
        _note(done.place, Identity.of_here())
        _remember_configuration(environment)
        _note(done.note, PRE_UP)
        _run_hooks("PreUp", interface.pre_up, environment)
        start_and_wait(environment, meanwhile, start)
        _note(dns.set_noted, environment.interface, interface.dns, done, warn)
        _note(done.note, POST_UP)
        _run_hooks("PostUp", interface.post_up, environment)
        unresolved.say(environment, warn)
        host_warnings.say(environment, interface, warn)
        apart.call(partial(_say_unconfirmed, environment, warn))
    except BaseException:
        _take_down(environment, done.read(), warn)
        raise


def _say_unconfirmed(environment: Environment, warn: Callable[[str], None]) -> None:
    """Warns once that this start puts a text in force which `apply --confirm` had on trial, and nobody confirmed."""
    read = the_file.what_was_read(environment)
    if read is None:
        return
    with suppress(ConfigError):
        text = config.load_text(environment.config)
        if read.was(text) and unconfirmed.holds(environment.state, text):
            warn(f"{environment.config} was applied on trial and never confirmed; it is in force now")
            unconfirmed.forget(environment.state)


def on_this_host(environment: Environment, warn: Callable[[str], None]) -> Environment:
    """Warns once of missing privileges; moves the logs into the run folder if their own can't be written to."""
    if lacking := sandbox.does_without():
        warn(f"{environment.interface} {lacking}")
    try:
        environment.log.mkdir(parents=True, exist_ok=True)
        if os.access(environment.log, os.W_OK):
            return environment
        reason = "can't be written to"
    except OSError as error:
        reason = error.strerror or str(error)
    logs = environment.run / "log" / environment.interface
    warn(f"logs are in {logs} and vanish with the interface, because of {environment.log}: {reason}")
    return replace(environment, log=logs)


def _undo_what_is_left(environment: Environment, warn: Callable[[str], None]) -> None:
    """Undoes what an earlier life left behind when it, or the machine, was killed."""
    left = DoneList(environment.run).read()
    if left is not None:
        _take_down(environment, left, warn)


def _take_down(
    environment: Environment, done: Done | None, say: Callable[[str], None], *, keep: Callable[[], None] = lambda: None
) -> bool:
    """Undoes `done` and stops the services; calls `keep` after PreDown. Says whether each step worked. Raises Failed."""
    undoing = Undoing(environment, done or Done(Plan()), say)
    undoing.run_pre_down()
    undoing.attempt(keep)
    undoing.forget_dns()
    stop(environment, undoing.complain)
    undoing.run_post_down()
    files.wipe(environment.run)
    return not undoing.failed


def _note(write: Callable[..., None], *words: Any) -> None:
    try:
        write(*words)
    except OSError as error:
        raise Failed(f"{error.filename or 'the run folder'}: {error.strerror}") from None


def prepare(environment: Environment, *, foreground: bool = False) -> None:
    """Makes the folders and supervisord's configuration. Raises Failed."""
    try:
        files.wipe(environment.run)
        uids.claim(environment, afresh=True)
    except OSError as error:
        raise Failed(f"{error.filename or environment.run}: {error.strerror}") from None
    except UidsRefused as refused:
        raise Failed(str(refused)) from None
    try:
        privileges.make_folder(environment.run, None, 0o710)
        if not foreground:
            environment.log.mkdir(parents=True, exist_ok=True)
        dns.keep_copy(environment.resolv_conf_before)
        Supervision(environment).write_configuration(foreground=foreground)
    except OSError as error:
        files.wipe(environment.run)
        uids.give_up(environment)
        raise Failed(f"{error.filename or environment.run}: {error.strerror}") from None


def start_and_wait(environment: Environment, meanwhile: Callable[[], None], start: Start | None = None) -> None:
    """Starts the services and returns when all are at work; calls `meanwhile` often. Raises Failed."""
    supervision = Supervision(environment)
    logged = {path: path.stat().st_size for path in environment.log.glob("*.log")}
    (start or _start)(supervision)
    _wait_until_ready(environment, supervision, logged, meanwhile)


def down(environment: Environment, say: Callable[[str], None]) -> bool:
    """Stops an interface and removes all that it made; says whether every step worked. Raises Failed.

    Hooks and DNS are undone by the list of what `up` did. The present file does not matter for that.
    """
    if runner := claim.runner(environment):
        return _have_ended(runner, environment)
    with turn.take(environment):
        return _down(environment, say)


def _down(environment: Environment, say: Callable[[str], None]) -> bool:
    found = processes.find(environment)
    if not found:
        if not environment.run.exists():
            raise NotUp(environment.interface)
        predecessors.refuse_anothers_folder(environment)
    _refuse_anothers(environment)
    peers_file.clear_former(environment.config)
    done = DoneList(environment.run).read()
    saves = done is not None and done.plan.save_config
    return _take_down(
        environment, done, say, keep=lambda: saving.save_as_it_goes_down(environment, say) if saves else None
    )


def _have_ended(runner: claim.Runner, environment: Environment) -> bool:
    """Makes the `stagewire run` of an interface take it down; says whether every step worked. Raises Failed."""
    with closing(runner):
        runner.end()
        if not select.select([runner], [], [], RUNNER_GONE_WITHIN)[0]:
            why = f"its `stagewire run` does not end within {RUNNER_GONE_WITHIN:.0f} s"
            raise Failed(f"{environment.interface}: {why}; kill pid {runner.pid} and run `stagewire down` again")
        return not runner.failed()


def end(environment: Environment, say: Callable[[str], None]) -> bool:
    """Takes down the interface that this process runs in the foreground; says whether every step worked. Raises Failed."""
    with turn.take(environment):
        done = DoneList(environment.run).read()
        saves = done is not None and done.plan.save_config
        return _take_down(
            environment, done, say, keep=lambda: saving.save_as_it_goes_down(environment, say) if saves else None
        )


def is_up(environment: Environment) -> bool:
    """Says whether an interface has a process or a run folder."""
    return environment.run.exists() or bool(processes.find(environment))


def _remember_configuration(environment: Environment) -> None:
    try:
        (environment.run / "config").symlink_to(environment.config)
    except OSError as error:
        raise Failed(f"{environment.run}: {error.strerror}") from None


def _start(supervision: Supervision) -> None:
    supervisord = Path(sys.executable).parent / "supervisord"
    started = subprocess.run(
        [str(supervisord), "-c", str(supervision.configuration)],
        env=supervision.variables(), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if started.returncode != 0:
        lines = (started.stderr or started.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("Error:")]  # supervisord's advice follows its error
        why = [*lines[-1:], *errors][-1:] or ["no reason given"]
        raise Failed(f"supervisord did not start: {why[0]}")


def _wait_until_ready(
    environment: Environment, supervision: Supervision, logged: Mapping[Path, int], meanwhile: Callable[[], None]
) -> None:
    from stagewire.control import query  # slow to import, which `down` avoids

    deadline = time.monotonic() + READY_WITHIN
    waiting_for = ["key 0"]
    while time.monotonic() < deadline:
        meanwhile()
        answer = query.key_service(environment)
        if answer is not None:
            faults = [f"{stage.stage}-service: {stage.fault}" for stage in answer.stages if stage.fault]
            if faults:
                raise Failed("; ".join(faults))
            if answer.ready:
                return
            waiting_for = [*answer.waiting_for]
        else:
            _look_for_complaints(environment, supervision, logged)
        time.sleep(_POLL)
    raise Failed(f"not ready within {READY_WITHIN:.0f} s, still waiting for {', '.join(waiting_for)}; the log says why")


def _look_for_complaints(environment: Environment, supervision: Supervision, logged: Mapping[Path, int]) -> None:
    """Raises Failed with the reason that a service logged if it can't work; skips the first `logged` bytes of each log."""
    for process in supervision.processes() or []:
        if process.log is None or not process.log.exists():
            continue
        lines = process.log.read_bytes()[logged.get(process.log, 0) :].decode(errors="replace").splitlines()
        complaint = complaints.last(lines)
        dead = process.state in {"EXITED", "BACKOFF", "FATAL"}
        if complaint and (dead or complaint == lines[-1]):  # a later line of a live service means that it works again
            raise Failed(f"{process.group}: {complaints.reason(complaint, environment)}")


def _complain(text: str) -> None:
    sys.stderr.write(f"stagewire: {text}\n")


def stop(environment: Environment, complain: Callable[[str], None] = _complain) -> None:
    """Stops the services and removes what they made. Complains of what stays, such as processes. Raises Failed."""
    socket = WgFile(environment)
    if socket.is_ours:
        socket.remove()  # first, because the next start may want its name
    uids.look(environment)
    found = processes.find(environment)
    done = DoneList(environment.run).read()
    noted = done.network if done is not None else None
    with ending.followed_by(found.keepers), network_of([*found.supervisords, *found.services], noted) as network:
        with moved_link.released(environment, network) as link_is_gone:
            stuck = ending.end_all(environment)
        if network is not None:
            if left := undo_host(environment, network, link_is_gone=link_is_gone):
                complain(f"{environment.interface}: not undone: {logs.cleaned_lines(left)}")
        elif noted is not None and noted.is_of_this_boot():
            _complain(f"{environment.interface}: its network namespace is gone, with all that was made in it")
        socket.remove()
        _empty(environment.run)
        uids.give_up(environment)
    if stuck:
        complain(ending.complaint(stuck))


def _empty(run: Path) -> None:
    """Removes the run folder, but keeps the list of what `up` did if that is still in it."""
    if not (run / FOLDER).exists():
        files.wipe(run)
        return
    for entry in run.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if entry.name != FOLDER:
                files.wipe(entry)
        else:
            entry.unlink(missing_ok=True)


def _refuse_anothers(environment: Environment) -> None:
    """Raises Failed for services of a plain supervisord, which would only start them again."""
    if others := holders.present(environment.run, holders.OTHER_SUPERVISORD):
        raise Failed(f"{environment.interface} has a supervisord of its own (pid {others[0]}); stop that instead")


def _run_hooks(kind: str, commands: Iterable[str], environment: Environment) -> None:
    if failure := hooks.run_until_one_fails(kind, commands, environment.interface):
        raise Failed(failure)
