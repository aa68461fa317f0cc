"""Adds a peer for each line of a CSV file, all of them or none."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stagewire.config import HostPort, decode_key, encode_key, values
from stagewire.config.operations import AddPeers, NewPeer, Setting
from stagewire.environment import Environment
from stagewire_cli import client_config, operands, output_files, peers
from stagewire_cli.failures import Failed

_OPTIONS: Final = ("dns", "keepalive", "mtu", "expires", "rate", "quota")
_LISTS: Final = ("group", "allow")
COLUMNS: Final = ("name", "public_key", "address", "network", *_OPTIONS, *_LISTS)
_MAX_SIZE: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class _Line:
    """Holds a line of the table: its number, the peer that it describes, and the private key made for that peer."""

    number: int
    peer: NewPeer
    private: bytes | None = field(repr=False)


def add(
    environment: Environment,
    path: Path,
    chosen: dict[str, Any],
    gateway: HostPort | None,
    settings: Callable[[dict[str, Any]], tuple[Setting, ...]],
) -> None:
    """Adds the peers of a CSV file, and writes a client's configuration for each into the folder of --output."""
    folder = chosen["output"]
    if folder is not None and not folder.is_dir():
        raise Failed(f"{folder} is no folder: --output needs one for the configurations")
    lines = []
    for number, row in _rows(path):
        try:
            options = {name: row[name] or chosen[name] for name in _OPTIONS}
            lists = {name: (row[name],) if row[name] else chosen[name] for name in _LISTS}
            line = _line(number, row, settings({**chosen, **options, **lists}))
        except Failed as failed:
            raise Failed(f"{path}:{number}: {failed}") from None
        if line.private is not None and folder is None:
            raise Failed(f"{path}:{number}: without --output nothing can hold the private key of {row['name']!r}")
        lines.append(line)
    paths = [folder / f"{_file_name(line.peer.name)}.conf" for line in lines] if folder is not None else []
    with output_files.made(paths) as files:
        try:
            done = peers.carry_out(environment, AddPeers(tuple(line.peer for line in lines)))
        except Failed as failed:
            beginning = str(failed).partition(": ")[0]
            at = next((f":{line.number}" for line in lines if beginning == f"peer {line.peer.name}"), "")
            raise Failed(f"{path}{at}: {failed}; nothing is changed") from None
        after = peers.after(done, environment)
        for line, file in zip(lines, files, strict=False):
            peer = peers.added(after, decode_key(line.peer.public_key))
            file.write(client_config.text(after.whole, peer, line.private, gateway))
    operands.tell(f"added {len(lines)} peers")


def _line(number: int, row: dict[str, str], settings: tuple[Setting, ...]) -> _Line:
    private, public, psk = peers.new_keys()
    key = row["public_key"] or encode_key(public)
    addresses, networks = tuple(row["address"].split()), tuple(row["network"].split())
    new = NewPeer(row["name"], key, encode_key(psk), addresses, networks, settings)
    return _Line(number, new, None if row["public_key"] else private)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failed(f"{path}: is not UTF-8 text") from None
    if len(data) > _MAX_SIZE:
        raise Failed(f"{path}: has more than {_MAX_SIZE >> 20} MiB")
    reader = csv.DictReader(io.StringIO(text), strict=True)
    found = []
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        if "name" not in names or (unknown := [name for name in names if name not in COLUMNS]):
            what = f"has no column {unknown[0]!r}" if "name" in names else "has no column 'name' in its first line"
            raise Failed(f"{path}: {what}; there are {', '.join(COLUMNS)}")
        for row in reader:
            if None in row or None in row.values():
                raise Failed(
                    f"{path}:{reader.line_num}: has {'more' if None in row else 'fewer'} columns than the first line"
                )
            found.append((reader.line_num, {name: (row.get(name) or "").strip() for name in COLUMNS}))
    except csv.Error as error:
        raise Failed(f"{path}:{reader.line_num}: {error}") from None
    if not found:
        raise Failed(f"{path}: has no line with a peer")
    seen = dict[str, int]()
    for number, row in found:
        first = seen.setdefault(_file_name(row["name"]).casefold(), number)
        if first != number:
            name = values.shown(row["name"])
            raise Failed(f"{path}:{number}: the name {name} stands in line {first} already, or one like it")
    return found


def _file_name(name: str) -> str:
    """Makes a file's name of a peer's name."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name).lstrip(".") or "_"
