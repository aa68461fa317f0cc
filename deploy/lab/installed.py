"""Installs Stagewire's wheel in a virtual environment of its own, outside the checkout.

The dependencies come from the environment that runs the tests, so pip asks no package index.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable
from hashlib import sha256
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from lab.stagewire import executable

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = sys.executable
SITE: Final = Path(sysconfig.get_path("purelib"))
"""Where the running Python has Stagewire's dependencies."""
_UNREAD: Final = {Path("/usr/share") / each for each in ("doc", "man", "locale", "info", "i18n", "perl", "zoneinfo")}
"""Folders that no program reads."""
_DEPENDENCIES_PROGRAMS: Final = ("supervisord", "supervisorctl")
_BUILT_FROM: Final = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "supervisord.conf")
_COMPILED: Final = f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
"""Folder in which setuptools looks for compiled modules before it compiles any."""


def build_wheel(folder: Path) -> Path:
    """Builds the wheel as `make dist` does, with the modules that are compiled in the checkout."""
    with tempfile.TemporaryDirectory() as copy:
        sources(Path(copy))
        for module in ROOT.glob("shared/stagewire/**/*.so"):
            place = Path(copy, _COMPILED, module.relative_to(ROOT / "shared"))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(module, place)
        _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, copy)
    return next(folder.glob("stagewire-*.whl"))


def sources(copy: Path) -> None:
    """Copies all that a wheel is built from into an empty folder, so that builds side by side don't meet."""
    for name in ("shared", "services", "deploy"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info"))
    for name in _BUILT_FROM:
        shutil.copy2(ROOT / name, copy / name)


def install(wheel: Path, place: Path, *, called: Path | None = None, dependencies: Path = SITE) -> Path:
    """Makes a virtual environment at `place` with the wheel in it. Returns its folder of programs.

    `called` is its later path, if the environment will be shown elsewhere. `dependencies` is SITE's place there.
    """
    _run(Path(sys.executable).resolve(), "-m", "venv", "--without-pip", place)
    pip = (sys.executable, "-m", "pip", "--python", place / "bin/python", "--disable-pip-version-check", "install")
    _run(*pip, "--quiet", "--no-index", "--no-deps", wheel)
    site = next((place / "lib").glob("python3*/site-packages"))
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    for program in _DEPENDENCIES_PROGRAMS:
        _, _, rest = executable(program).read_text().partition("\n")
        (place / "bin" / program).write_text(f"#!{place}/bin/python\n{rest}")
        (place / "bin" / program).chmod(0o755)
    if called is not None:
        _call(place, called)
    return (called or place) / "bin"


def dependency_wheels(folder: Path, of: str = "stagewire") -> None:
    """Packs the installed dependencies of a distribution into wheels."""
    waiting, packed = [Requirement(of)], set[str]()
    while waiting:
        wanted = waiting.pop()
        found = distribution(wanted.name)
        waiting += [
            each for each in map(Requirement, found.requires or ())
            if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in wanted.extras or {""})
        ]  # fmt: skip
        if wanted.name != "stagewire" and wanted.name not in packed:
            packed.add(wanted.name)
            _pack(found, folder)


def lock(folder: Path) -> str:
    """Returns a lock file of the packed wheels in a folder, as `deploy/requirements.lock` pins those of the index."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        if name != "stagewire":
            lines.append(f"{name}=={version} --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n")
    return "".join(lines)


def _pack(found: Distribution, folder: Path) -> None:
    tags = re.findall(
        r"^Tag: (.*3.*)$", found.read_text("WHEEL") or "", re.MULTILINE
    )  # some wheels carry a tag of Python 2 as well
    tag = tags[0]
    about = next(
        file.parent for file in found.files or () if file.name == "METADATA" and file.parent.suffix == ".dist-info"
    )
    with zipfile.ZipFile(folder / f"{about.name.removesuffix('.dist-info')}-{tag}.whl", "w") as wheel:
        for file in found.files or ():
            # pip makes programs anew, and Python its compiled files.
            if ".." in file.parts or file.suffix == ".pyc" or file.name == "RECORD":
                continue
            wheel.write(str(file.locate()), str(file))
        kept = (line for line in (found.read_text("RECORD") or "").splitlines() if not re.match(r"\.\.|.*\.pyc,", line))
        wheel.writestr(f"{about}/RECORD", "\n".join(kept))


def debian_tree(packages: Iterable[str], root: Path) -> None:
    """Copies installed Debian packages and their dependencies into a tree of their own."""
    said = _run(
        *("apt-cache", "depends", "--recurse", "--installed", "--no-recommends", "--no-suggests", "--no-enhances"),
        *("--no-conflicts", "--no-breaks", "--no-replaces", *packages),
    )
    names = {line for line in said.splitlines() if re.match(r"[a-z0-9]", line)}
    installed = _run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\\n").splitlines()
    listed = _run("dpkg-query", "-L", *sorted(names & {line.removeprefix("installed ") for line in installed}))
    files = {path.parent.resolve() / path.name for path in map(Path, listed.splitlines()) if path.parts[:1] == ("/",)}
    files = {path for path in files if path.exists() and path != Path("/") and not _UNREAD & {path, *path.parents}}
    # /bin, /sbin and /lib lead into /usr.
    files |= {path for path in map(Path, ("/bin", "/sbin", "/lib", "/lib64")) if path.exists()}
    wanted = "\0".join(sorted(str(path)[1:] for path in files))
    root.mkdir()
    copied = subprocess.run(
        ["sh", "-c", 'tar -c -C / --no-recursion --null -T - | tar -x -C "$0"', str(root)],
        input=wanted.encode(),
        check=False,
    )
    if copied.returncode != 0:
        raise RuntimeError(f"cannot copy Debian's packages to {root}")


def _call(place: Path, called: Path) -> None:
    """Puts the virtual environment's later path into its programs."""
    for program in (place / "bin").iterdir():
        if not program.is_symlink():
            program.write_text(program.read_text().replace(str(place), str(called)))


def _run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{argv}: {done.stderr.strip()[-1000:]}")
    return done.stdout
