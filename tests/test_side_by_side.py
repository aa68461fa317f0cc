"""Tests how `make test` runs the tests: `alone` ones beside no other, the rest side by side, and nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.wait import until

TESTS = Path(__file__).parent
CONFIGURATION = """
[pytest]
markers =
    alone: measures
    system: needs root
"""
MODULE = """
import os, time
from pathlib import Path
import pytest

LOG = Path(os.environ["LOG"])

def note(word):
    with LOG.open("a") as log:
        log.write(f"{word}\\n")

@pytest.mark.parametrize("number", range(3))
def test_beside(number):
    note("begin beside")
    time.sleep(0.1)
    note("end beside")

@pytest.mark.alone
@pytest.mark.parametrize("number", range(2))
def test_alone(number):
    note("begin alone")
    time.sleep(0.1)
    note("end alone")
"""
WAITING = """
import os, time
from pathlib import Path
import pytest

ALONE, COMPUTING = (Path(os.environ["LOG"] + each) for each in ("-alone", "-computing"))

def until(condition):
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
"""
WAITS_FOR_COMPUTING = f"""{WAITING}
@pytest.mark.alone
def test_alone():
    until(COMPUTING.exists)
    ALONE.touch()
"""
COMPUTES = f"""{WAITING}
def test_computing():
    policy = os.sched_getscheduler(0)
    COMPUTING.write_text(f"{{policy}} beside" if not ALONE.exists() else "afterwards")
    until(lambda: os.sched_getscheduler(0) == os.SCHED_OTHER)
    assert ALONE.exists()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER

def test_another():
    pass
"""
FOREVER = """
import os, time
from pathlib import Path
import pytest

@pytest.fixture(scope="module")
def made():
    path = Path(os.environ["LOG"]).parent / f"made-{os.getpid()}"
    path.touch()
    yield
    path.unlink()

def test_forever(made):
    time.sleep(1000)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text(CONFIGURATION)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["side_by_side"]\n')
    return tmp_path


def broken(test: str, how: str) -> str:
    head = f"def {test}(number):"
    return MODULE.replace(head, f"{head}\n    {how}")


def start(folder: Path) -> subprocess.Popen[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    mine = {"LOG": str(folder / "log"), "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "no:cacheprovider"),
            *("--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
        ],
        cwd=folder,
        env=variables | mine,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_is_alone_is_beside_nothing_and_all_is_run_once(folder: Path) -> None:
    for name in "abcd":
        (folder / f"test_{name}.py").write_text(MODULE)
    with start(folder) as run:
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert said.splitlines()[-1].startswith("20 passed in ")
    noted = (folder / "log").read_text().splitlines()
    assert noted[:16] == ["begin alone", "end alone"] * 8
    assert sorted(noted[16:]) == ["begin beside"] * 12 + ["end beside"] * 12


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can take a policy back")
def test_what_computes_gives_way_to_what_is_alone_and_to_nothing_afterwards(folder: Path) -> None:
    (folder / "test_a.py").write_text(WAITS_FOR_COMPUTING)
    (folder / "tests/proto").mkdir(parents=True)
    (folder / "tests/proto/test_b.py").write_text(COMPUTES)
    (folder / "test_c.py").write_text(MODULE.replace("@pytest.mark.alone", ""))
    with start(folder) as run:
        said, _ = run.communicate(timeout=60)
    assert said.splitlines()[-1].startswith("8 passed in "), said
    assert (folder / "log-computing").read_text() == f"{os.SCHED_IDLE} beside"


def test_what_fails_or_dies_fails_the_run_and_the_rest_is_run(folder: Path) -> None:
    (folder / "test_a.py").write_text(broken("test_alone", "os._exit(1)"))
    (folder / "test_b.py").write_text(broken("test_alone", "assert False"))
    (folder / "test_c.py").write_text(broken("test_beside", "assert False"))
    with start(folder) as run:
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 1, said
    assert said.splitlines()[-1].startswith("7 failed, 8 passed in ")


def test_sigterm_ends_it_through_the_teardown(folder: Path) -> None:
    for name in "ab":
        (folder / f"test_{name}.py").write_text(FOREVER)
    with start(folder) as run:
        try:
            until(lambda: len(list(folder.glob("made-*"))) == 2, 20, "two tests to be at work")
            run.send_signal(signal.SIGTERM)
            said, _ = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 128 + signal.SIGTERM, said
    assert list(folder.glob("made-*")) == []
