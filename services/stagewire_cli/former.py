"""Finds in the audit, or else in the history, what became of a peer whose key no peer has any more."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stagewire import files, logs
from stagewire.config import decode_key
from stagewire.config.peer_names import cleaned, folded, label
from stagewire.control import query
from stagewire.control.event import when
from stagewire.environment import Environment
from stagewire_cli.failures import Failed

_MAX_SIZE: Final = 5 << 20
"""Bytes of an audit, which key-service keeps below 4 MiB."""
_REPLACED: Final = re.compile(r"\s*~ PublicKey (\S+) -> (\S+)")
_FULL_KEY: Final = 44
_LEAST_KEY: Final = 4
"""Letters of a key that say which is meant."""
_MOST: Final = 2048
"""Events of one kind that status-service keeps."""


@dataclass(frozen=True, slots=True)
class Former:
    """Tells when a peer's key went, which name the peer had, and which key it has now; empty for none."""

    when: str
    name: str
    now: str
    """The public key that replaced it."""


def find(environment: Environment, public_key: str) -> Former | None:
    """Returns what the newest change that took this key away says; None for a key that no peer had."""
    found = _in_history(environment, public_key)
    short = label(public_key, "")
    for said in _lines(environment, short):
        changes = [logs.cleaned(str(line)) for line in said.get("changes", [])]
        at = logs.cleaned(str(said.get("when", "")))
        for place, line in enumerate(changes):
            if (replaced := _REPLACED.fullmatch(line)) is not None and replaced[1] == public_key:
                name = _name(changes[place - 1])[0] if place else ""
                found = Former(at, name, replaced[2])
            elif line.startswith("- peer ") and _name(line)[1] in {public_key, short}:
                name = _name(line)[0]
                heirs = [_name(each) for each in changes if name and each.startswith("+ peer ")]
                found = Former(at, name, next((key for of, key in heirs if of == name), ""))
    return found


def removed(environment: Environment, text: str) -> tuple[str, Former] | None:
    """Returns the peer that had a name, or a key or its beginning, and was taken away last; the key may be a beginning."""
    if len(text) == _FULL_KEY and (found := find(environment, text)) is not None:
        return text, found
    newest, wanted = "", folded(cleaned(text))
    for said in _lines(environment, "- peer "):
        for line in (logs.cleaned(str(each)) for each in said.get("changes", [])):
            name, key = _name(line) if line.startswith("- peer ") else ("", "")
            if key and ((name and folded(name) == wanted) or (len(text) >= _LEAST_KEY and key.startswith(text))):
                newest = key
    found = find(environment, newest) if newest else None
    return (newest, found) if found is not None else None


def _in_history(environment: Environment, public_key: str) -> Former | None:
    """Finds a peer that left no line in the audit, such as one that `wg` removed."""
    from stagewire_cli import history

    with suppress(Failed, ValueError), history.opened(environment) as db:
        row = db.execute("SELECT name FROM peers WHERE public_key = ?", (decode_key(public_key),)).fetchone()
        return Former("", logs.cleaned(str(row[0])), "") if row is not None else None
    return None


def last_seen(environment: Environment, public_key: str) -> str:
    """Returns when and from where a peer was connected last, as the events or the history tell; empty for never."""
    from stagewire_cli import history

    told = query.events(environment, 0, ("connected", "moved", "disconnected"), _MOST)
    at = [
        (each.unix_s, each.endpoint)
        for each in (told.events if told is not None else ())
        if each.public_key == public_key and each.endpoint
    ]
    with suppress(Failed, ValueError), history.opened(environment) as db:
        row = db.execute("SELECT id FROM peers WHERE public_key = ?", (decode_key(public_key),)).fetchone()
        for table, until in (("open", "at + seconds"), ("connections", "until")):
            found = f"SELECT {until}, endpoint FROM {table} WHERE peer = ? ORDER BY 1 DESC LIMIT 1"  # noqa: S608 - our words
            at += [(float(end), str(place)) for end, place in db.execute(found, (row[0] if row else -1,))]
    if not at:
        return ""
    unix_s, place = max(at)
    return f"{when(unix_s)[:16]}Z from {logs.cleaned(place)}"


def _name(line: str) -> tuple[str, str]:
    """Returns the name and the key, or its beginning, of a line such as `- peer Anna (vG4mK2Aa12)  AllowedIPs ...`."""
    title = line.split(" peer ", 1)[-1].split("  ", 1)[0]
    if len(title) == _FULL_KEY and title.endswith("="):
        return "", title
    name, _, key = title.rpartition(" (")
    return (name, key.rstrip(")")) if name else (title, "")


def _lines(environment: Environment, part: str) -> Iterator[dict[str, Any]]:
    """Yields the audit's records that hold a text, the oldest first."""
    for path in (environment.state / "audit.1", environment.state / "audit"):
        for line in _text(path).splitlines():
            if part in line:
                try:
                    said = json.loads(line)
                except ValueError:  # cut by a crash
                    continue
                if isinstance(said, dict):
                    yield said


def _text(path: Path) -> str:
    try:
        return files.read(path, _MAX_SIZE).decode(errors="replace")
    except (OSError, ValueError):
        return ""
