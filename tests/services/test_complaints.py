"""What an operator is told of a process that can't work."""

from dataclasses import replace
from pathlib import Path

import pytest

from stagewire.environment import Environment
from stagewire_cli import complaints

LINE = 'timestamp=2026-01-01T00:00:00Z level=error program=key-service event="cannot work" interface=wg0 '
ENVIRONMENT = Environment.read({})


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("reason=busy", "busy"),
        ("mistake=here", "here"),
        (r'reason="a \"b\" in C:\\d"', r'a "b" in C:\d'),
        (r'reason="two\nlines" more=1', "two lines"),
    ],
)
def test_the_reason_alone_is_told(said: str, reason: str) -> None:
    assert complaints.reason(LINE + said, ENVIRONMENT) == reason


def test_a_line_without_a_reason_is_told_whole() -> None:
    assert complaints.reason(LINE, ENVIRONMENT) == LINE


def test_the_last_complaint_counts() -> None:
    assert complaints.last([LINE + "reason=1", LINE + "reason=2", "level=info"]) == LINE + "reason=2"
    assert complaints.last(["level=info"]) is None


def test_a_folder_that_the_services_cannot_enter_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "state"
    closed.mkdir(mode=0o700)
    for each in tmp_path.parents:
        if each.owner() == closed.owner() and each.stat().st_mode & 0o001 == 0:
            each.chmod(0o711)
    tmp_path.chmod(0o711)
    environment = replace(ENVIRONMENT, run=Path("/wg0"), state=closed / "wg0")
    told = complaints.reason(f'{LINE}reason="{closed}/wg0: Permission denied"', environment)
    assert told == f"{closed}/wg0: Permission denied; the services can't enter {closed}: chmod o+x {closed}"
