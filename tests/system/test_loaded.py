"""Commands that are forks of a process that has loaded them do what a program does that a shell starts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.services.commands import folders

from lab import loaded
from lab.installed import ROOT
from lab.namespaces import Namespace
from lab.stagewire import executable

pytestmark = pytest.mark.system

GENKEY = (executable("stagewire"), "genkey")
SHOWS = """
import os, sys
if len(sys.argv) > 1:
    from lab import loaded
    loaded._enter(sys.argv[1])
print(os.readlink("/proc/self/ns/net"), sorted(os.listdir("/sys/class/net")), open("/etc/hosts").read())
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace("loaded") as made:
        yield made


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["pubkey"],
        ["peer", "list", "-i", "nowhere.conf"],
        ["peer", "list", "a", "b"],
        ["check", "of.conf"],
    ],
    ids=" ".join,
)
def test_a_fork_ends_and_speaks_as_the_program_does(
    namespace: Namespace, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("of.conf").write_text("[Interface]\nPrivateKey = x\n")
    argv: list[str | Path] = [executable("stagewire"), *words]
    variables = {**os.environ, "STAGEWIRE_RUN_DIR": str(tmp_path)}
    program = namespace.run(*argv, check=False, timeout=60, env=variables, input="no key\n")
    fork = loaded.run(argv, variables, 60, namespace=namespace.name, given="no key\n")
    assert (fork.returncode, fork.stdout, fork.stderr) == (program.returncode, program.stdout, program.stderr)


def test_a_fork_enters_a_namespace_as_ip_does(namespace: Namespace) -> None:
    with namespace.etc(hosts="192.0.2.1 somewhere\n"):
        program = [sys.executable, "-c", SHOWS]
        by_ip = namespace.run(*program).stdout
        variables = {**os.environ, "PYTHONPATH": str(ROOT / "deploy")}
        of_itself = subprocess.run(
            [*program, namespace.name], env=variables, capture_output=True, text=True, check=True
        )
    assert "somewhere" in by_ip
    assert of_itself.stdout == by_ip


def test_forks_run_side_by_side_and_share_no_chance() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: loaded.run(GENKEY, os.environ, 60), range(8)))
    assert {each.returncode for each in made} == {0}
    assert len({each.stdout for each in made}) == 8


def test_a_fork_that_takes_too_long_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        loaded.run(GENKEY, os.environ, 1e-6)
    assert loaded.run(GENKEY, os.environ, 60).returncode == 0


@pytest.mark.parametrize(
    ("name", "suited"), [("STAGEWIRE_RUN_DIR", True), ("LC_ALL", False), ("PYTHONHASHSEED", False)]
)
def test_what_python_heeds_at_its_start_needs_a_program(name: str, suited: bool) -> None:
    assert loaded.suits({**os.environ, name: "another"}) == suited


def test_what_other_tests_leave_to_forks_works_as_a_program(lab_directory: Path) -> None:
    """A file is made, changed, kept, brought back and imported."""
    conf, kept, secret = (lab_directory / name for name in ("wg0.conf", "kept", "secret"))
    secret.write_text("correct horse\n")
    variables = {**os.environ, **folders(lab_directory)}

    def program(*words: str | Path) -> str:
        argv = [executable("stagewire"), *words]
        done = subprocess.run(argv, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    program("init", conf, "--endpoint", "192.0.2.1", "--network", "10.8.0.0/24")
    program("peer", "add", "phone", "-i", conf)
    program("peer", "set", "phone", "--rate", "5M", "-i", conf)
    program("backup", conf, "--output", kept, "--passphrase-file", secret)
    program("peer", "remove", "phone", "-i", conf)
    program("restore", kept, "--as", conf, "--force", "--passphrase-file", secret)
    program("import", conf, "-i", lab_directory / "wg1.conf", "--endpoint", "192.0.2.1:51999")
    for path in (conf, lab_directory / "wg1.conf"):
        assert "phone" in program("peer", "list", "-i", path)
