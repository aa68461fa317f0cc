"""Shows the results as a table on the screen, and saves them as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from tests.bench.contestants import CEILING, ONE_END, REFERENCE, STAGEWIRE
from tests.bench.functions import SIZES, TRAINS, figure
from tests.bench.rows import ROWS, TIMES, Row, derive
from tests.bench.samples import Results, Sample

FORMAT: Final = 1
MARKS: Final = {True: "✓", False: "✗", None: ""}
_COLUMNS: Final = (STAGEWIRE, REFERENCE, CEILING, ONE_END)


def columns(results: Results) -> list[str]:
    """Lists the contestants that have a figure in the rows: the usual ones first, then BENCH_PEER's."""
    there = {each.contestant for each in results.samples if each.values}
    known = {name for row in ROWS for name in (row.ours, row.theirs)}
    there |= {STAGEWIRE for row in ROWS if row.ours in there}
    plain = (row.scenario for row in ROWS if (row.ours, row.theirs) == (STAGEWIRE, REFERENCE))
    others = {name for scenario in plain for name in results.contestants(scenario)} - known - {*_COLUMNS}
    return [name for name in (*_COLUMNS, *sorted(others)) if name in there]


def lines(results: Results, names: Sequence[str]) -> list[tuple[Row, list[str], str, str]]:
    """Returns (row, a cell for each name, the ratio, the target and whether it is reached) of all measured rows."""
    found = []
    for row in ROWS:
        cells = [row.cell(results.summary(row.scenario, _who(row, name), row.value)) for name in names]
        if not any(cells):
            continue
        ratio = results.ratio(row.scenario, row.ours, row.theirs, row.value) if row.compared else None
        said = "" if ratio is None else f"{ratio.median:.2f}{TIMES}"
        if ratio is not None and ratio.runs > 1:
            said += f" ({ratio.low:.2f} to {ratio.high:.2f})"
        found.append((row, cells, said, f"{row.target()} {MARKS[row.reached(results)]}".strip()))
    return found


def _who(row: Row, name: str) -> str:
    """Returns the contestant that a row shows in a column.

    Rows of special contestants use the columns of the same program.
    """
    if name == STAGEWIRE:
        return row.ours
    if name == REFERENCE:
        return row.theirs if row.theirs.startswith(REFERENCE) else ""
    return name


def title_of(row: Row, results: Results) -> str:
    """Returns the row's title, with the other side's figure if that has no column."""
    if row.theirs.startswith(REFERENCE):
        return row.title
    other = results.summary(row.scenario, row.theirs, row.value)
    return f"{row.title} ({row.theirs.removeprefix(f'{STAGEWIRE}, ')}: {row.cell(other)})" if other else row.title


def show(console: Console, results: Results) -> None:
    derived = derive(results)
    names = columns(derived)
    table = Table(title="medians ± half the spread; ratios within a round", title_justify="left", header_style="bold")
    for title in ("", "unit", *names, f"ratio to {REFERENCE}", "target"):
        table.add_column(title, justify="left" if not title or title == "unit" else "right", no_wrap=title not in names)
    section = ""
    for row, cells, ratio, target in lines(derived, names):
        if row.section != section:
            section = row.section
            table.add_section()
            table.add_row(f"[bold]{section}[/]")
        style = "red" if target.endswith("✗") else "green" if target.endswith("✓") else ""
        table.add_row(
            f"  {title_of(row, derived)}", row.unit, *cells, ratio, f"[{style}]{target}[/]" if style else target
        )
    console.print(table)
    show_functions(console, results)
    for failed in (each for each in results.samples if each.error):
        console.print(
            f"failed: {failed.scenario}, {failed.contestant}, round {failed.round + 1}: {failed.error}", style="red"
        )


def function_lines(results: Results) -> list[tuple[str, list[str]]]:
    """Returns each hot function with its µs per packet by size and train length."""
    return [
        (name, [f"{values[figure(train, size)]:.2f}" for size in SIZES for train in TRAINS])
        for name in results.contestants("functions")
        for values in (results.of("functions", name)[0].values,)
    ]


def function_columns() -> list[str]:
    return [f"{size:,} B, {train}" for size in SIZES for train in TRAINS]


def show_functions(console: Console, results: Results) -> None:
    """Prints the table of hot functions, if they were measured."""
    found = function_lines(results)
    if not found:
        return
    table = Table(
        title="hot functions: µs of CPU per packet, by its size and by packets in the train", title_justify="left"
    )
    table.add_column("")
    for column in function_columns():
        table.add_column(column, justify="right")
    for name, cells in found:
        table.add_row(name, *cells)
    console.print(table)


def as_json(results: Results, about: dict[str, Any]) -> dict[str, Any]:
    """Returns all samples, and what the table says."""
    derived = derive(results)
    names = columns(derived)
    table = [
        {
            "section": row.section,
            "title": row.title.strip(),
            "unit": row.unit,
            "cells": dict(zip(names, cells, strict=True)),
            "ratio": ratio,
            "target": row.target(),
            "reached": row.reached(derived),
        }
        for row, cells, ratio, _ in lines(derived, names)
    ]
    return {"format": FORMAT, "about": about, "table": table, "samples": [each.as_json() for each in results.samples]}


def save(path: Path, results: Results, about: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(results, about), indent=1) + "\n")


def load(path: Path) -> tuple[Results, dict[str, Any]]:
    """Reads the file of `save`. Raises ValueError for a file of another form."""
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has another format than this benchmark writes: run `make bench` again")
    return Results(Sample(**each) for each in content["samples"]), content["about"]
