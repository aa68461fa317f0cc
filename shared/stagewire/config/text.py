"""Cuts the text of a valid file into lines, each in its section, to be changed in place; every other byte stays.

A section has three parts. The first is the line directly above its header that names it, and comments between both. The
second runs from the header to the last key, with the comments directly below. The third is blank lines and loose comments
up to the next section. A comment that touches two sections belongs to neither: it may be the heading of several.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from stagewire.config import known, peer_names, tolerant, values
from stagewire.config.known import SPACES, SectionName
from stagewire.config.model import ClientSettings

BOM: Final = "\ufeff"
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_OURS = re.compile(rf"[{SPACES}]*#[ \t]*stagewire[ \t]*:", re.IGNORECASE)
_WORD = re.compile(r"[^\s,]+", re.ASCII)
_SPACED_WORD = re.compile(r"[^\s,](?:[^,]*[^\s,])?", re.ASCII)

LISTS: Final[dict[str, Callable[[str], str]]] = {
    "Address": lambda word: str(tolerant.address(word)),
    "DNS": str,
    "AllowedIPs": lambda word: str(tolerant.allowed_ip(word)[2]),
}
"""Keys with several words to a line, each with the function that gives a word its one spelling."""


@dataclass(slots=True, eq=False, repr=False)
class Line:
    """Holds a line. `key` is spelt as in the manuals, the value is text[start:stop]. A new line has no end yet."""

    text: str
    kind: Literal["blank", "comment", "header", "key"] = "key"
    end: str | None = None
    section: SectionName | None = None
    key: str = ""
    start: int = 0
    stop: int = 0

    @property
    def value(self) -> str:
        return self.text[self.start : self.stop]

    @property
    def words(self) -> list[str]:
        return [word[0] for word in self._words()]

    def put(self, value: str) -> None:
        """Replaces the value; all around it stays."""
        before, after = self.text[: self.start], self.text[self.stop :]
        if self.start == self.stop:  # a key without a value
            before += " "
        self.text = before + value + after
        self.start, self.stop = len(before), len(before) + len(value)

    def put_words(self, words: Iterable[str]) -> None:
        """Replaces a list, with the separator of its first two words between any two."""
        first, second, *_ = [*self._words(), None, None]
        self.put((self.value[first.end() : second.start()] if first and second else ", ").join(words))

    def with_value(self, value: str) -> "Line":
        """Makes a new line for the same key, which begins as this line does."""
        line = replace(self, text=self.text[: self.stop], end=None)
        line.put(value)
        return line

    def _words(self) -> list[re.Match[str]]:
        # `wg` takes spaces in a prefix; only a comma ends the prefix.
        return list((_SPACED_WORD if self.key == "AllowedIPs" else _WORD).finditer(self.value))


@dataclass(slots=True, eq=False, repr=False)
class Section:
    """Holds a section in its three parts. `body` begins with the header."""

    name: SectionName
    above: list[Line]
    body: list[Line] = field(default_factory=list)
    below: list[Line] = field(default_factory=list)


@dataclass(slots=True, eq=False, repr=False)
class Text:
    """Holds a text. `head` is all above the first section and its comment block."""

    newline: str
    head: list[Line] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [*self.head, *(line for s in self.sections for part in (s.above, s.body, s.below) for line in part)]
        text = "".join(line.text + (line.end or self.newline) for line in lines)
        return text.removesuffix(self.newline) if lines and lines[-1].end == "" else text

    def remove(self, section: Section) -> None:
        """Takes a section out, with one of the two gaps around it."""
        index = self.sections.index(section)
        del self.sections[index]
        below = section.below
        before = self.sections[index - 1].below if index else self.head
        if before[-1].kind == "blank" if before else not index:
            below = below[_count(below, "blank") :]
        before += below
        if index == len(self.sections) and not below:
            del before[len(before) - _count(before[::-1], "blank") :]

    def append(self, name: SectionName, text: str) -> None:
        """Adds a section at the end; an [Interface] above all others."""
        body = [Line(line) for line in text.removesuffix("\n").split("\n")]
        if name == "Interface":
            self.sections.insert(0, Section(name, [], body, [Line("", "blank")] if self.sections else []))
            return
        last = self.sections[-1].below if self.sections else self.head
        if not last or last[-1].kind != "blank":
            last.append(Line("", "blank"))
        self.sections.append(Section(name, [], body))


def read(text: str) -> Text:
    """Reads a text that `parse` takes."""
    lines = [_read_line(raw) for raw in _LINE.findall(text)]
    found = Text("\r\n" if lines and lines[0].end == "\r\n" else "\n")
    above = found.head
    for line in lines:
        if line.section is not None:
            cut = _cut(found.sections[-1] if found.sections else None, above)
            found.sections.append(Section(line.section, above[cut:]))
            del above[cut:]
            above = found.sections[-1].body
        above.append(line)
    for section in found.sections:
        cut = 1 + max(place for place, line in enumerate(section.body) if line.kind in ("header", "key"))
        beside = section.body[cut : cut + _count(section.body[cut:], "comment")]
        if cut + len(beside) == len(section.body) and section is not found.sections[-1]:  # touches the next section
            named = names_in(beside)
            cut += beside.index(named[-1]) + 1 if named else 0
        else:
            cut += len(beside)
        section.below = section.body[cut:]
        del section.body[cut:]
    return found


def names_in(lines: Iterable[Line]) -> list[Line]:
    """Returns the comment lines that name a peer."""
    return [line for line in lines if line.kind == "comment" and name_of(line) is not None]


def name_of(line: Line) -> str | None:
    """Returns the name that a comment line gives, as written."""
    return peer_names.in_comment(_comment(line))


def _comment(line: Line) -> str:
    return line.text.lstrip(SPACES).removeprefix("#")


def _cut(last: Section | None, lines: list[Line]) -> int:
    """Finds where the lines begin that name the section below. A name may belong to the section before, as for `parse`."""
    start = len(lines) - _count(lines[::-1], "comment")
    block = lines[start:]
    names = names_in(block)
    touches = last is not None and last.name == "Peer" and lines[start - 1].kind != "blank"
    if touches and last is not None and not names_in([*last.above, *lines[:start]]):
        return len(lines)
    if not names or any(peer_names.is_dead_header(_comment(line)) for line in block):
        return len(lines)
    return lines.index(names[0])


def header_of(line: str) -> SectionName | None:
    """Returns the section that a line begins, if any."""
    said = line.partition("#")[0].strip(SPACES)
    return known.section_of(said) if said.startswith("[") else None


def _read_line(raw: str) -> Line:
    text = raw.removesuffix("\n").removesuffix("\r") if raw.endswith("\n") else raw
    line = Line(text, "comment" if text.strip(SPACES) else "blank", raw[len(text) :])
    ours = _OURS.match(text)
    start = ours.end() if ours else 0
    said = text[start:].partition("#")[0].rstrip(SPACES)
    name, equals, value = said.partition("=")
    key = known.key_of(name.strip(SPACES)) if equals else None
    if not ours and said.lstrip(SPACES).startswith("["):
        line.kind, line.section = "header", known.section_of(said.lstrip(SPACES))
    elif key is not None and (_is_understood(key.name, value.strip(SPACES)) if ours else not key.in_comment):
        line.kind, line.key = "key", key.name
        line.stop = start + len(said)
        line.start = line.stop - len(value.lstrip(SPACES))
    return line


def _is_understood(key: str, value: str) -> bool:
    """Tells whether a `# stagewire:` line counts; a line that doesn't is a comment like any other."""
    try:
        match key:
            case "RekeyAfterTime":
                values.rekey_after_time(value)
            case "ClientEndpoint":
                values.endpoint(value)
            case _ if key in values.CLIENT:
                values.CLIENT[key](ClientSettings(), value)
            case _:
                return known.KEYS[key.lower()].in_comment  # `parse` refuses a text with a mistake in it
    except ValueError:
        return False
    return True


def _count(lines: list[Line], kind: str) -> int:
    """Counts the lines of this kind, from the first on."""
    return next((count for count, line in enumerate(lines) if line.kind != kind), len(lines))
