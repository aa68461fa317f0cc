"""What `make dist` leaves, and that it works where it is installed: away from the checkout, in an environment of its own."""

import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.conftest import short_directory

from lab import installed
from lab.namespaces import Namespace
from lab.wireguard_go import new_key_pair

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]  # six modules are compiled

SHIPPED = (
    "systemd/stagewire@.service",
    "systemd/stagewire-events@.service",
    "examples/gateway.conf",
    "examples/tap.py",
    "container/Containerfile",
    "container/compose.yaml",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def programs(wheel: Path) -> Iterator[Path]:
    """The folder of an installation's programs."""
    with short_directory() as directory:
        yield installed.install(wheel, directory / "venv")


def _run(program: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(program), *map(str, arguments)],
        cwd="/",
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_what_a_service_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {f"stagewire_cli/deploy/{each}" for each in SHIPPED}
    assert "stagewire_cli/root/supervisord.conf" in names
    assert not [name for name in names if name.startswith(("tests/", "lab/", "deploy/"))]
    assert [name for name in names if name.startswith("stagewire/proto/kernel/cipher.") and name.endswith(".so")]


def test_a_machine_without_a_compiler_gets_all_but_the_compiled_modules(wheel: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as copy:
        installed.sources(Path(copy))
        _build("--wheel", copy, tmp_path, CC="/nowhere/cc")
    without = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    lacking = set(zipfile.ZipFile(wheel).namelist()) - without
    assert {Path(name).parent.name for name in lacking} == {"kernel", "linux"}
    assert all(name.endswith(".so") for name in lacking)
    programs = installed.install(next(tmp_path.glob("*.whl")), tmp_path / "venv")
    assert _run(programs / "stagewire", "--version").returncode == 0


def _build(kind: str, source: str | Path, folder: Path, **variables: str) -> None:
    made = subprocess.run(
        [installed.PYTHON, "-m", "build", kind, "--no-isolation", "--outdir", str(folder), str(source)],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr


def test_the_sdist_holds_it_too_and_nothing_that_was_made_here(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # a build leaves files where it runs
        copy = Path(scratch, "checkout")
        shutil.copytree(
            installed.ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache", "stagewire-[0-9]*")
        )
        for made in (".venv/bin/python", "dist/earlier.whl", "shared/stagewire/proto/kernel/cipher.c"):
            (copy / made).parent.mkdir(parents=True, exist_ok=True)
            (copy / made).touch()
        _build("--sdist", copy, tmp_path)
    with tarfile.open(next(tmp_path.glob("stagewire-*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= {f"deploy/{each}" for each in SHIPPED} | {"supervisord.conf", "Makefile", "tests/conftest.py"}
    assert not [name for name in names if ".venv" in name or "__pycache__" in name or name.startswith("dist/")]
    assert not [name for name in names if name.startswith("shared/") and name.endswith((".c", ".so"))]


def test_install_service_writes_the_unit_with_this_installations_path(programs: Path, tmp_path: Path) -> None:
    said = _run(programs / "stagewire", "install-service", "--root", tmp_path)
    assert said.returncode == 0, said.stderr
    unit = (tmp_path / "etc/systemd/system/stagewire@.service").read_text()
    assert f"ExecStart={programs}/stagewire run %i\n" in unit
    assert "/opt/stagewire" not in unit
    assert (tmp_path / "etc/stagewire").stat().st_mode & 0o777 == 0o700
    written = {line.removeprefix("wrote ") for line in said.stdout.splitlines() if line.startswith("wrote ")}
    files = {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == written

    (tmp_path / "etc/stagewire/wg0.conf").write_text("")
    assert _run(programs / "stagewire", "install-service", "--root", tmp_path, "--remove").returncode == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "etc/stagewire/wg0.conf"]


def test_a_unit_that_could_not_find_its_program_is_refused(programs: Path) -> None:
    """systemd gives it a /tmp of its own, and this installation is in /tmp."""
    said = _run(programs / "stagewire", "install-service")
    assert said.returncode == 1
    assert "install Stagewire elsewhere" in said.stderr
    assert len(said.stderr.splitlines()) == 1


def test_an_interface_comes_up_from_it(programs: Path, lab_directory: Path) -> None:
    """All programs are the installation's."""
    config = lab_directory / "wg0.conf"
    config.write_text(f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n")
    config.chmod(0o600)
    variables = {f"STAGEWIRE_{each}_DIR": str(lab_directory / each) for each in ("RUN", "STATE", "LOG", "WG")}
    variables |= {"STAGEWIRE_SPARES": "0", "STAGEWIRE_WORKERS": "1"}
    with Namespace("wheel") as namespace:
        namespace.run(programs / "stagewire", "up", config, env=variables, timeout=60)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in namespace.pids()]
        assert {Path(os.fsdecode(words[1])).parent for words in commands} == {programs}
        namespace.run(programs / "stagewire", "down", "wg0", env=variables, timeout=30)
        assert namespace.pids() == []


def test_the_demo_is_there(programs: Path) -> None:
    """What differs between a wheel and a checkout is where its modules are found."""
    said = _run(programs / "stagewire", "demo", "--stop")
    assert (said.returncode, said.stderr) == (0, "")
