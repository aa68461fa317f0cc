"""The attack suite's list names tests that exist, and the runner shows and writes what they found."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.attack.lines import LINES
from tests.attack.lines_machine import BY_CHAOS
from tests.chaos.catalogue import KINDS

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PAGE = (ROOT / "docs/ATTACK.md").read_text()

TRIES = """
import pytest

@pytest.mark.attack("loop")
def test_holds(luck, figure):
    figure("sent", luck.randrange(10**9), "B")

@pytest.mark.attack("loop")
def test_breaks(figure):
    figure("lost", 7, most=5)

@pytest.mark.attack("loop")
@pytest.mark.skip(reason="no such kernel")
def test_cannot():
    pass
"""


def functions(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("line", LINES)
def test_each_test_that_a_line_names_exists(line: str) -> None:
    for test in LINES[line].tests:
        file, _, function = test.partition("::")
        assert function in functions(TESTS / file), test


GIVEN = {"M": {*range(1, 26)} - {7, 23}, "F": {*range(1, 9)} - {5}, "A": {*range(1, 17)} - {13, 15},
         "P": {*range(1, 31)} - {2, 8, 12, 16, 19, 26}, "I": {*range(1, 13)} - {9}}  # fmt: skip
"""The numbers of all attacks that the gateway must withstand, by their letter."""


def test_each_attack_has_a_line_or_a_fault_of_chaos() -> None:
    assert not LINES.keys() & BY_CHAOS
    assert {each for each in {*LINES, *BY_CHAOS} if each[1:].isdecimal()} == {
        f"{letter}{number}" for letter, numbers in GIVEN.items() for number in numbers
    }
    assert {kind for kinds in BY_CHAOS.values() for kind in kinds} <= {kind.name for kind in KINDS}


def test_the_page_names_what_chaos_tries() -> None:
    told = {line.split("|")[1].strip(): line for line in PAGE.splitlines() if line.startswith("| P")}
    for number, kinds in BY_CHAOS.items():
        assert re.findall("`([a-z-]+)`", told[number]) == [*kinds]


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.attack", "--jobs", "1", "--out", str(tmp_path / "out"), *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'deploy'}:{ROOT}"}, cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="the suite needs root")
def test_a_run_is_shown_and_written_and_repeated_by_its_seed(tmp_path: Path) -> None:
    file = tmp_path / "test_tries.py"
    file.write_text(TRIES)
    first, second = (run(tmp_path, "--seed", "5", str(file)) for _ in range(2))
    assert first.returncode == 1, first.stdout + first.stderr
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert (found["seed"], found["sound"], found["lines"]["loop"]["result"]) == (5, False, "broke")
    assert sorted(test["outcome"] for test in found["tests"]) == ["broke", "held", "skipped"]
    (sent,) = (line for line in first.stdout.splitlines() if "sent" in line)
    assert sent.split("sent")[1] in second.stdout
    page = (tmp_path / "out/report.md").read_text()
    assert "lost: 7" in page
    assert "no such kernel" in page


def test_an_unknown_line_is_refused(tmp_path: Path) -> None:
    refused = run(tmp_path, "--only", "M99")
    assert refused.returncode == 2
    assert "no such line: M99" in refused.stderr
