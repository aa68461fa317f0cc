"""Runs `make attack`: every attack of `attack.lines` on a real gateway or a part of it. See `--help`."""

import argparse
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import Final

import pytest
from tests.attack.lines import LINES, ONLY, SEED
from tests.attack.report import write
from tests.attack.suite import Suite
from tests.attack.view import View

ROOT: Final = Path(__file__).parents[2]
LOOK: Final = 0.1
"""s between two looks whether a picture is due."""


class Quiet:
    """Lets pytest write its own report to a file: the screen is ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        self._file = reporter._tw._file = self._path.open("w")

    def pytest_unconfigure(self) -> None:
        self._file.close()


def play(options: argparse.Namespace) -> int:
    """Plays the whole suite. Returns the exit status."""
    os.environ[SEED], os.environ[ONLY] = str(options.seed), " ".join(options.only)
    options.out.mkdir(parents=True, exist_ok=True)
    suite = Suite()
    view = View(suite, options.seed)
    view.say(f"seed {options.seed}: `make attack SEED={options.seed}` draws the same chance again")
    log = options.out / "pytest.log"
    arguments = [
        "-c", str(ROOT / "pyproject.toml"), "-p", "tests.attack.marks", "-m", "attack", "--numprocesses", str(options.jobs),
        "--dist", "loadfile", "--no-loadscope-reorder", *map(str, options.files),
    ]  # fmt: skip
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK):
            view.turn()

    with view.moving():
        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        status = pytest.main(arguments, plugins=[suite, Quiet(log)])
        over.set()
        looker.join()
    view.turn(last=True)
    for trouble in suite.trouble:
        view.say(f"attack: {trouble}")
    bare = [each for each in suite.missing() if each in (options.only or LINES)]
    view.say(f"{len(suite.shown)} tests; lines without a test: {' '.join(bare) or 'none'}")
    view.say("written: " + ", ".join(map(str, [*write(suite, options.seed, options.out), log])))
    return 0 if suite.sound and status == pytest.ExitCode.OK else int(status) or 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description="Attacks, each a named test.")
    parser.add_argument("files", nargs="*", type=Path, help="only the tests of these files")
    parser.add_argument("--only", default="", help="only these lines, with commas between")
    parser.add_argument("--seed", type=int, default=None, help="seed of an earlier run")
    parser.add_argument("--jobs", type=int, default=(os.cpu_count() or 1) + 1, help="tests side by side")
    parser.add_argument("--out", type=Path, default=Path("attack-report"), help="folder of the report")
    options = parser.parse_args()
    options.seed = secrets.randbits(32) if options.seed is None else options.seed
    options.only = [name for name in options.only.split(",") if name]
    if unknown := set(options.only) - LINES.keys():
        parser.error(f"no such line: {', '.join(sorted(unknown))}; the lines are {' '.join(LINES)}")
    if missing := [str(path) for path in options.files if not path.exists()]:
        parser.error(f"there is no {', '.join(missing)}")
    if os.geteuid() != 0:
        sys.stderr.write("attack: this needs root, for network namespaces and TUN devices\n")
        return 1
    return play(options)


if __name__ == "__main__":
    sys.exit(main())
