"""The lock files pin what pyproject.toml asks for, each by its hashes, and name no index."""

import json
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import supply

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
TOP = [*RUN, *PROJECT["project"]["optional-dependencies"]["top"]]
GROUPS = PROJECT["dependency-groups"]
LOCKS = {
    "requirements": RUN,
    "top": TOP,
    "dev": [*TOP, *GROUPS["dev"], *PROJECT["build-system"]["requires"]],
    "fuzz": GROUPS["fuzz"],
    "tools": GROUPS["tools"],
}
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def pins(name: str) -> list[tuple[Requirement, list[str]]]:
    """(requirement, hashes) of each entry of a lock file."""
    lines = (ROOT / f"deploy/{name}.lock").read_text().replace("\\\n", " ").splitlines()
    found = [(line.split(" --hash=")[0], re.findall(r"--hash=sha256:([0-9a-f]{64})(?:\s|$)", line)) for line in lines]
    return [(Requirement(text), hashes) for text, hashes in found if not text.startswith("#")]


@pytest.mark.parametrize("name", LOCKS)
def test_each_entry_is_one_version_by_its_hashes_and_nothing_else_stands_there(name: str) -> None:
    for requirement, hashes in pins(name):
        assert [each.operator for each in requirement.specifier] == ["=="], requirement
        assert requirement.url is None
        assert hashes, requirement
    text = (ROOT / f"deploy/{name}.lock").read_text()
    assert not re.search(r"://|^-|index", text, re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("python", VERSIONS)
def test_what_the_project_asks_for_is_pinned_for_every_python(name: str, python: str) -> None:
    environment: dict[str, Any] = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.1",
        "extra": "",
    }
    pinned = {
        canonicalize_name(each.name): next(iter(each.specifier)).version
        for each, _ in pins(name)
        if not each.marker or each.marker.evaluate(environment)
    }
    for wanted in map(Requirement, LOCKS[name]):
        if not wanted.marker or wanted.marker.evaluate(environment):
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), wanted


@pytest.mark.parametrize(("name", "beside"), [("requirements", "dev"), ("top", "dev"), ("requirements", "top")])
def test_a_gateway_and_the_tests_run_the_same_versions(name: str, beside: str) -> None:
    tested = {str(requirement): hashes for requirement, hashes in pins(beside)}
    for requirement, hashes in pins(name):
        assert tested[str(requirement)] == hashes


def test_set_up_installs_by_hashes_or_without_an_index() -> None:
    installs = [
        line for line in (ROOT / "deploy/setup").read_text().splitlines() if re.search(r"\bpip\b.* install ", line)
    ]
    assert len(installs) >= 2
    for line in installs:
        assert re.search(r'--require-hashes -r "deploy/\$2\.lock"$|--no-index --no-deps ', line)


def test_this_environment_is_the_locked_one() -> None:
    if (ROOT / ".venv") in Path(sys.prefix).parents or Path(sys.prefix) == ROOT / ".venv":
        for requirement, _ in pins("dev"):
            if not requirement.marker or requirement.marker.evaluate():
                assert version(requirement.name) in requirement.specifier, requirement


@pytest.mark.parametrize("tags", ["py3-none-any", "cp311-cp311-linux_x86_64"])
def test_the_bill_is_named_after_the_release_alone(tags: str) -> None:
    assert supply.released(f"stagewire-0.1.0-{tags}.whl") == "stagewire-0.1.0"


REPAIRED = "stagewire-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl"
REPAIR = f'#!/bin/sh\n[ "$1 $2" = "repair --wheel-dir" ] && touch "$3/{REPAIRED}"\n'


@pytest.mark.parametrize(
    ("tool", "left"),
    [
        (REPAIR, REPAIRED),
        ("#!/bin/sh\necho no such library >&2\nexit 1\n", "stagewire-0.1.0-cp311-cp311-linux_x86_64.whl"),
    ],
)
def test_a_delivered_wheel_is_for_other_machines_too_or_make_dist_fails(
    tool: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "auditwheel").write_text(tool)
    (tmp_path / "auditwheel").chmod(0o755)
    (tmp_path / "stagewire-0.1.0-cp311-cp311-linux_x86_64.whl").touch()
    monkeypatch.setattr(supply, "TOOLS", tmp_path)
    repaired = tool == REPAIR
    assert (supply.portable(tmp_path) == 0) is repaired
    assert [path.name for path in tmp_path.glob("*.whl")] == [left]
    assert ("not made portable: no such library" in capfd.readouterr().err) is not repaired


@pytest.fixture
def audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Audits with a pip-audit that does as a shell script says."""

    def run(script: str) -> int:
        tool = tmp_path / "pip-audit"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setattr(supply, "TOOLS", tmp_path)
        return supply.audit()

    return run


def test_an_audit_names_what_is_vulnerable(audited: Callable[[str], int], capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"name": "msgpack", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
    good = {"name": "pyzmq", "version": "26.0", "vulns": []}
    assert audited(f"echo '{json.dumps({'dependencies': [bad, good]})}'") == 1
    said = capsys.readouterr().out
    assert "requirements.lock: msgpack 1.0: CVE-1 (fixed in 1.1)\n" in said
    assert "requirements.lock: 2 packages audited, 1 with a known vulnerability\n" in said


def test_an_audit_without_a_database_says_that_nothing_was_audited(
    audited: Callable[[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited("exit 1") == 0
    said = capsys.readouterr().out.splitlines()
    assert said
    assert all("not audited" in line for line in said)
