"""Shows the results as a table on the screen, and saves them as JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from tests.bench.contestants import CEILING, ONE_END, REFERENCE, STAGEWIRE
from tests.bench.functions import SIZES, STAGES, TRAINS, figure
from tests.bench.rows import ROWS, TIMES, Row, derive
from tests.bench.samples import Results, Sample

FORMAT: Final = 1
MARKS: Final = {True: "✓", False: "✗", None: ""}
WIDE: Final = 150
"""Characters of a line from which the table has all contestants; below, Stagewire's column alone."""
_COLUMNS: Final = (STAGEWIRE, REFERENCE, CEILING, ONE_END)


def columns(results: Results) -> list[str]:
    """Lists the contestants that have a figure in the rows: the usual ones first, then BENCH_PEER's."""
    there = {each.contestant for each in results.samples if each.values}
    known = {name for row in ROWS for name in (row.ours, row.theirs)}
    there |= {STAGEWIRE for row in ROWS if row.ours in there}
    plain = (row.scenario for row in ROWS if (row.ours, row.theirs) == (STAGEWIRE, REFERENCE))
    others = {name for scenario in plain for name in results.contestants(scenario)} - known - {*_COLUMNS}
    return [name for name in (*_COLUMNS, *sorted(others)) if name in there]


def references(names: Sequence[str]) -> list[str]:
    """Lists those of the columns with which Stagewire is compared: Debian's wireguard-go, then BENCH_PEER's program."""
    return [REFERENCE, *(name for name in names if name not in _COLUMNS)]


Line = tuple[Row, list[str], list[tuple[str, str]]]
"""A row, a cell for each contestant, and a verdict for each of `references`: the ratio, then the target and its mark."""


def lines(results: Results, names: Sequence[str]) -> list[Line]:
    """Returns all measured rows."""
    found = []
    for row in ROWS:
        cells = [row.cell(results.summary(row.scenario, _who(row, name), row.value)) for name in names]
        if any(cells):
            found.append((row, cells, [_verdict(_compared(row, name), results) for name in references(names)]))
    return found


def _compared(row: Row, reference: str) -> Row | None:
    """Returns the row that compares with a reference; None if it makes no sense."""
    if reference == REFERENCE:
        return row
    return row.against(reference) if row.theirs.startswith(REFERENCE) and row.compared else None


def _verdict(row: Row | None, results: Results) -> tuple[str, str]:
    if row is None:
        return "", ""
    ratio = results.ratio(row.scenario, row.ours, row.theirs, row.value) if row.compared else None
    said = "" if ratio is None else f"{ratio.median:.2f}{TIMES}"
    if ratio is not None and ratio.runs > 1:
        said += f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return said, f"{row.target()} {MARKS[row.reached(results)]}".strip()


def _who(row: Row, name: str) -> str:
    """Returns the contestant that a row shows in a column.

    Rows of special contestants use the columns of the same program.
    """
    if name == STAGEWIRE:
        return row.ours
    if name == REFERENCE:
        return row.theirs if row.theirs.startswith(REFERENCE) else ""
    if name not in _COLUMNS and row.theirs.startswith(REFERENCE):
        return row.against(name).theirs
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
    measured = lines(derived, names)
    console.print((_wide if console.width >= WIDE else _narrow)(measured, derived, names))
    show_functions(console, results)
    for failed in (each for each in results.samples if each.error):
        console.print(
            f"failed: {failed.scenario}, {failed.contestant}, round {failed.round + 1}: {failed.error}", style="red"
        )


def _wide(measured: Sequence[Line], derived: Results, names: Sequence[str]) -> Table:
    """Makes a table of all contestants."""
    table = _table("unit", *names, *(text for name in references(names) for text in (f"to {name}", "target")))

    def cells(line: Line) -> list[str]:
        row, values, verdicts = line
        return [row.unit, *values, *(text for ratio, target in verdicts for text in (ratio, _coloured(target)))]

    return _filled(table, measured, derived, cells)


def _narrow(measured: Sequence[Line], derived: Results, names: Sequence[str]) -> Table:
    """Makes a table for 80 columns: Stagewire, and its ratio to each reference with the mark."""
    table = _table(STAGEWIRE, "", *(f"to {name}" for name in references(names)))

    def cells(line: Line) -> list[str]:
        row, values, verdicts = line
        brief = [f"{ratio.partition(' ')[0]} {target[-1:] if target else ' '}" for ratio, target in verdicts]
        return [values[names.index(STAGEWIRE)], row.unit, *map(_coloured, brief)]

    return _filled(table, measured, derived, cells)


def _table(*titles: str) -> Table:
    table = Table(title="medians ± half the spread; ratios within a round", title_justify="left", header_style="bold")
    table.add_column("", overflow="fold")
    for title in titles:
        table.add_column(title, justify="left" if title in {"", "unit"} else "right", overflow="fold")
    return table


def _filled(table: Table, measured: Sequence[Line], derived: Results, cells: Callable[[Line], list[str]]) -> Table:
    section = ""
    for line in measured:
        row = line[0]
        if row.section != section:
            section = row.section
            table.add_section()
            table.add_row(f"[bold]{section}[/]")
        kept = [cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in cells(line)]
        table.add_row(f"  {title_of(row, derived)}", *kept)
    return table


def _coloured(target: str) -> str:
    style = "red" if target.endswith("✗") else "green" if target.endswith("✓") else ""
    return f"[{style}]{target}[/]" if style else target


def function_lines(results: Results) -> list[tuple[str, list[str]]]:
    """Returns each hot function with its µs per packet by size and train length."""
    return [
        (name, [f"{values[figure(train, size)]:.2f}" for size in SIZES for train in TRAINS])
        for name in results.contestants("functions")
        for values in (results.of("functions", name)[0].values,)
    ]


def stage_lines(results: Results) -> list[tuple[str, list[str]]]:
    """Returns each stage's visit, in the order of a packet's way, with its µs per train by size and train length."""
    measured = [name for name in STAGES if name in results.contestants("functions")]
    return [
        (name, [f"{values[figure(train, size)] * train:.1f}" for size in SIZES for train in TRAINS])
        for name in measured
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
            "compared": {
                name: {"ratio": ratio, "target": target}
                for name, (ratio, target) in zip(references(names), verdicts, strict=True)
            },
        }
        for row, cells, verdicts in lines(derived, names)
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
