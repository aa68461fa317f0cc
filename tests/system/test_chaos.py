"""Runs `make chaos` for a minute and a half: every main kind of fault under traffic, while every invariant holds.

Figures to be reached are for quiet machines and for `make chaos EACH=50`; here they are only kept from being absurd.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.chaos import network
from tests.chaos.catalogue import KINDS

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.alone, pytest.mark.system, pytest.mark.timeout(400)]

ABSURD_MS = 20_000
"""A machine that gives nobody a processor makes 5 s of what takes 50 ms when it is quiet."""
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


def left() -> set[Path]:
    return set(network.RUN.glob(f"{network.NAMED}*"))


@pytest.fixture(scope="module")
def beside() -> set[Path]:
    """What other runs have there, one that was killed among them."""
    return left()


@pytest.fixture(scope="module")
def report(folder: Path, beside: set[Path]) -> dict[str, Any]:
    """Of one run, in a process of its own, as it forks and takes signals."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--short", "--each", "1", "--out", str(folder)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'deploy'}:{ROOT}"},
        capture_output=True, text=True, check=False, timeout=390,
    )  # fmt: skip
    print(run.stdout + run.stderr)
    assert (folder / "report.json").exists(), run.stdout + run.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert run.returncode == (0 if found["sound"] else 1)
    return found


def test_every_main_kind_of_fault_was_tried(report: dict[str, Any]) -> None:
    counts = Counter(fault["kind"] for fault in report["faults"])
    for kind in KINDS:
        if kind.short and kind.name not in report["skipped"]:
            assert counts[kind.name], kind.name


def test_what_must_hold_held_all_the_time(report: dict[str, Any]) -> None:
    assert report["violations"] == []
    assert [check for check in report["invariants"] if not check["holds"]] == []


def test_it_was_looked_at(report: dict[str, Any]) -> None:
    """Nothing is proven by a watch that saw nothing."""
    numbers = report["numbers"]
    assert numbers["counters"] > 10_000
    assert numbers["replayed"] > 100
    assert numbers["tcp_connections"] == 1
    assert numbers["missed"] == 0


def test_traffic_came_back_after_every_fault(report: dict[str, Any]) -> None:
    assert {fault["kind"]: fault["outage"] for fault in report["faults"] if fault["outage"] * 1000 > ABSURD_MS} == {}


def test_there_is_a_picture_and_nothing_else_is_left(report: dict[str, Any], folder: Path, beside: set[Path]) -> None:
    assert (folder / "plot.png").read_bytes().startswith(PNG)
    assert {path.name for path in folder.iterdir()} == {"plot.png", "report.json"}
    assert left() <= beside


def test_what_a_killed_run_left_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what one at work has."""
    with subprocess.Popen(["true"]) as gone:
        pass
    killed, at_work = (tmp_path / f"{network.NAMED}{process}" for process in (gone.pid, os.getpid()))
    for folder in (killed, at_work):
        (folder / "log").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "sw-test", str(killed)], check=True)
    monkeypatch.setattr(network, "RUN", tmp_path)
    network.sweep()
    assert left() == {at_work}


def test_a_seed_draws_the_same_faults_again() -> None:
    script = (
        "import random; from tests.chaos.catalogue import KINDS; from tests.chaos.schedule import rounds;"
        "print([(kind.name, pause) for kind, pause in rounds(KINDS, 3, random.Random(7))])"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'deploy'}:{ROOT}"}
    drawn = {subprocess.check_output([sys.executable, "-c", script], env=env) for _ in range(2)}
    assert len(drawn) == 1
