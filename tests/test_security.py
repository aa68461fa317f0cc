"""Each line of docs/SECURITY.md names tests that exist, and each stage has a line."""

import ast
import re
from pathlib import Path

import pytest

from stagewire.stages import STAGES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/SECURITY.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| what holds", "| stage |"))
]
HOSTILE = [row for row in ROWS if len(row) == 5]


def named(cell: str) -> list[tuple[Path, str]]:
    """The tests of a cell: `file`: `test`, `test`; `file`: `test`."""
    found = []
    for part in cell.split(";"):
        file, *tests = re.findall(r"`([^`]+)`", part)
        found += [(ROOT / file, test) for test in tests]
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row)[:50])
def test_each_line_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) in {2, 5}
    for cell in row[1::3] if len(row) == 2 else (row[2], row[4]):
        tests = named(cell)
        assert tests
        for file, test in tests:
            body = ast.parse(file.read_text()).body
            assert any(isinstance(node, ast.FunctionDef) and node.name == test for node in body), test


def test_each_stage_has_a_line() -> None:
    assert {row[0] for row in HOSTILE} == {*STAGES, "any"}
