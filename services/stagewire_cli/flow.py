"""Wraps what a command lists to a number of columns, also letters that are two columns wide."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

_INDENT: Final = "   "
_LEAST: Final = 20
"""Columns in which words are wrapped, however narrow the terminal is."""
_WIDE: Final = frozenset("WF")
"""Classes of letters that take two columns (Unicode, annex 11)."""
_NO_COLUMN: Final = frozenset(("Mn", "Me", "Cf"))
"""Kinds of letters that lie over the one before, or are not seen."""


def columns(text: str) -> int:
    """Returns how many columns a terminal gives a text."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(letter: str) -> int:
    if unicodedata.category(letter) in _NO_COLUMN:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in _WIDE else 1


def padded(text: str, width: int) -> str:
    """Fills a text up to a width."""
    return text + " " * (width - columns(text))


def listed(items: Sequence[str]) -> list[str]:
    """Returns a list's items, each but the last with a comma."""
    *first, last = items
    return [*(f"{each}," for each in first), last]


def lines(head: str, head_width: int, items: Iterable[str], width: int | None) -> Iterator[str]:
    """Yields `head` and the items, wrapped at `width`; later lines are indented. With None no line is wrapped."""
    if width is None:
        yield " ".join([head, *items] if head else items)
        return
    line, taken, fresh = head, head_width, not head
    for item in items:
        for piece in _pieces(item, width - len(_INDENT) - 1):
            size = columns(piece)
            if not fresh and taken + 1 + size > width:
                yield line
                line, taken, fresh = _INDENT, len(_INDENT), False
            line, taken, fresh = (piece, size, False) if fresh else (f"{line} {piece}", taken + 1 + size, False)
    yield line


def wrapped(texts: Iterable[str], width: int | None) -> list[str]:
    """Wraps each line, and indents what follows further than the line itself. With None no line is wrapped."""
    found = []
    for text in texts:
        bare = text.lstrip(" ")
        indent = " " * (len(text) - len(bare))
        room = None if width is None else max(_LEAST, width - len(indent))
        found += [indent + line for line in lines("", 0, bare.split(" "), room)]
    return found


def _pieces(item: str, width: int) -> Iterator[str]:
    """Cuts an item that no line can hold."""
    piece, taken = "", 0
    for letter in item if columns(item) > width else ():
        size = _columns(letter)
        if piece and taken + size > width:
            yield piece
            piece, taken = "", 0
        piece, taken = piece + letter, taken + size
    yield piece or item
