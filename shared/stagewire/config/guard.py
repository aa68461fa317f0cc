"""Tells whether a changed text differs from a file in peers alone: root writes nothing else for key-service.

A hostile key-service must not bring commands, DNS, routes or a private key into a file that root reads at the next `up`, nor
open the host: Exit, Firewall and what else [Interface] says are the operator's alone.
"""

import re
from collections.abc import Container, Iterator
from typing import Final

from stagewire.config import known, marks, peer_names
from stagewire.config import text as texts
from stagewire.config.known import SPACES
from stagewire.config.text import BOM

_SETTING: Final = re.compile(r"[ \t]*#[ \t]*stagewire[ \t]*:", re.IGNORECASE)
_OF_A_PEER: Final = frozenset(["PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"])


def beyond_peers(before: str, after: str) -> str | None:
    """Returns in a few words what differs beyond [Peer] sections, with their `# stagewire:` lines; None if nothing does."""
    if "\0" in after:
        return "a NUL byte"
    in_use = marks.uncovered(before)
    known = frozenset(line.strip(SPACES) for text in (before, in_use) for line in text.removeprefix(BOM).split("\n"))
    for old, new in ((before, after), (in_use, marks.uncovered(after))):
        if (found := _beyond(old, new, known)) is not None:
            return found
    return None


def _beyond(before: str, after: str, known_lines: Container[str]) -> str | None:
    if [*_others(before)] != [*_others(after)]:
        return "lines outside of [Peer]"
    for line, section in _lines(after):
        said = line.partition("#")[0].strip(SPACES)
        if said and section == "Peer" and not said.startswith("["):
            key = known.key_of(said.partition("=")[0].strip(SPACES))
            if key is None or key.name not in _OF_A_PEER:
                return "a line that no peer has"
        elif not said and line.strip(SPACES) not in known_lines and not _is_ours(line):
            return "a comment"
    return None


def _others(text: str) -> Iterator[str]:
    """Yields the lines outside of [Peer] that `wg`, wg-quick or Stagewire reads."""
    for line, section in _lines(text):
        if section != "Peer" and (line.partition("#")[0].strip(SPACES) or _SETTING.match(line)):
            yield line.strip(SPACES)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yields each line with its section."""
    section = ""
    for line in text.removeprefix(BOM).split("\n"):
        if line.partition("#")[0].strip(SPACES).startswith("["):
            section = texts.header_of(line) or "unknown"
        yield line, section


def _is_ours(line: str) -> bool:
    comment = line.strip(SPACES).removeprefix("#").strip(SPACES)
    return not comment or comment.lower().startswith("stagewire") or peer_names.in_comment(comment) is not None
