"""`make chaos`: faults by the dozen, under traffic, watched. See `--help`."""

import argparse
import contextlib
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from chaos import catalogue
from chaos.drive import EXPECTED, Drive, rounds, soak
from chaos.house import Kind
from chaos.report import Run, write_json
from chaos.scene import Scene
from chaos.summary import conclude
from chaos.view import View

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_FAULT: Final = 60.0
EVERY: Final = 5.0


class Ended(BaseException):
    """A signal asked us to end; not an error to be caught on the way out."""


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise Ended(number)


def play(options: argparse.Namespace, wanted: list[Kind]) -> int:
    """The whole run; returns the exit status."""
    for number in ENDING_SIGNALS:
        signal.signal(number, _end)
    seconds = options.minutes * 60 if options.minutes else len(wanted) * options.each * LONGEST_FAULT
    view = View(options.seed)
    view.say(f"seed {options.seed}: `make chaos SEED={options.seed}` draws the same faults in the same order")
    try:
        with _leaving_in_peace(), Scene(seconds + 600, options.seed) as scene:
            run = _drive(scene, view, options, wanted)
        status = conclude(run, view, strict=options.strict)
        written = [write_json(run, options.out)]
        from chaos.plot import write_plot  # noqa: PLC0415 - matplotlib takes a second that traffic would feel

        written.append(write_plot(run, options.out))
        view.say("written: " + ", ".join(map(str, written)))
    except Ended as ended:
        return 128 + int(ended.args[0])
    except EXPECTED as error:
        view.say(f"failed: {type(error).__name__}: {error}")
        return 1
    return status


@contextlib.contextmanager
def _leaving_in_peace() -> Iterator[None]:
    """On the way out nobody's impatience may leave half of it behind."""
    try:
        yield
    finally:
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _drive(scene: Scene, view: View, options: argparse.Namespace, wanted: list[Kind]) -> Run:
    luck = random.Random(options.seed)
    drive = Drive(scene.house, scene.streams, scene.transfer, view.turn)
    try:
        with view.showing(scene, drive):
            drive.settle()
            if options.minutes:
                plan = soak(wanted, time.monotonic() + options.minutes * 60, EVERY, luck)
            else:
                drive.progress.planned = len(wanted) * options.each
                plan = rounds(wanted, options.each, luck)
            try:
                drive.run(plan)
            except EXPECTED as error:  # what was seen until then is worth its report
                drive.progress.broken.append(f"the run ended early: {type(error).__name__}: {error}")
            drive.progress.ends = time.time()
            held = drive.finish()
    finally:
        drive.close()
    return Run.of(scene, drive, held, options.seed)


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Faults under traffic, watched and judged.")
    parser.add_argument("--minutes", type=float, default=0, help="go on for so long, a fault every 5 s or so")
    parser.add_argument("--each", type=int, default=2, help="otherwise: so many faults of each kind (2)")
    parser.add_argument("--kinds", default="", help="only these, with commas between")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to have the same faults again")
    parser.add_argument("--out", type=Path, default=Path("chaos-report"), help="folder of report.json and plot.png")
    parser.add_argument("--strict", action="store_true", help="fail also when a figure isn't reached")
    options = parser.parse_args()
    options.seed = secrets.randbits(32) if options.seed is None else options.seed
    try:
        wanted = catalogue.kinds(options.kinds)
    except ValueError as error:
        parser.error(str(error))
    if os.geteuid() != 0:
        sys.stderr.write("chaos: this needs root, for network namespaces and TUN devices\n")
        return 1
    return play(options, wanted)


if __name__ == "__main__":
    sys.exit(main())
