"""Writes the results as a page in Markdown with its pictures, to be committed."""

from pathlib import Path
from typing import Any, Final

from tests.bench import plots
from tests.bench.report import (
    columns,
    function_columns,
    function_lines,
    lines,
    references,
    stage_lines,
    title_of,
)
from tests.bench.rows import derive
from tests.bench.samples import Results

PAGE: Final = "REPORT.md"
_PICTURES: Final = {
    "tcp": "TCP through one tunnel",
    "udp": "UDP: what arrives of what is offered",
    "latency": "Round trips, idle and beside a TCP stream",
    "cpu": "CPU per gigabyte by stage",
}


def page(results: Results, about: dict[str, Any], pictures: list[str]) -> str:
    derived = derive(results)
    names = columns(derived)
    compared = references(names)
    text = [
        "# Measured",
        "",
        "`make bench` made this page; [README.md](README.md) tells how it measures. A figure is the median of the rounds,",
        "± half the distance between the least and the greatest. A ratio is the median of the ratios within each round.",
        "",
        *_machine(about),
        "",
        *_row(["", "", *names, *(text for name in compared for text in (f"to {name}", "target"))]),
        *_row(["---", "---", *(["--:"] * len(names)), *(["--:", "---"] * len(compared))]),
    ]
    section = ""
    for row, cells, verdicts in lines(derived, names):
        if row.section != section:
            section = row.section
            text += _row([f"**{section}**", *([""] * (len(names) + 1 + 2 * len(compared)))])
        text += _row([title_of(row, derived).strip(), row.unit, *cells, *(text for pair in verdicts for text in pair)])
    for picture in pictures:
        text += ["", f"![{_PICTURES.get(Path(picture).stem, picture)}]({picture})"]
    text += _functions(results)
    return "\n".join([*text, ""])


def _machine(about: dict[str, Any]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {value}" for name, value in about.items()]


def _functions(results: Results) -> list[str]:
    found = function_lines(results)
    if not found:
        return []
    text = ["", "## Hot functions", ""]
    text += ["µs of CPU per packet, by its size and by the number of packets in the train.", "", *_by_train(found)]
    if stages := stage_lines(results):
        text += ["", "## By stage", "", "µs of CPU per train of one visit, without its pipes.", "", *_by_train(stages)]
    return text


def _by_train(found: list[tuple[str, list[str]]]) -> list[str]:
    columns_ = function_columns()
    return [
        *_row(["", *columns_]),
        *_row(["---", *(["--:"] * len(columns_))]),
        *(line for name, cells in found for line in _row([f"`{name}`", *cells])),
    ]


def _row(cells: list[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def publish(results: Results, about: dict[str, Any], directory: Path) -> list[Path]:
    """Writes the page and its pictures. Returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures = plots.write(results, directory)
    path = directory / PAGE
    path.write_text(page(results, about, [each.name for each in pictures]))
    return [path, *pictures]
