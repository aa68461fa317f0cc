"""Runs `make bench`: measures, shows the results, writes them. See docs/performance/README.md.

python -m tests.bench                       about 15 minutes; results in build/bench
python -m tests.bench --quick               about two minutes
python -m tests.bench --publish DIRECTORY   writes the last results as a page with pictures, and measures nothing
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from tests.bench import machine, plots, report
from tests.bench.contestants import entries, short_directory
from tests.bench.groups import all_groups
from tests.bench.plan import FULL, QUICK, Plan
from tests.bench.publish import publish
from tests.bench.runner import Runner
from tests.bench.samples import Results

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPORT = "report.json"
TOO_BUSY = 0.1


class Ended(BaseException):
    """Says that a signal asked the benchmark to end. No handler of errors may catch it on the way out."""


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    for each in ENDING_SIGNALS:  # a second signal would leave half of it behind
        signal.signal(each, signal.SIG_IGN)
    raise Ended(number)


def measure(console: Console, plan: Plan, only: Sequence[str], peer: str | None, out: Path) -> int:
    """Runs the benchmark. Returns the exit status. After a signal it shows and writes the results until then."""
    results = Results()
    before = machine.busy()
    if before > TOO_BUSY:
        console.print(f"[yellow]bench: other programs use {before:.0%} of this machine's CPU: trust only the ratios[/]")
    status = 0
    for number in ENDING_SIGNALS:
        signal.signal(number, _end)
    try:
        with short_directory() as directory, machine.room_for_many():
            groups = [each for each in all_groups(plan, entries(peer), directory) if not only or each.key in only]
            Runner(console, results).run(groups)
    except Ended as ended:
        status = 128 + int(ended.args[0])
        console.print("ended early")
    if results.samples:
        about = machine.describe(rounds=plan.rounds, quick=plan.quick, busy_before=round(before, 2))
        report.save(out / REPORT, results, about)
        made = plots.write(results, out, "png")
        report.show(console, results)
        console.print(f"written: {', '.join(str(path) for path in (out / REPORT, *made))}")
    failed = any(each.error for each in results.samples)
    return status or int(failed)


def main() -> int:
    """Reads the command line and the variables QUICK, OUT, BENCH_PEER and ONLY."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Stagewire beside wireguard-go and bare veth."
    )
    parser.add_argument("--quick", action="store_true", default=bool(os.environ.get("QUICK")), help="about two minutes")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or "build/bench"), help="folder of the results"
    )
    parser.add_argument(
        "--peer",
        default=os.environ.get("BENCH_PEER") or None,
        help="path of a further program, started as wireguard-go is",
    )
    parser.add_argument("--only", nargs="+", default=os.environ.get("ONLY", "").split(), help="groups to run")
    parser.add_argument(
        "--publish",
        type=Path,
        metavar="DIRECTORY",
        help="writes the last results as a page with pictures, and measures nothing",
    )
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    if arguments.publish:
        made = publish(*report.load(arguments.out / REPORT), arguments.publish)
        console.print("\n".join(f"written: {path}" for path in made))
        return 0
    if os.geteuid() != 0:
        console.print("bench: this needs root, for network namespaces and TUN devices")
        return 1
    return measure(console, QUICK if arguments.quick else FULL, arguments.only, arguments.peer, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
