"""When supervisord runs a service itself, and when it executes it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent
INTERPRETER = (BIN / "tun-service").read_text().splitlines()[0].removeprefix("#!")
ASKS = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from stagewire_cli import forked
from supervisor import events

def opened():
    return sorted(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task")

def process(group):
    return SimpleNamespace(group=SimpleNamespace(config=SimpleNamespace(name=group)), backoff=0)

imported, variables = forked.Imported(), dict(os.environ, SUPERVISOR_ENABLED="1")
def asked(*words, **more):
    found = imported.service(words, variables | more)
    return found and [found.script, list(found.arguments), found.niceness, found.main.__module__]
"""


def ask(text: str, **more: str) -> Any:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PATH": f"{BIN}:{os.environ['PATH']}", **more}
    said = subprocess.run([INTERPRETER, "-c", ASKS + text], env=variables, capture_output=True, text=True, check=False)
    assert said.stderr == ""
    return json.loads(said.stdout)


def test_a_service_is_known_by_its_command_with_its_niceness() -> None:
    answers = ask("""
imported.look()
print(json.dumps([asked("tun-service"), asked("nice", "-n", "10", "device-service", "--number", "3"), asked("sleep", "1"),
                  asked("key-service"), asked("/bin/tun-service"), asked("nice", "-n", "5", "tun-service")]))""")
    assert answers == [
        [str(BIN / "tun-service"), [], 0, "tun_service.__main__"],
        [str(BIN / "device-service"), ["--number", "3"], 10, "device_service.__main__"],
        *[None] * 4,
    ]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "PYTHONHASHSEED", "LD_PRELOAD", "MALLOC_ARENA_MAX"])
def test_a_variable_that_acts_at_a_programs_start_needs_one(name: str) -> None:
    assert ask(f"imported.look(); print(json.dumps(asked('tun-service', {name}='1')))") is None


def test_another_program_of_the_name_is_executed(tmp_path: Path) -> None:
    other = tmp_path / "tun-service"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert ask(f"imported.look(); print(json.dumps(asked('tun-service', PATH={str(tmp_path)!r})))") is None


def test_nothing_is_imported_before_the_first_start_but_key_services() -> None:
    assert ask("""
options = SimpleNamespace(pidhistory={}, execve=None, waitpid=None)
forked.Forks(options, imported)
events.notify(events.ProcessStateStartingEvent(process("key-service"), 0))
before = asked("tun-service"), "tun_service" in sys.modules
events.notify(events.ProcessStateStartingEvent(process("tun-service"), 0))
print(json.dumps([before, asked("tun-service") is not None, "key_service" in sys.modules]))""") == [
        [None, False], True, False,
    ]  # fmt: skip


def test_the_imports_open_nothing_and_start_no_thread() -> None:
    assert ask("before = opened(); imported.look(); print(json.dumps(before == opened()))")


def test_after_an_upgrade_programs_are_executed(tmp_path: Path) -> None:
    """A file of any kind counts; that it is back doesn't, as another may have gone meanwhile."""
    module = tmp_path / "upgraded.py"
    module.write_text("OLD = 1\n")
    assert ask(f"""
sys.path.insert(0, {str(tmp_path)!r})
import upgraded
forked._LOOKED_FOR = -1.0
imported.look()
imported.look()
before = asked("tun-service") is not None
Path(upgraded.__file__).write_text("THE_NEW = 1" + chr(10))
imported.look()
after = asked("tun-service")
Path(upgraded.__file__).unlink()
imported.look()
print(json.dumps([before, after, asked("tun-service")]))""") == [True, None, None]


@pytest.mark.parametrize(
    ("signal", "again"), [("SIGSEGV", False), ("SIGSYS", False), ("SIGKILL", True), ("SIGTERM", True)]
)
def test_a_fault_gives_the_next_processes_of_its_group_a_layout_of_their_own(signal: str, again: bool) -> None:
    assert ask(f"""
import signal
from stagewire_cli import afresh
afresh.become = lambda *_: None
def run(main):
    raise SystemExit("forked")
afresh.run = run
pid = os.fork()
if pid == 0:
    signal.pause()
os.kill(pid, signal.{signal})
def execute(*_):
    raise SystemExit("executed")
options = SimpleNamespace(pidhistory={{pid: process("tun-service")}}, execve=execute, waitpid=lambda: os.waitpid(pid, 0))
forks = forked.Forks(options, imported)
imported.look()
options.waitpid()
def start(group):
    try:
        options.execve("", ["tun-service"], variables | {{"SUPERVISOR_GROUP_NAME": group}})
    except SystemExit as end:
        return end.code
print(json.dumps([start("tun-service"), start("conn-service")]))""") == ["forked" if again else "executed", "forked"]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="knows this version's objects alone")
@pytest.mark.parametrize(("kernel", "shares"), [("plain", False), ("", True)])
def test_pages_are_shared_by_the_compiled_module_alone(kernel: str, shares: bool) -> None:
    pytest.importorskip("stagewire.linux.common_pages", reason="no compiled modules here")
    look = "imported.look(); print(json.dumps('memfd:stagewire' in Path('/proc/self/maps').read_text()))"
    assert ask(look, STAGEWIRE_KERNEL=kernel, PYTHONMALLOC="") is shares
