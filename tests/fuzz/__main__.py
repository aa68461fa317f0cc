"""Searches for inputs that break a door: `make fuzz MINUTES=n`. docs/FUZZING.md explains it.

Each door has its share of the time, in a process of its own (`target`). A corpus outside of the tree grows from run to
run. Each input that fails is added to the tree, where `test_doors.py` replays it from then on.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.doors import DOORS
from tests.fuzz.doors.door import CORPUS, CRASHERS, Door, read, write

ROOT: Final = Path(__file__).parents[2]
GROWN: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stagewire-fuzz"
"""Folder of the corpora that grow, and of the report."""
REPORT: Final = "report.jsonl"
INTERRUPTED: Final = 72
"""Exit status of a process of libFuzzer's that ^C has ended."""
HANGS_AFTER: Final = 60
"""s for one input before libFuzzer ends the process, on a busy machine."""
STARTS_WITHIN: Final = 600
"""s for a process to load and instrument its modules, and to end; a busy machine may need minutes."""
MOST_MEMORY: Final = 1024
"""MB of a process before libFuzzer ends it."""
_LINE: Final = re.compile(r"#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass(slots=True)
class Result:
    """Describes what one run of a door used and found; a line of the report."""

    door: str
    unix: int
    seconds: float
    cpu_seconds: float
    inputs: int = 0
    edges: int = 0
    corpus: int = 0
    failures: int = 0

    def __str__(self) -> str:
        return (
            f"{self.door:20} {self.cpu_seconds:7.0f} s CPU {self.inputs:11,} inputs {self.edges:6} edges"
            f" {self.corpus:6} in the corpus {self.failures:3} failures"
        )


class Run:
    """Runs one door for a time, in a process of its own."""

    def __init__(self, door: Door, grown: Path, seconds: float) -> None:
        self.door = door
        self._grown = grown / door.name
        self._grown.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix="stagewire-fuzz-"))
        self._found = self._scratch / "found"
        seeds = self._scratch / "seeds"
        for folder in (seeds, self._found):
            folder.mkdir()
        for number, data in enumerate([*door.seeds(), *door.kept()]):
            (seeds / str(number)).write_bytes(data)
        self._said = self._scratch / "said"
        self._began = time.time()
        self._process = start(
            door, self._found, self._said,
            [
                f"-max_total_time={int(seconds)}", f"-timeout={HANGS_AFTER}",
                f"-report_slow_units={HANGS_AFTER}", f"-rss_limit_mb={MOST_MEMORY}",
                f"-max_len={door.longest}", f"-artifact_prefix={self._found}/", str(self._grown), str(seeds),
            ],
        )  # fmt: skip
        self._until = self._began + seconds + STARTS_WITHIN

    def result(self) -> Result | None:
        """Returns the result once the process has ended."""
        if time.time() > self._until:
            os.kill(self._process.pid, signal.SIGKILL)  # it should have ended by itself
        pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        result = Result(self.door.name, int(self._began), time.time() - self._began, used.ru_utime + used.ru_stime)
        said = self._said.read_text(errors="replace")
        for inputs, edges, _, corpus in _LINE.findall(said):
            result.inputs, result.edges, result.corpus = int(inputs), int(edges), int(corpus)
        result.failures = self._keep_failures()
        if self._process.returncode not in (0, INTERRUPTED) and not result.failures:
            result.failures = 1
            print(f"{self.door.name}: ended with {self._process.returncode}\n{said[-2000:]}", file=sys.stderr)
        shutil.rmtree(self._scratch)
        return result

    def stop(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._scratch)

    def _keep_failures(self) -> int:
        kept = CRASHERS / f"{self.door.name}.txt"
        inputs = read(kept)
        failed = [path for path in sorted(self._found.iterdir()) if path.suffix != ".txt"]
        for path in failed:
            told = path.with_suffix(".txt")
            print(f"{self.door.name}: {told.read_text() if told.exists() else path.name}", file=sys.stderr)
            inputs.append(path.read_bytes())
        if failed:
            write(kept, dict.fromkeys(inputs))
        return len(failed)


def start(door: Door, found: Path, said: Path, options: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Starts the process of a door."""
    with said.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.target", door.name, str(found), *options],
            cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def search(doors: Sequence[Door], grown: Path, seconds: float, jobs: int) -> Iterator[Result]:
    """Gives each door its share of the time, some at once; yields results as they come."""
    waiting = list(doors)
    ends = time.time() + seconds
    running: list[Run] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                share = (ends - time.time()) * jobs / len(waiting)
                running.append(Run(waiting.pop(0), grown, max(1, share)))
            for run in list(running):
                if (result := run.result()) is not None:
                    running.remove(run)
                    with (grown / REPORT).open("a") as report:
                        report.write(json.dumps(asdict(result)) + "\n")
                    yield result
            time.sleep(0.2)
    finally:
        for run in running:
            run.stop()


def minimise(doors: Sequence[Door], grown: Path, most: int) -> None:
    """Writes the tree's corpora anew: of all inputs those that together reach as much, the shortest of each kind."""
    for door in doors:
        with tempfile.TemporaryDirectory() as scratch:
            into, seeds, said = Path(scratch, "into"), Path(scratch, "seeds"), Path(scratch, "said")
            into.mkdir()
            seeds.mkdir()
            for number, data in enumerate(read(CORPUS / f"{door.name}.txt")):
                (seeds / str(number)).write_bytes(data)
            folders = [str(folder) for folder in (into, grown / door.name, seeds) if folder.exists()]
            start(door, Path(scratch, "found"), said, ["-merge=1", f"-max_len={door.longest}", *folders]).wait()
            kept = sorted((path.read_bytes() for path in into.iterdir()), key=lambda data: (len(data), data))
        size = 0
        for count, data in enumerate(kept):
            size += len(repr(data))
            if size > most:
                kept = kept[:count]
                break
        write(CORPUS / f"{door.name}.txt", kept)
        print(f"{door.name:20} {len(kept):5} inputs")


def total(grown: Path) -> float:
    """Adds up the CPU seconds of all runs in the report."""
    path = grown / REPORT
    return sum(json.loads(line)["cpu_seconds"] for line in path.read_text().splitlines()) if path.exists() else 0.0


def main() -> int:
    """Runs what the arguments ask for. Returns 1 if an input failed."""
    asked = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    asked.add_argument("--minutes", type=float, default=10)
    asked.add_argument("--doors", default="", help="names of doors, with commas between; all by default")
    asked.add_argument("--jobs", type=int, default=1, help="doors at once")
    asked.add_argument("--corpus", type=Path, default=GROWN, help="folder of the corpora that grow")
    asked.add_argument("--minimise", action="store_true", help="write the tree's corpora anew")
    asked.add_argument("--most", type=int, default=16384, help="bytes of a corpus in the tree")
    given = asked.parse_args()
    names = [name for name in given.doors.split(",") if name] or list(DOORS)
    if unknown := [name for name in names if name not in DOORS]:
        print(f"fuzz: no such door: {', '.join(unknown)}; there are {', '.join(DOORS)}", file=sys.stderr)
        return 2
    doors = [DOORS[name] for name in names]
    given.corpus.mkdir(parents=True, exist_ok=True)
    if given.minimise:
        minimise(doors, given.corpus, given.most)
        return 0
    failures, cpu = 0, 0.0
    for result in search(doors, given.corpus, given.minutes * 60, given.jobs):
        print(result, flush=True)
        failures += result.failures
        cpu += result.cpu_seconds
    print(f"{cpu / 3600:.2f} CPU hours, {total(given.corpus) / 3600:.2f} with earlier runs in {given.corpus / REPORT}")
    if failures:
        print(f"{failures} inputs failed: each is kept in {CRASHERS.relative_to(ROOT)}, and `make test` replays it")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
