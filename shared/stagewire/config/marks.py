"""Knows the marks before each line of a peer that is out of use, which `wg` and wg-quick take for comments.

# stagewire off: [Peer]
# stagewire off: # Name = Anna's phone
# stagewire off: PublicKey = …
"""

import re
from collections.abc import Iterator
from typing import Final

from stagewire.config.known import SPACES

MARK: Final = "# stagewire off:"
_MARKED: Final = re.compile(rf"^[{SPACES}]*#[ \t]*stagewire[ \t]+off[ \t]*:[ \t]?", re.IGNORECASE | re.MULTILINE)
_SETTING: Final = re.compile(rf"[{SPACES}]*#[ \t]*stagewire[ \t]*:", re.IGNORECASE)
_ALL: Final = f"all lines of a peer have '{MARK}' before them, or none"


def are_in(text: str) -> bool:
    """Tells whether a text has any mark."""
    return _MARKED.search(text) is not None


def without_mark(line: str) -> str | None:
    """Returns a marked line without its mark; None for any other line."""
    mark = _MARKED.match(line)
    return line[mark.end() :] if mark else None


def uncovered(text: str) -> str:
    """Removes the marks, so that every peer is in use."""
    return _MARKED.sub("", text)


def alone(text: str) -> str:
    """Returns the marked lines without their marks, each in its line; all other lines are empty."""
    return "\n".join(without_mark(line) or "" for line in text.split("\n"))


def misplaced(text: str) -> Iterator[tuple[int, str]]:
    """Yields the number of each line that is in use while its section is not, or the other way round, and a message."""
    section_marked, header = False, 0
    for number, line in enumerate(text.split("\n"), start=1):
        bare = without_mark(line)
        marked, said = bare is not None, line if bare is None else bare
        setting = said.partition("#")[0].strip(SPACES)
        if setting.startswith("["):
            section_marked, header = marked, number
        elif (setting or _SETTING.match(said)) and marked != section_marked:
            where = f"line {header}" if header else "the file's head"
            states = ("out of use", "in use") if marked else ("in use", "out of use")
            yield number, f"is {states[0]}, but its section in {where} is {states[1]}: {_ALL}"
