"""What we add to supervisord: as many processes as are wanted, a folder that comes back, orphans that are replaced."""

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.memory import in_memory

from lab.wait import until
from lab.wireguard_go import new_key_pair
from stagewire.environment import Environment
from stagewire.process import holders
from stagewire_cli import processes
from stagewire_cli.inside import GROUPS, Programs, Upkeep
from stagewire_cli.supervision import Supervision


class Options:
    """As much of supervisord's as is asked for."""

    def __init__(self, configuration: Path) -> None:
        self.mood, self.nodaemon, self.configfile = 1, True, str(configuration)
        self.httpservers: Any = ()
        self.said: list[str] = []
        self.pidhistory: dict[int, Any] = {}
        self.logger = SimpleNamespace(warn=self.said.append, error=self.said.append, info=self.said.append)
        self.socket = configuration.with_name("supervisor.sock")
        self.pid_file = configuration.with_name("supervisord.pid")

    def close_httpservers(self) -> None:
        pass

    def make_http_servers(self, _supervisord: object) -> tuple[str, ...]:
        self.socket.touch()
        return ("server",)

    def waitpid(self) -> tuple[int, int]:
        return os.waitpid(-1, os.WNOHANG)

    def write_pidfile(self) -> None:
        self.pid_file.write_text(f"{os.getpid()}\n")


def process(pid: int = 0) -> SimpleNamespace:
    return SimpleNamespace(pid=pid)


def supervisord_of(group: str, count: int, options: Options | None = None) -> Any:
    names = {f"{group}_{number:02d}": process() for number in range(count)}
    return SimpleNamespace(process_groups={group: SimpleNamespace(processes=names)}, options=options)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment.read({f"STAGEWIRE_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("RUN", "STATE", "LOG")})


def test_as_many_are_left_as_are_wanted_and_the_others_can_be_added_and_dropped(tmp_path: Path) -> None:
    supervisord = supervisord_of("device-service", 5, Options(tmp_path))
    left = supervisord.process_groups["device-service"].processes
    programs = Programs(supervisord, {"device-service": 2})
    assert sorted(left) == ["device-service_00", "device-service_01"]
    assert programs.add("device-service", 4) == ["device-service:device-service_02", "device-service:device-service_03"]
    assert programs.add("device-service", 3) == []  # has more already
    assert len(left) == 4
    left["device-service_01"].pid = 17
    assert not programs.drop("device-service", "device-service_01")  # it lives
    assert not programs.drop("device-service", "device-service_04")  # it is none of those that are wanted
    left["device-service_01"].pid = 0
    assert programs.drop("device-service", "device-service_01")
    assert sorted(left) == ["device-service_00", "device-service_02", "device-service_03"]
    assert programs.add("device-service", 99) == [
        "device-service:device-service_01",
        "device-service:device-service_04",
    ]


def test_who_was_killed_by_the_filter_is_counted_by_its_group_and_nobody_else(tmp_path: Path) -> None:
    options = Options(tmp_path)
    programs = Programs(supervisord_of("conn-service", 1, options), {"conn-service": 1})
    for number in (signal.SIGSYS, signal.SIGKILL, signal.SIGSYS):
        child = subprocess.Popen(["sleep", "60"])
        options.pidhistory[child.pid] = SimpleNamespace(
            group=SimpleNamespace(config=SimpleNamespace(name="conn-service"))
        )
        child.send_signal(number)
        until(lambda pid=child.pid: options.waitpid()[0] == pid, 5, "its end")  # type: ignore[misc]
        child.returncode = -number  # `options.waitpid` has waited for it
    assert programs.killed_by_filter() == {"conn-service": 2}


def test_a_wiped_folder_is_made_again_once_there_is_room(environment: Environment) -> None:
    environment.run.mkdir(parents=True)
    supervision = Supervision(environment)
    options = Options(supervision.configuration)
    upkeep = Upkeep(supervisord_of("key-service", 1, options), environment)
    upkeep.look(None)
    files = [supervision.configuration, supervision.pid_file, supervision.socket]
    assert all(path.exists() for path in files)
    assert (environment.run / "config").readlink() == environment.config
    assert len(options.said) == 1
    upkeep.look(None)
    assert len(options.said) == 1
    supervision.pid_file.write_text("")  # as supervisord leaves it on a full disk
    upkeep.look(None)
    assert supervision.pid_file.read_text() == f"{os.getpid()}\n"


def test_what_can_not_be_mended_is_said_once_and_ends_nothing(environment: Environment) -> None:
    environment.run.parent.write_text("no folder can be made here")
    options = Options(environment.run / "supervisord.conf")
    upkeep = Upkeep(supervisord_of("key-service", 1, options), environment)
    for _ in range(3):
        upkeep.look(None)
    assert len([line for line in options.said if line.startswith("stagewire: ")]) == 1


def test_nothing_is_mended_of_a_plain_supervisord_or_while_one_ends(environment: Environment, tmp_path: Path) -> None:
    for configuration, mood in ((tmp_path / "elsewhere.conf", 1), (environment.run / "supervisord.conf", -1)):
        options = Options(configuration)
        options.mood = mood
        Upkeep(supervisord_of("key-service", 1, options), environment).look(None)
        assert not environment.run.exists()


HOLDER = """
import sys, time
from pathlib import Path
from stagewire.process import slots
from stagewire.process.holders import Presence
from stagewire.loop import boot_time
here = Presence(Path(sys.argv[1]), "key")
slot = slots.Slot(Path(sys.argv[1]), "key", 0)
print("took" if slot.take(boot_time()) else "waits", flush=True)
time.sleep(60)
"""


@pytest.fixture
def started(environment: Environment) -> Iterator[list["subprocess.Popen[str]"]]:
    """At work, waiting, and waiting."""
    environment.run.mkdir(parents=True)
    made = []
    try:
        for said in ("took", "waits", "waits"):
            command = [sys.executable, "-c", HOLDER, str(environment.run)]
            made.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert made[-1].stdout is not None
            assert made[-1].stdout.readline() == f"{said}\n"
        yield made
    finally:
        for each in made:
            each.kill()
            each.communicate(timeout=5)


def test_orphans_that_wait_go_first_and_one_at_work_only_when_one_of_ours_waits(
    environment: Environment, started: list["subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, idle, ours = started
    orphans = {at_work.pid, idle.pid}
    monkeypatch.setattr(holders, "parent", lambda pid: 1 if pid in orphans else os.getpid())
    supervisord = supervisord_of("key-service", 1, Options(environment.run / "elsewhere"))
    upkeep = Upkeep(supervisord, environment)
    upkeep.look(None)  # none of ours is there yet
    assert [each.poll() for each in started] == [None] * 3
    supervisord.process_groups["key-service"].processes["key-service_00"].pid = ours.pid
    upkeep.look(None)
    assert idle.wait(5) == -signal.SIGTERM
    assert at_work.poll() is None
    upkeep.look(None)
    assert at_work.wait(5) == -signal.SIGTERM
    upkeep.look(None)
    assert ours.poll() is None


def test_every_program_is_looked_after() -> None:
    text = (Path(__file__).parents[2] / "supervisord.conf").read_text()
    assert sorted(GROUPS) == sorted(line[9:-1] for line in text.splitlines() if line.startswith("[program:"))


def test_a_supervisord_is_known_by_the_configuration_it_was_started_with(tmp_path: Path) -> None:
    script = tmp_path / "supervisord"
    script.write_text("import time; print('up', flush=True); time.sleep(60)")
    configuration = tmp_path / "run" / "supervisord.conf"
    for arguments in (["-c", str(configuration)], [f"-c{configuration}"], ["-c", "run/supervisord.conf"]):
        started = subprocess.Popen(
            [sys.executable, script, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "up\n"
            assert processes.supervisords(configuration) == [started.pid]
            assert processes.supervisords(tmp_path / "other.conf") == []
        finally:
            started.kill()
            until(lambda p=started.pid: not processes.lives(p), 5, "its end")  # type: ignore[misc]
            assert processes.supervisords(configuration) == []
            started.communicate()


LOOKS = """
import sys
from pathlib import Path
from stagewire_cli import inside
good, bad = map(Path, sys.argv[1:])
print(inside._can_be_read(good), inside._can_be_read(bad), inside._can_be_read(bad.with_name("none")), flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="reads another process's memory")
def test_a_supervisord_that_starts_anew_judges_the_file_and_keeps_no_key_for_its_forks(tmp_path: Path) -> None:
    key = new_key_pair().private
    good, bad = tmp_path / "good.conf", tmp_path / "bad.conf"
    good.write_text(f"[Interface]\nPrivateKey = {key}\n")
    bad.write_text(f"[Interface]\nPrivateKey = {key}\nListenPort = x\n")
    for path in (good, bad):
        path.chmod(0o600)
    forms = {"text": key.encode(), "raw": base64.b64decode(key)}
    command, variables = [sys.executable, "-c", LOOKS, str(good), str(bad)], {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env={**os.environ, **variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "True False False\n"
        assert in_memory(reader.pid, forms) == set()
