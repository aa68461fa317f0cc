"""Writes what a run of the attack suite showed: report.md for people, report.json for programs."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tests.attack.lines import LINES
from tests.attack.suite import Shown, Suite

SAID: Final = {"held": "held", "broke": "**broke**", "skipped": "not tried", "waits": "not tried"}


def markdown(suite: Suite, seed: int) -> Iterator[str]:
    """Yields the page's lines: a row for each line of the suite, then what broke."""
    begun = time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(suite.begun))
    minutes = (time.time() - suite.begun) / 60
    broke = [shown for shown in suite.shown if shown.outcome == "broke"]
    yield from ("# Attack report", "")
    yield f"{begun}, {minutes:.0f} min, seed {seed}: {len(suite.shown)} tests, {len(broke)} broke."
    yield from ("", "| line | attack | must happen | result | tests | figures |", "|---|---|---|---|---|---|")
    for name, line in LINES.items():
        shown = suite.of(name)
        figures = "<br>".join(figure for each in shown for figure in each.figures)
        said = SAID[suite.state(name)] if shown else "no test ran"
        yield f"| {name} | {line.what} | {line.must} | {said} | {len(shown)} | {figures} |"
    for title, found in (("Broke", broke), ("Not tried", [each for each in suite.shown if each.outcome == "skipped"])):
        if found:
            yield from ("", f"## {title}", "", *(f"- {_named(each)}: {each.why}" for each in found))
    if suite.trouble:
        yield from ("", "## Trouble", "", *(f"- {each}" for each in suite.trouble))


def _named(shown: Shown) -> str:
    return f"{' '.join(shown.lines)}: `{shown.test}`"


def write(suite: Suite, seed: int, folder: Path) -> list[Path]:
    """Writes both reports. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "report.md", folder / "report.json"
    page.write_text("\n".join(markdown(suite, seed)) + "\n")
    found = {
        "seed": seed,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(suite.begun)),
        "seconds": round(time.time() - suite.begun, 1),
        "sound": suite.sound,
        "lines": {
            name: {"attack": line.what, "must": line.must, "result": suite.state(name)} for name, line in LINES.items()
        },
        "tests": [asdict(shown) for shown in suite.shown],
        "trouble": suite.trouble,
    }
    data.write_text(json.dumps(found, indent=1) + "\n")
    return [page, data]
