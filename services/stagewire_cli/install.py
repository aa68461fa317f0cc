"""Installs systemd units, examples, manual pages and completions, for `stagewire install-service`."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from stagewire_cli import completion, manual
from stagewire_cli.failures import Failed

UNITS: Final = ("stagewire@.service", "stagewire-events@.service")
_UNITS: Final = "etc/systemd/system"
FORMER_SYSUSERS: Final = "etc/sysusers.d/stagewire.conf"
"""A list of accounts that an earlier version wrote; uids need no accounts."""
DOCUMENTS: Final = "usr/local/share/doc/stagewire"
_DOCUMENTED: Final = ("examples", "container", "monitoring")
"""Folders of ours whose files go to DOCUMENTS."""
CONFIGURATIONS: Final = "etc/stagewire"
_PROGRAM: Final = "/opt/stagewire/bin/stagewire"
"""The program's path in the unit that we ship."""
_PRIVATE: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - nothing is written there
"""Folders of which each systemd unit has its own."""


def folder() -> Path:
    """Returns the folder of the files to install: beside this module in a wheel, at the root of a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "deploy"
    return installed if installed.exists() else here.parents[1] / "deploy"


def install(root: Path, say: Callable[[str], None]) -> None:
    """Writes all files below `root`; if that is /, also reloads systemd. Raises Failed."""
    program = Path(sys.executable).parent / "stagewire"
    if root == Path("/") and any(private in program.parents for private in _PRIVATE):
        raise Failed(f"{program}: a unit has a /tmp of its own and would not find this; install Stagewire elsewhere")
    try:
        for place, text in _files(program):
            path = root / place
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.new")
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.replace(path)
            say(f"wrote {path}")
        if not (root / CONFIGURATIONS).exists():
            (root / CONFIGURATIONS).mkdir(mode=0o700, parents=True)
            say(f"made {root / CONFIGURATIONS}")
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from None
    _remove(root, FORMER_SYSUSERS, say)
    if root == Path("/"):
        _reload(say)


def remove(root: Path, say: Callable[[str], None]) -> None:
    """Removes the files that `install` wrote; configuration files stay. Raises Failed."""
    try:
        for place in (FORMER_SYSUSERS, *(place for place, _ in _files(Path(_PROGRAM)))):
            _remove(root, place, say)
        if (root / DOCUMENTS).exists() and not any((root / DOCUMENTS).iterdir()):
            (root / DOCUMENTS).rmdir()
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from None
    if root == Path("/"):
        _reload(say)


def _remove(root: Path, place: str, say: Callable[[str], None]) -> None:
    if (root / place).exists():
        (root / place).unlink()
        say(f"removed {root / place}")


def _files(program: Path) -> Iterator[tuple[str, str]]:
    """Yields each file's path below the root, and its text."""
    from stagewire_cli.__main__ import main as command

    from_us = folder()
    yield from completion.scripts(command)
    for page, text in manual.pages(command):
        yield f"{manual.FOLDER}/{page}", text
    for unit in UNITS:
        yield f"{_UNITS}/{unit}", (from_us / "systemd" / unit).read_text().replace(_PROGRAM, str(program))
    for example in sorted(each for name in _DOCUMENTED for each in (from_us / name).iterdir()):
        if example.is_file():  # pip leaves a folder of bytecode beside a program
            yield f"{DOCUMENTS}/{example.name}", example.read_text()


def _reload(say: Callable[[str], None]) -> None:
    """Reloads systemd where it runs."""
    if not Path("/run/systemd/system").exists() or not shutil.which("systemctl"):
        return
    done = subprocess.run(["systemctl", "daemon-reload"], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        say(f"note: systemctl failed: {done.stderr.strip()}")
