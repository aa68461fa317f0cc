"""Puts all of an interface into one sealed file, and back: the configuration, and the state that outlives a boot.

The state is the newest handshake time of each peer, which protects against replays, the audit, and what peers have used.
The history belongs to it if the operator wants that.
"""

import base64
import json
import lzma
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stagewire import config, files
from stagewire.config import ConfigError, InterfaceConfig, roster, values
from stagewire.config.roster import Roster
from stagewire.environment import Environment, valid_interface_name
from stagewire.history import FOLDER, NAME
from stagewire.linux import privileges
from stagewire_cli import bring_up, history, neighbours, noting, operands, output_files, peers, saving, sealed
from stagewire_cli.failures import Failed
from stagewire_cli.output_files import New

_STATE: Final = ("timestamps", "audit", "usage")
_HISTORY: Final = f"{FOLDER}/{NAME}"
"""The history, compressed by LZMA."""
_MAX_STATE: Final = 256 << 20
_MAX_SIZE: Final = 512 << 20


@dataclass(frozen=True, slots=True)
class Backup:
    """Holds the content of a backup. `state` has the files of the state folder, by name."""

    interface: str
    made: str
    text: str = field(repr=False)
    state: dict[str, bytes] = field(repr=False)

    def packed(self) -> bytes:
        state = {name: base64.b64encode(data).decode() for name, data in self.state.items()}
        data = self.text.encode("utf-8", "surrogateescape")
        said = {"interface": self.interface, "made": self.made, "file": base64.b64encode(data).decode(), "state": state}
        return json.dumps(said).encode()


def read(environment: Environment, *, with_history: bool = False) -> Backup:
    """Reads all of an interface. Raises Failed or ConfigError."""
    path = peers.file_of(environment)
    text = config.load_text(path)
    config.parse_text(text, path)
    state = {}
    for name in _STATE:
        try:
            state[name] = files.read(environment.state / name, _MAX_STATE)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Failed(str(error)) from None
    if with_history and os.path.lexists(environment.state / _HISTORY):
        state[_HISTORY] = _history(environment)
    return Backup(environment.interface, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, state)


def _history(environment: Environment) -> bytes:
    """Reads the history as it is at one moment, also while status-service writes it."""
    with history.opened(environment) as db, closing(sqlite3.connect(":memory:")) as copy:
        db.backup(copy)
        return lzma.compress(copy.serialize(), preset=1)


def write(backup: Backup, passphrase: str, path: Path) -> None:
    """Writes a backup into a new file for root alone. Raises Failed."""
    data = sealed.seal(backup.packed(), passphrase)
    output_files.write(path, data)


def opened(path: Path, passphrase: str) -> Backup:
    """Reads a backup file. Raises Failed."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
    try:
        return _unpacked(sealed.unseal(data, passphrase))
    except Failed as failed:
        raise Failed(f"{path}: {failed}") from None


def _unpacked(content: bytes) -> Backup:
    try:
        said: Any = json.loads(content)
        state = {
            str(name): base64.b64decode(data) for name, data in said["state"].items() if name in (*_STATE, _HISTORY)
        }
        text = base64.b64decode(said["file"]).decode("utf-8", "surrogateescape")
        backup = Backup(str(said["interface"]), str(said["made"]), text, state)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failed("has a content that this version does not know") from None
    if not valid_interface_name(backup.interface):
        raise Failed("names no interface")
    return backup


def restore(backup: Backup, environment: Environment, tell: Callable[[str], None], *, force: bool = False) -> None:
    """Writes a backup's files for an interface that is down, and says what differs here. Raises Failed or ConfigError.

    With `force` it replaces another file, and keeps a copy beside it.
    """
    path = environment.config
    if bring_up.is_up(environment):
        raise Failed(f"it is up: `stagewire down {environment.interface}` first")
    restored = config.parse_text(backup.text, path)
    everybody = _roster(backup.text, path)
    differences = _from_file(path, everybody)
    if differences and not force:
        shown = "\n".join(f"  {line}" for line in differences)
        raise Failed(f"{path} differs from the backup, and stays as it is; --force replaces it\n{shown}")
    there = path.exists()
    same = there and not differences and config.load_text(path) == backup.text
    stays = same or (there and not differences and not force)
    lines: list[str] = []
    wanted = _wanted(backup, environment, lines.append)
    if not stays:
        wanted.append(New(path, backup.text.encode("utf-8", "surrogateescape"), over=there))
    kept = saving.beside(path, "bak", path.read_bytes()) if there and not stays else None
    try:
        _make_folders(wanted)
        with output_files.all_of(wanted):
            noting.write(environment, "restore", [f"of {backup.made}", *differences])
    except (OSError, Failed) as error:
        if kept is not None:
            kept.unlink(missing_ok=True)
        if isinstance(error, Failed):
            raise
        raise Failed(f"{noting.unwritten(environment, error)}; nothing is changed") from None
    if kept is not None:
        tell(f"{path} differed; its old text is in {kept}")
    off = f", {len(everybody.off)} of them out of use" if everybody.off else ""
    told = f"{path} of {backup.made}, with {operands.counted(len(everybody.whole.peers), 'peer')}{off}"
    if same or not stays:
        tell(f"restored {told}")
    else:
        tell(f"{told}, stays as it is: only its comments and blank lines differ from the backup; --force replaces it")
    for line in (*lines, *(f"note: {line}" for line in _of_this_host(restored, path))):
        tell(line)


def _make_folders(wanted: list[New]) -> None:
    """Makes the folders of files. Raises OSError."""
    for each in wanted:
        if each.path.parent.name == FOLDER:
            privileges.make_folder(each.path.parent, "status", 0o700)
        else:
            each.path.parent.mkdir(parents=True, exist_ok=True)


def _roster(text: str, path: Path) -> Roster:
    """Returns all peers of a text. Raises Failed or ConfigError."""
    try:
        return roster.read(text, str(path))
    except roster.Refused as refused:
        raise Failed(str(refused)) from None


def _from_file(path: Path, restored: Roster) -> list[str]:
    """Returns how the backup differs from the file, also in peers out of use; nothing if there is no file."""
    if not os.path.lexists(path):
        return []
    try:
        here = _roster(config.load_text(path), path)
    except ConfigError as error:
        return [str(mistake) for mistake in error.mistakes]
    lines = config.difference(here.whole, restored.whole)
    switched = (here.off ^ restored.off) & here.peers.keys() & restored.peers.keys()
    return [
        *lines,
        *(
            f"~ peer {restored.label(key)} is {'out of' if key in restored.off else 'in'} use"
            for key in restored.peers
            if key in switched
        ),
    ]


def _wanted(backup: Backup, environment: Environment, tell: Callable[[str], None]) -> list[New]:
    """Returns the files of the state to write. None replaces another: an older time of a handshake would let replays in."""
    wanted = []
    for name in (*_STATE, _HISTORY):
        if (data := backup.state.get(name)) is None:
            continue
        path = environment.state / name
        if os.path.lexists(path):
            if name == _HISTORY or not _has(path, data):
                tell(f"note: {path} exists already, and stays as it is")
            continue
        if name == _HISTORY:
            try:
                content = lzma.LZMADecompressor().decompress(data, _MAX_STATE)
            except lzma.LZMAError:
                tell("note: the backup's history is damaged, and left out")
                continue
            wanted.append(New(path, content, (privileges.uid_of("status"), privileges.group())))
        else:
            wanted.append(New(path, data))
    return wanted


def _has(path: Path, data: bytes) -> bool:
    """Tells whether a file in key-service's folder has this content."""
    try:
        return files.read(path, len(data) + 1) == data
    except OSError:
        return False


def _of_this_host(restored: InterfaceConfig, path: Path) -> Iterator[str]:
    """Says what may not fit this host."""
    key = restored.private_key
    if key is not None and (twin := neighbours.with_key(path, config.encode_key(key))) is not None:
        yield f"{twin} has the same private key: never let both be up at the same time"
    place = restored.client_endpoint
    if place is not None and values.is_literal(place.host) and not _is_ours(place.host):
        yield f"clients look for the gateway at {place}, which is no address of this host"
    if restored.listen_port and not _is_free(restored.listen_port):
        yield f"UDP port {restored.listen_port} is taken here, by another interface or program"
    hooks = (*restored.pre_up, *restored.post_up, *restored.pre_down, *restored.post_down)
    if hooks:
        yield f"`up` runs commands of the file as root, {len(hooks)} in all: look whether they fit this host"


def _is_ours(address: str) -> bool:
    with (
        suppress(OSError),
        socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        one.bind((address, 0))
        return True
    return False


def _is_free(port: int) -> bool:
    from stagewire_cli import init

    return init.is_free(port)
