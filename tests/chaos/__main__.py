"""Runs `make chaos`: injects dozens of faults under traffic and watches the gateway. See `--help`."""

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

from tests.chaos import catalogue
from tests.chaos.compare import compare
from tests.chaos.drive import EXPECTED, Drive
from tests.chaos.house import Kind
from tests.chaos.report import Run, write_json
from tests.chaos.scene import Scene
from tests.chaos.schedule import Plan, rounds, short, soak
from tests.chaos.summary import conclude
from tests.chaos.view import View

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_FAULT: Final = 60.0
LONGEST: Final = 4 * 3600.0
EVERY: Final = 5.0
"""s between faults of a soak."""
SHORT: Final = 75.0
"""s after which a short run begins no further optional fault."""


class Ended(BaseException):
    """Says that a signal asked the run to end. No handler of errors may catch it on the way out."""


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise Ended(number)


def play(options: argparse.Namespace, wanted: list[Kind]) -> int:
    """Plays the whole run. Returns the exit status."""
    for number in ENDING_SIGNALS:
        signal.signal(number, _end)
    faults = options.each * len(wanted or catalogue.KINDS)
    seconds = options.minutes * 60 if options.minutes else min(faults * LONGEST_FAULT, LONGEST)
    view = View(options.seed)
    view.say(f"seed {options.seed}: `make chaos SEED={options.seed}` draws the same faults in the same order")
    try:
        with _leaving_in_peace(), Scene(seconds + 600, options.seed) as scene:
            run = _drive(scene, view, options, wanted)
        status = conclude(run, view, strict=options.strict)
        written = [write_json(run, options.out)]
        from tests.chaos.plot import write_plot  # noqa: PLC0415 - the import of matplotlib would disturb the traffic

        written.append(write_plot(run, options.out))
        view.say("written: " + ", ".join(map(str, written)))
    except Ended as ended:
        return 128 + int(ended.args[0])
    except EXPECTED as error:
        view.say(f"chaos: the scene failed: {type(error).__name__}: {error}")
        return 1
    return status


@contextlib.contextmanager
def _leaving_in_peace() -> Iterator[None]:
    """Ignores further signals on the way out: they would leave half of the scene behind."""
    try:
        yield
    finally:
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _drive(scene: Scene, view: View, options: argparse.Namespace, wanted: list[Kind]) -> Run:
    drive = Drive(scene.house, scene.streams, scene.transfer, view.turn)
    try:
        with view.showing(scene, drive):
            drive.settle()
            plan = _plan(options, wanted, drive)
            try:
                drive.run(plan)
            except EXPECTED as error:  # the findings until then are worth a report
                drive.progress.broken.append(f"the run ended early: {type(error).__name__}: {error}")
            drive.progress.ends = time.time()
            held = drive.finish()
    finally:
        drive.close()
    run = Run.of(scene, drive, held, options.seed)
    if options.compare:
        run.reference = compare(scene, options.compare, view.say)
    return run


def _plan(options: argparse.Namespace, wanted: list[Kind], drive: Drive) -> Plan:
    luck, now = random.Random(options.seed), time.monotonic()
    if options.short:
        return short(wanted or catalogue.KINDS, options.each, now + SHORT, luck)
    if options.minutes:
        return soak(
            wanted or [kind for kind in catalogue.KINDS if not kind.dark], now + options.minutes * 60, EVERY, luck
        )
    wanted = wanted or list(catalogue.KINDS)
    drive.progress.planned = len(wanted) * options.each
    return rounds(wanted, options.each, luck)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="Faults under traffic, watched and judged."
    )
    parser.add_argument("--minutes", type=float, default=0, help="soak for this long, a fault about every 5 s")
    parser.add_argument("--each", type=int, default=2, help="without --minutes: faults of each kind (2)")
    parser.add_argument("--short", action="store_true", help="two minutes: the main kinds of fault, then some others")
    parser.add_argument("--compare", type=int, default=0, help="faults of each kind on wireguard-go for comparison (0)")
    parser.add_argument("--kinds", default="", help="only these kinds, with commas between")
    parser.add_argument("--seed", type=int, default=None, help="seed of an earlier run, whose faults are repeated")
    parser.add_argument("--out", type=Path, default=Path("chaos-report"), help="folder of report.json and plot.png")
    parser.add_argument("--strict", action="store_true", help="fail also for a missed figure")
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
