"""Adds a peer for each line of a CSV file, all of them or none."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stagewire.config import HostPort, InterfaceConfig, decode_key, encode_key
from stagewire.config.operations import AddPeers, NewPeer
from stagewire.environment import Environment
from stagewire_cli import again, client_config, operands, output_files, peer_options, peers, table
from stagewire_cli.failures import Failed

_OPTIONS: Final = ("dns", "keepalive", "mtu", "expires", "rate", "quota")
_LISTS: Final = ("group", "allow")
COLUMNS: Final = ("name", "public_key", "address", "network", *_OPTIONS, *_LISTS)


@dataclass(frozen=True, slots=True)
class _Line:
    """Holds a line of the table: its number, the peer that it describes, and the private key made for that peer."""

    number: int
    peer: NewPeer
    private: bytes | None = field(repr=False)


def add(
    environment: Environment, path: Path, chosen: dict[str, Any], gateway: HostPort | None, interface: InterfaceConfig
) -> InterfaceConfig:
    """Adds the peers of a CSV file, and writes a client's configuration for each into the folder of --output.

    Returns what the file says afterwards.
    """
    folder = chosen["output"]
    if folder is not None and not folder.is_dir():
        make = "" if folder.exists() else f"; `mkdir {folder}` makes it"
        raise Failed(f"{folder} is no folder: with --from, --output needs one for the configurations{make}")
    try:
        lines = _read(path, chosen, interface)
    except Failed as failed:
        raise Failed(f"{failed}; nothing is changed") from None
    paths = [folder / f"{_file_name(line.peer.name)}.conf" for line in lines] if folder is not None else []
    with output_files.made(paths) as files:
        try:
            done = peers.carry_out(environment, AddPeers(tuple(line.peer for line in lines)))
        except Failed as failed:
            why = f"peer {lines[0].peer.name}: {failed}" if len(lines) == 1 else str(failed)
            raise Failed(again.unchanged(Failed(f"{path}{_place(lines, why)}: {why}"))) from None
        after = peers.after(done)
        for line, file in zip(lines, files, strict=False):
            peer = peers.added(after, decode_key(line.peer.public_key))
            file.write(client_config.text(after.whole, peer, line.private, gateway))
    peers.tell(done)
    into = f", and wrote their configurations into {folder}" if folder is not None else ""
    operands.tell(f"added {operands.counted(len(lines), 'peer')}{into}")
    return after.whole


def _read(path: Path, chosen: dict[str, Any], interface: InterfaceConfig) -> list[_Line]:
    """Reads the file. Raises Failed, which names the line and the column."""
    lines = []
    seen = dict[str, int]()
    for row in table.read(path, COLUMNS, "name"):
        try:
            line = _line(row, chosen, interface)
            _check(line, seen, chosen)
        except Failed as failed:
            raise Failed(f"{path}:{row.number}: {failed}") from None
        lines.append(line)
    return lines


def _check(line: _Line, seen: dict[str, int], chosen: dict[str, Any]) -> None:
    """Raises Failed for a name that stood in a line before, and for a private key without a file."""
    name = line.peer.name
    first = seen.setdefault(_file_name(name).casefold(), line.number)
    if first != line.number:
        raise Failed(f"the name {name!r} stands in line {first} already, or one like it")
    if line.private is not None and chosen["output"] is None:
        made = f"{name!r} has no public_key, so a private key is made"
        raise Failed(f"{made}: give --output FOLDER, which gets its configuration")


def _line(row: table.Row, chosen: dict[str, Any], interface: InterfaceConfig) -> _Line:
    given = row.values

    def named(option: str) -> str:
        return f"column {option}" if given.get(option) else peer_options.flag(option)

    options = {name: given[name] or chosen[name] for name in _OPTIONS}
    lists = {name: (given[name],) if given[name] else chosen[name] for name in _LISTS}
    own = {name: tuple(given[name].split()) for name in ("address", "network")}
    peer_options.check_name(given["name"])
    peer_options.check_addresses(interface, own, named)
    settings = peer_options.settings(interface, {**chosen, **options, **lists}, named)
    private, public, psk = peers.new_keys()
    key = given["public_key"] or encode_key(public)
    try:
        decode_key(key)
    except ValueError as error:
        raise Failed(f"the public_key of {given['name']!r} {error}") from None
    psk_text = encode_key(psk) if chosen["psk"] else ""
    new = NewPeer(given["name"], key, psk_text, own["address"], own["network"], settings)
    return _Line(row.number, new, None if given["public_key"] else private)


def _place(lines: list[_Line], why: str) -> str:
    """Returns `:` and the number of the line that a refusal is about; nothing if it is about none."""
    about = [line for line in lines if why.startswith(f"peer {line.peer.name}: ")]
    return f":{max(about, key=lambda line: len(line.peer.name)).number}" if about else ""


def _file_name(name: str) -> str:
    """Makes a file's name of a peer's name."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name).lstrip(".") or "_"
