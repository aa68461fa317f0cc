"""`stagewire run` and a plain supervisord in the foreground: whatever standard output is, and until nothing is left."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from tests.memory import in_memory

from lab.namespaces import Namespace, stop
from lab.stagewire import executable, expect_no_sigsys
from lab.wait import NeverHappened, until
from lab.wireguard_go import new_key_pair
from stagewire.config import decode_key
from stagewire.control import query
from stagewire.environment import Environment
from stagewire.process import slots
from stagewire.stages import STAGES
from stagewire_cli import claim, turn
from stagewire_cli.supervision import Supervision

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PRIVATE_RUN = 'mount -t tmpfs none /run && exec "$@"'
"""A plain supervisord's socket and pid file have fixed names in /run, which another one on this machine may be using."""
OUTPUT = "output"
HOOKS = "".join(
    f"{kind} = ip link show %i > /dev/null 2>&1; echo {kind} $? >> {{log}}\n"
    for kind in ("PreUp", "PostUp", "PreDown", "PostDown")
)


class InForeground:
    """One interface, wg0, of a namespace."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self.namespace, self.directory = namespace, directory
        self.config = directory / "wg0.conf"
        self.hooks = directory / "hooks"
        text = f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n"
        self.config.write_text(text + HOOKS.format(log=self.hooks))
        self.config.chmod(0o600)
        self.variables = {
            "STAGEWIRE_CONFIG": str(self.config), "STAGEWIRE_RUN_DIR": str(directory / "run"), "STAGEWIRE_SPARES": "0",
            "STAGEWIRE_STATE_DIR": str(directory / "state"), "STAGEWIRE_WG_DIR": str(directory / "wg"),
            "STAGEWIRE_WORKERS": "1",
        }  # fmt: skip
        self.environment = Environment.read(self.variables)
        self.sigsys_expected = 0

    def run(self, output: int | IO[bytes] | None) -> "subprocess.Popen[bytes]":
        """`stagewire run`; None closes standard output and standard error."""
        command: tuple[str | Path, ...] = (executable("stagewire"), "run", self.config)
        if output is None:
            command = ("sh", "-c", 'exec "$@" >&- 2>&- <&-', "-", *command)
        return self.namespace.popen(
            *command, env=self.variables, output=subprocess.DEVNULL if output is None else output
        )

    def plain(self, output: int | IO[bytes]) -> "subprocess.Popen[bytes]":
        """`supervisord -c supervisord.conf`."""
        return self.namespace.popen(
            *("unshare", "--mount", "sh", "-c", PRIVATE_RUN, "-", "env", f"--chdir={ROOT}"),
            *(executable("supervisord"), "-c", "supervisord.conf"),
            env=self.variables, output=output,
        )  # fmt: skip

    def held(self, stage: str) -> int:
        """The pid of its holder."""
        return slots.held(self.environment.run)[stage, 0]

    def status(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(
            self.namespace.run(
                executable("stagewire"), "status", "--json", "wg0", check=False, env=self.variables, timeout=30
            ).stdout
        )
        return said

    def ready(self) -> bool:
        answer = query.key_service(self.environment)
        return answer is not None and answer.ready

    def expect_nothing_left(self) -> None:
        until(lambda: self.namespace.pids() == [], 5, "all processes to have ended")
        links = json.loads(self.namespace.run("ip", "-json", "link").stdout)
        assert {link["ifname"] for link in links} == {"lo"}
        left = [path for path in (self.directory / "run").rglob("*") if path.name != "wg0.turn"]
        assert left == []
        assert not (self.directory / "wg/wg0.sock").exists()


@pytest.fixture
def wg0(lab_directory: Path) -> Iterator[InForeground]:
    with Namespace("front") as namespace:
        made = InForeground(namespace, lab_directory)
        yield made
    if (written := lab_directory / OUTPUT).exists():
        expect_no_sigsys(written.read_text(), made.sigsys_expected)


@contextmanager
def a_file(directory: Path) -> Iterator[tuple[int, Callable[[], str]]]:
    path = directory / OUTPUT
    with path.open("ab") as file:
        yield file.fileno(), path.read_text


@contextmanager
def a_pipe(_directory: Path) -> Iterator[tuple[int, Callable[[], str]]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with _kept(lambda: os.read(reader, 1 << 16)) as read, os.fdopen(reader), os.fdopen(writer):
        yield writer, read


@contextmanager
def a_socket(_directory: Path) -> Iterator[tuple[int, Callable[[], str]]]:
    """As systemd's journal gives one."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    with reader, writer, _kept(lambda: reader.recv(1 << 16)) as read:
        yield writer.fileno(), read


@contextmanager
def _kept(read: Callable[[], bytes]) -> Iterator[Callable[[], str]]:
    collected = b""

    def text() -> str:
        nonlocal collected
        with suppress(BlockingIOError):
            while data := read():
                collected += data
        return collected.decode()

    yield text


@pytest.mark.parametrize("kind", [a_file, a_pipe, a_socket])
def test_every_line_comes_out_and_nothing_is_left(wg0: InForeground, kind: Callable[..., object]) -> None:
    with kind(wg0.directory) as (output, read):  # type: ignore[attr-defined]
        process = wg0.run(output)
        until(lambda: "stagewire: wg0: is up" in read(), 30, f"it to be up: {read()}")
        assert wg0.ready()
        assert wg0.hooks.read_text().split("\n")[:-1] == ["PreUp 1", "PostUp 0"]
        for stage in STAGES:  # not all of them are needed to be up
            started = f"program={stage}-service event=started"
            until(lambda started=started: started in read(), 30, started)  # type: ignore[misc]
        process.terminate()
        assert process.wait(15) == 0
        lines = read().splitlines()
    assert not [line for line in lines if "Traceback" in line]
    expect_no_sigsys("\n".join(lines))
    assert all(line.startswith(("timestamp=", "20", "stagewire: ")) for line in lines)
    assert wg0.hooks.read_text().split("\n")[2:-1] == ["PreDown 0", "PostDown 1"]
    wg0.expect_nothing_left()


def test_standard_output_may_be_closed(wg0: InForeground) -> None:
    process = wg0.run(None)
    until(wg0.ready, 30, "the gateway to be ready")
    until(lambda: wg0.hooks.exists() and "PostUp 0" in wg0.hooks.read_text(), 10, "its hooks to have run")
    for pid in wg0.namespace.pids():
        for number in (1, 2):  # no file of ours has a number that somebody writes to
            assert str(Path(f"/proc/{pid}/fd/{number}").readlink()) == "/dev/null"
    process.terminate()
    assert process.wait(15) == 0
    wg0.expect_nothing_left()


def test_a_signal_while_it_starts_ends_it(wg0: InForeground) -> None:
    with a_file(wg0.directory) as (output, _read):
        process = wg0.run(output)
        until((wg0.directory / "run/wg0/supervisord.conf").exists, 20, "it to begin")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert wg0.hooks.read_text().split("\n")[:-1] == ["PreUp 1", "PostDown 1"]
    wg0.expect_nothing_left()


def test_a_stage_that_the_filter_killed_is_named_with_a_supervisord_and_between_two(wg0: InForeground) -> None:
    """By the signal that a filter sends."""
    wg0.sigsys_expected = 2
    with a_file(wg0.directory) as (output, read):
        process = wg0.run(output)
        until(lambda: "is up" in read(), 30, f"it to be up: {read()}")
        os.kill(wg0.held("status"), signal.SIGSYS)
        until(lambda: wg0.status()["killed_by_filter"] == {"status-service": 1}, 10, "the word of `status`")
        supervisord = Supervision(wg0.environment).pid()
        assert supervisord is not None
        os.kill(supervisord, signal.SIGKILL)
        os.kill(wg0.held("resolver"), signal.SIGSYS)
        until(lambda: "wg0: the kernel's filter killed resolver-service once" in read(), 20, "a line")
        until(wg0.ready, 30, "it to be ready again")
        process.terminate()
        assert process.wait(15) == 0
    wg0.expect_nothing_left()


def test_a_hangup_reloads_the_file(wg0: InForeground) -> None:
    with a_file(wg0.directory) as (output, read):
        process = wg0.run(output)
        until(lambda: "is up" in read(), 30, f"it to be up: {read()}")
        text = wg0.config.read_text()
        wg0.config.write_text(f"{text}\n[Peer]\nPublicKey = {new_key_pair().public}\nAllowedIPs = 10.9.0.2/32\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: _peers(wg0) == 1, 10, "a peer")
        wg0.config.write_text(f"{text}Nonsense = 1\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: " in read(), 10, "a refusal")
        assert _peers(wg0) == 1
        process.terminate()
        assert process.wait(15) == 0
    wg0.expect_nothing_left()


def _peers(wg0: InForeground) -> int:
    answer = query.key_service(wg0.environment)
    return len(answer.peers) if answer is not None else 0


def test_a_second_one_is_refused_and_down_ends_the_first(wg0: InForeground) -> None:
    with a_file(wg0.directory) as (output, read):
        process = wg0.run(output)
        until(lambda: "is up" in read(), 30, f"it to be up: {read()}")
        for command in ("run", "up"):
            second = wg0.namespace.run(
                executable("stagewire"), command, wg0.config, check=False, env=wg0.variables, timeout=30
            )
            assert second.returncode == 1
            assert len(second.stderr.splitlines()) == 1
        wg0.namespace.run(executable("stagewire"), "down", "wg0", env=wg0.variables, timeout=30)
        assert process.poll() == 0 or process.wait(1) == 0
    wg0.expect_nothing_left()


def test_it_keeps_no_key_of_the_file(wg0: InForeground) -> None:
    """It runs for as long as the gateway: what it read would stay in its memory beyond a key's removal."""
    first, second, peer, preshared = (new_key_pair() for _ in range(4))
    text = wg0.config.read_text()
    before = re.sub("PrivateKey = .*", f"PrivateKey = {first.private}", text)
    before += f"[Peer]\nPublicKey = {peer.public}\nPresharedKey = {preshared.private}\nAllowedIPs = 10.9.0.2/32\n"
    wg0.config.write_text(before)
    keys = {"first": first.private, "second": second.private, "psk": preshared.private}
    searched = {name: decode_key(key) for name, key in keys.items()}
    with a_file(wg0.directory) as (output, read):
        process = wg0.run(output)
        until(lambda: "is up" in read(), 30, f"it to be up: {read()}")
        runner = next(pid for pid in _and_children(process.pid) if b"stagewire\0run" in _command(pid))
        assert in_memory(wg0.held("key"), searched) == {"first", "psk"}
        assert in_memory(runner, searched) == set()
        wg0.config.write_text(before.replace(first.private, second.private).partition("[Peer]")[0])
        os.kill(runner, signal.SIGHUP)
        until(lambda: "- peer" in read(), 30, f"the change: {read()}")
        assert in_memory(runner, searched) == set()
        wg0.config.write_text("rubbish")
        os.kill(runner, signal.SIGHUP)
        until(lambda: "not reloaded: nothing is changed" in read(), 30, f"the refusal: {read()}")
        process.terminate()
        assert process.wait(15) == 0
    wg0.expect_nothing_left()


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _and_children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _and_children(int(child)))]


def test_a_predown_that_fails_is_said_and_the_rest_goes_on(wg0: InForeground) -> None:
    wg0.config.write_text(wg0.config.read_text() + "PreDown = false\n")
    with a_file(wg0.directory) as (output, read):
        process = wg0.run(output)
        until(lambda: "is up" in read(), 30, f"it to be up: {read()}")
        down = wg0.namespace.run(executable("stagewire"), "down", "wg0", check=False, env=wg0.variables, timeout=30)
        assert down.returncode == 1
        assert process.wait(1) == 1
        assert "PreDown" in read()
    wg0.expect_nothing_left()


def test_what_was_left_at_work_is_taken_over_in_turn(wg0: InForeground) -> None:
    """A `stagewire run` that was killed leaves services at work; another command has the turn when the next one comes."""
    with a_file(wg0.directory) as (output, read):
        first = wg0.run(output)
        until(lambda: "is up" in read(), 30, f"it to be up: {read()}")
        first.kill()
        until(lambda: Supervision(wg0.environment).pid() is None, 5, "supervisord to have died with it")
        with turn.take(wg0.environment):
            second = wg0.run(output)
            until(lambda: _has_it(wg0, second.pid), 10, "the next to have its claim")
            with pytest.raises(NeverHappened):
                until(lambda: "takes over" in read(), 1, "it to go on", promptly=True)
        until(lambda: read().count("is up") == 2, 30, f"it to be up again: {read()}")
        assert "takes over" in read()
        assert wg0.ready()
        second.terminate()
        assert second.wait(15) == 0
    wg0.expect_nothing_left()


def _has_it(wg0: InForeground, pid: int) -> bool:
    runner = claim.runner(wg0.environment)
    if runner is None:
        return False
    with closing(runner):
        return runner.pid == pid


def test_a_plain_supervisord_leaves_nothing_behind_and_writes_into_a_socket(wg0: InForeground) -> None:
    with a_socket(wg0.directory) as (output, read):
        process = wg0.plain(output)
        until(wg0.ready, 30, f"the gateway to be ready: {read()}")
        process.terminate()
        assert process.wait(15) == 0
        assert "program=tun-service event=started" in read()
    wg0.expect_nothing_left()


def test_a_plain_supervisord_needs_no_standard_output(wg0: InForeground) -> None:
    with a_file(wg0.directory) as (output, read):
        command = f"exec {executable('supervisord')} -c {ROOT}/supervisord.conf >&-"
        process = wg0.namespace.popen(
            *("unshare", "--mount", "sh", "-c", PRIVATE_RUN, "-", "sh", "-c", command), env=wg0.variables, output=output
        )
        until(wg0.ready, 30, f"the gateway to be ready: {read()}")
        stop(process, 15)
        assert read() == ""
    wg0.expect_nothing_left()
