"""Reads a CSV file of peers: a line that names the columns, then a line for each peer."""

import csv
import difflib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stagewire.config import values
from stagewire_cli.failures import Failed

_MAX_SIZE: Final = 16 << 20
_MEANT: Final = {
    "private_key": "the gateway keeps no private key of a peer: give public_key, or neither for new keys",
    "preshared_key": "the gateway makes a pre-shared key for each peer",
    "allowed_ips": "give address and network",
    "groups": "did you mean group?",
}
"""What to do instead of columns that there are not."""
_SEPARATORS: Final = {";": "semicolons", "\t": "tabs", "|": "bars"}
_QUOTE: Final = "a quotation mark is opened and not closed, or stands within a value: write it twice there"


@dataclass(frozen=True, slots=True)
class Row:
    """Holds a line of the file: its number, and the value of each column."""

    number: int
    values: dict[str, str]


def read(path: Path, columns: Collection[str], needed: str) -> list[Row]:
    """Reads the file. A column that it lacks is empty in each row. Raises Failed, which names the line."""
    lines = _lines(path, _text(path))
    number, head = next(lines, (1, []))
    names = _names(path, number, head, columns, needed)
    found = []
    for number, cells in lines:
        if len(cells) != len(names):
            count = f"{len(cells)} column{'' if len(cells) == 1 else 's'}"
            raise Failed(f"{path}:{number}: has {count}, but the first line has {len(names)}")
        row = dict(zip(names, cells, strict=True))
        if row.get(""):
            raise Failed(f"{path}:{number}: has {values.shown(row[''])} in a column that the first line does not name")
        found.append(Row(number, {column: row.get(column, "") for column in columns}))
    if not found:
        raise Failed(f"{path}: has no line with a peer")
    return found


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    if len(data) > _MAX_SIZE:
        raise Failed(f"{path}: has more than {_MAX_SIZE >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise Failed(f"{path}:{number}: is not UTF-8 text: save the file as CSV in UTF-8") from None


def _lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the cells of each line that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=None), strict=True)
    number = 1
    try:
        for cells in reader:
            bare = [cell.strip() for cell in cells]
            if any(bare):
                yield number, bare
            number = reader.line_num + 1
    except csv.Error as error:
        why = "a value is too long" if "limit" in str(error) else _QUOTE
        raise Failed(f"{path}:{number}: {why}") from None


def _names(path: Path, number: int, head: list[str], columns: Collection[str], needed: str) -> list[str]:
    names = [name.lower() for name in head]
    whole = " ".join(names)
    for separator, word in _SEPARATORS.items():
        if separator in whole and len(names) == 1:
            raise Failed(f"{path}:{number}: separates its columns with {word}: save it with commas")
    if not any(name in columns for name in names):
        such = ",".join(list(columns)[:3])
        raise Failed(f"{path}:{number}: the first line must name the columns, such as {such}")
    for place, name in enumerate(names):
        if name and name not in columns:
            raise Failed(f"{path}:{number}: there is no column {values.shown(name)}; {_instead(name, columns)}")
        if name and name in names[:place]:
            raise Failed(f"{path}:{number}: the first line names the column {name} twice")
    if needed not in names:
        raise Failed(f"{path}:{number}: the first line names no column {needed}, which each peer needs")
    return names


def _instead(name: str, columns: Collection[str]) -> str:
    underscored = name.replace(" ", "_").replace("-", "_")
    if underscored in _MEANT:
        return _MEANT[underscored]
    if close := difflib.get_close_matches(underscored, columns, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(columns)}"
