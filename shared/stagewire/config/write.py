"""A configuration into a file: a new text, or the text there is with as little changed as will do.

Of a text that is changed, only lines whose key says something else are touched. Where order means nothing (peers,
Address, AllowedIPs) the text keeps its own. What was written is read back before anyone gets it, so that no value,
whatever is in it, can become a line of its own.

A section is cut in three: the comment block directly above its header; from the header to its last key, with the
comments directly below that; and what follows up to the next section's, blank lines and loose comments.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Final, Literal

from stagewire.config import known, values
from stagewire.config.keys import encode_key
from stagewire.config.known import SectionName
from stagewire.config.load import load
from stagewire.config.model import ConfigError, InterfaceConfig, Mistake, PeerConfig
from stagewire.config.parse import parse
from stagewire.proto.constants import REKEY_AFTER_TIME

_NO_PATH: Final = "the configuration"
_BOM: Final = "\ufeff"
_SPACES: Final = " \t\r\v\f"
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_OURS = re.compile(rf"[{_SPACES}]*#[ \t]*stagewire[ \t]*:", re.IGNORECASE)
_WORD = re.compile(r"[^\s,]+")

_LISTS: Final[dict[str, Callable[[str], str]]] = {
    "Address": lambda word: str(values.address(word)),
    "DNS": str,
    "AllowedIPs": lambda word: str(values.network(word)),
}
"""Keys with several words to a line, and how two spellings of a word become one."""
_ANY_ORDER: Final = {"Address", "AllowedIPs"}


def render(interface: InterfaceConfig) -> str:
    """A file that says this and no more: a key that has its default is left out.

    Raises ConfigError when no file says it: a value that isn't valid, or a command with a `#` or a line's end.
    """
    sections = [_section_text("Interface", _of_interface(interface))]
    sections += [_section_text("Peer", _of_peer(peer)) for peer in interface.peers]
    return _checked("\n".join(sections), interface, _NO_PATH)


def merge(text: str, interface: InterfaceConfig) -> str:
    """The text of a file, changed as little as possible so that it says this.

    Peers, addresses and allowed IPs keep the text's order. Raises ConfigError as `parse` when the text isn't
    valid, and as `render` when no text says it.
    """
    return _merged(text, interface, _NO_PATH)


def save(path: Path, interface: InterfaceConfig) -> None:
    """Merges into the file, which is replaced in one step: whoever reads it finds the old one or the new one, whole.

    Of a symbolic link the target is replaced; a file that says it already isn't touched. Raises ConfigError, with
    the file as it was: as `load` when that would refuse it, else with one mistake.
    """
    load(path)
    target, name = path.resolve(), _printable(path)
    try:
        with target.open("rb") as file:
            found, data = os.fstat(file.fileno()), file.read()
        text = data.decode("utf-8", "surrogateescape")
        merged = _merged(text, interface, name)
        if merged != text and not _replaced(target, found, merged.encode()):
            raise _refusal(name, "was changed by someone else just now: look at it, and save again")
    except OSError as error:
        why = f"{error.strerror or 'it failed'}, in {_printable(target.parent)}"
        raise _refusal(name, f"can't be saved, and is left as it was: {why}") from None


# --- what stands after each key's `=` -----------------------------------------------------------------------

# For every key of a section, in the order of a new file: the words of a list, the commands of a hook, else one value
# or none. Nothing stands for the default. Each is in its one spelling, so that equal values are equal texts.
_Values = Mapping[str, tuple[str, ...]]


def _of_interface(interface: InterfaceConfig) -> _Values:
    rekey = float(interface.rekey_after_time)
    return {
        "PrivateKey": _unless(interface.private_key is None, encode_key(interface.private_key or b"")),
        "ListenPort": _unless(interface.listen_port is None, interface.listen_port),
        "FwMark": _unless(interface.fwmark == 0, f"{interface.fwmark:#x}"),
        "Address": tuple(map(str, interface.addresses)),
        "DNS": interface.dns,
        "MTU": _unless(interface.mtu is None, interface.mtu),
        "Table": _unless(interface.table == "auto", interface.table),
        "PreUp": interface.pre_up,
        "PostUp": interface.post_up,
        "PreDown": interface.pre_down,
        "PostDown": interface.post_down,
        "SaveConfig": _unless(not interface.save_config, "true"),
        "RekeyAfterTime": _unless(rekey == REKEY_AFTER_TIME, repr(rekey).removesuffix(".0")),
    }


def _of_peer(peer: PeerConfig) -> _Values:
    return {
        "PublicKey": (encode_key(peer.public_key),),
        "PresharedKey": _unless(not any(peer.preshared_key), encode_key(peer.preshared_key)),
        "AllowedIPs": tuple(map(str, peer.allowed_ips)),
        "Endpoint": _unless(peer.endpoint is None, peer.endpoint),
        "PersistentKeepalive": _unless(peer.persistent_keepalive == 0, peer.persistent_keepalive),
        "ResponseTimestamp": _unless(not peer.response_timestamp, "on"),
    }


def _unless(default: bool, value: object) -> tuple[str, ...]:
    return () if default else (str(value),)


def _section_text(name: SectionName, wanted: _Values) -> str:
    lines = [f"[{name}]", *(line for key, words in wanted.items() for line in _assignments(key, words))]
    return "".join(f"{line}\n" for line in lines)


def _assignments(key: str, words: tuple[str, ...]) -> list[str]:
    """The lines of a key that isn't in its section yet."""
    each = (", ".join(words),) if words and key in _LISTS else words
    prefix = "# stagewire: " if known.KEYS[key.lower()].in_comment else ""
    return [f"{prefix}{key} = {value}" for value in each]


# --- the lines of a valid text ------------------------------------------------------------------------------


@dataclass(slots=True, eq=False, repr=False)
class _Line:
    """A line. `key` is its key as in the manuals, its value is text[start:stop]. A new one has no end yet."""

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
        return _WORD.findall(self.value)

    def put(self, value: str) -> None:
        """Replaces the value; all around it stays."""
        before, after = self.text[: self.start], self.text[self.stop :]
        if self.start == self.stop:  # an AllowedIPs of nothing
            before += " "
        self.text = before + value + after
        self.start, self.stop = len(before), len(before) + len(value)

    def put_words(self, words: Iterable[str]) -> None:
        """Replaces a list, with what separated its first two words between any two."""
        first, second, *_ = [*_WORD.finditer(self.value), None, None]
        self.put((self.value[first.end() : second.start()] if first and second else ", ").join(words))

    def with_value(self, value: str) -> "_Line":
        """A new line for the same key, which begins as this does."""
        line = replace(self, text=self.text[: self.stop], end=None)
        line.put(value)
        return line


@dataclass(slots=True, eq=False, repr=False)
class _Section:
    name: SectionName
    above: list[_Line]
    body: list[_Line] = field(default_factory=list)
    below: list[_Line] = field(default_factory=list)


@dataclass(slots=True, eq=False, repr=False)
class _Text:
    """`head` is what stands above the first section and its comment block."""

    newline: str
    head: list[_Line] = field(default_factory=list)
    sections: list[_Section] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [*self.head, *(line for s in self.sections for part in (s.above, s.body, s.below) for line in part)]
        text = "".join(line.text + (line.end or self.newline) for line in lines)
        return text.removesuffix(self.newline) if lines[-1].end == "" else text

    def remove(self, index: int) -> None:
        """Takes a section out, with one of the two gaps around it."""
        below = self.sections.pop(index).below
        before = self.sections[index - 1].below if index else self.head
        if before[-1].kind == "blank" if before else not index:
            below = below[_count(below, "blank") :]
        before += below
        if index == len(self.sections) and not below:
            del before[len(before) - _count(before[::-1], "blank") :]

    def append(self, text: str) -> None:
        last = self.sections[-1].below
        if not last or last[-1].kind != "blank":
            last.append(_Line("", "blank"))
        self.sections.append(_Section("Peer", [], [_Line(line) for line in text.removesuffix("\n").split("\n")]))


def _read(text: str) -> _Text:
    lines = [_read_line(raw) for raw in _LINE.findall(text)]
    read = _Text("\r\n" if lines[0].end == "\r\n" else "\n")
    above = read.head
    for line in lines:
        if line.section is not None:
            cut = len(above) - _count(above[::-1], "comment")
            read.sections.append(_Section(line.section, above[cut:]))
            del above[cut:]
            above = read.sections[-1].body
        above.append(line)
    for section in read.sections:
        cut = 1 + max(place for place, line in enumerate(section.body) if line.kind in ("header", "key"))
        cut += _count(section.body[cut:], "comment")
        section.below = section.body[cut:]
        del section.body[cut:]
    return read


def _read_line(raw: str) -> _Line:
    text = raw.removesuffix("\n").removesuffix("\r") if raw.endswith("\n") else raw
    line = _Line(text, "comment" if text.strip(_SPACES) else "blank", raw[len(text) :])
    ours = _OURS.match(text)
    start = ours.end() if ours else 0
    said = text[start:].partition("#")[0].rstrip(_SPACES)
    name, equals, value = said.partition("=")
    if said.lstrip(_SPACES).startswith("["):
        line.kind, line.section = "header", known.SECTIONS[said.lstrip(_SPACES)[1:-1].lower()]
    elif equals:
        line.kind, line.key = "key", known.KEYS[name.strip(_SPACES).lower()].name
        line.stop = start + len(said)
        line.start = line.stop - len(value.lstrip(_SPACES))
    return line


def _count(lines: list[_Line], kind: str) -> int:
    """How many lines are of this kind, from the first on."""
    return next((count for count, line in enumerate(lines) if line.kind != kind), len(lines))


# --- the merge ----------------------------------------------------------------------------------------------


def _merged(text: str, interface: InterfaceConfig, path: str) -> str:
    old = parse(text, path)
    new = _read(text.removeprefix(_BOM))
    wanted = {peer.public_key: peer for peer in interface.peers}
    peers = list(old.peers)
    for index, section in reversed(list(enumerate(new.sections))):
        if section.name == "Interface":
            _merge_section(section.body, _of_interface(old), _of_interface(interface))
            continue
        had = peers.pop()
        if (peer := wanted.pop(had.public_key, None)) is None:
            new.remove(index)
        else:
            _merge_section(section.body, _of_peer(had), _of_peer(peer))
    for peer in wanted.values():
        new.append(_section_text("Peer", _of_peer(peer)))
    return _checked((_BOM if text.startswith(_BOM) else "") + str(new), interface, path)


def _merge_section(body: list[_Line], had: _Values, wanted: _Values) -> None:
    for key, words in wanted.items():
        if had[key] == words or (key in _ANY_ORDER and set(had[key]) == set(words)):
            continue
        lines = [line for line in body if line.key == key]
        if not lines:
            body += [_Line(text) for text in _assignments(key, words)]
        elif key in _LISTS:
            _merge_list(body, lines, words)
        else:
            _merge_lines(body, lines, words)


def _merge_lines(body: list[_Line], lines: list[_Line], wanted: tuple[str, ...]) -> None:
    """A key with one value to a line: lines are changed, taken out and put in where the values differ."""
    matcher = SequenceMatcher(None, [line.value for line in lines], wanted, autojunk=False)
    for what, start, stop, new_start, new_stop in reversed(matcher.get_opcodes()):
        if what == "equal":
            continue
        cut = start + min(stop - start, new_stop - new_start)
        new_cut = new_start + cut - start
        for line, value in zip(lines[start:cut], wanted[new_start:new_cut], strict=True):
            line.put(value)
        place = body.index(lines[cut - 1]) + 1 if cut else body.index(lines[0])
        body[place:place] = [lines[max(0, cut - 1)].with_value(value) for value in wanted[new_cut:new_stop]]
        for line in lines[cut:stop]:
            body.remove(line)


def _merge_list(body: list[_Line], lines: list[_Line], wanted: tuple[str, ...]) -> None:
    """A list, in one line or in several. Of several, those stay as they are in which nothing is gone."""
    one_spelling = _LISTS[lines[0].key]
    spelt = {one_spelling(word): word for line in reversed(lines) for word in reversed(line.words)}
    asked = set(wanted)
    kept = [word for line in lines for word in map(one_spelling, line.words) if word in asked]
    new = [word for word in wanted if word not in spelt]
    new_last = lines[0].key in _ANY_ORDER or (*kept, *new) == wanted
    if len(lines) > 1 and kept and new_last:
        stay = []
        for line in lines:
            left = [word for word in line.words if one_spelling(word) in asked]
            if left and len(left) < len(line.words):
                line.put_words(left)
            if left or not line.words:
                stay.append(line)
        if new:
            body.insert(body.index(stay[-1]) + 1, stay[-1].with_value(", ".join(new)))
    else:
        in_order = [word for word in wanted if word in spelt] == kept
        order = wanted if in_order or not new_last else (*kept, *new)
        lines[0].put_words(spelt.get(word, word) for word in order)
        stay = lines[:1] if order else []
    gone = set(lines).difference(stay)
    body[:] = [line for line in body if line not in gone]


def _checked(text: str, interface: InterfaceConfig, path: str) -> str:
    """The text, if it says what it should."""
    try:
        read = _sorted(parse(text, path))
    except ConfigError as error:
        raise _refusal(path, f"can't be written: {error.mistakes[0].message}") from None
    wanted = _sorted(interface)
    if read != wanted:
        pairs = [(_of_interface(read), _of_interface(wanted))]
        pairs += [(_of_peer(one), _of_peer(other)) for one, other in zip(read.peers, wanted.peers, strict=False)]
        keys = (key for one, other in pairs for key in one if one[key] != other[key])
        raise _refusal(path, f"can't be written: {next(keys, 'a peer')} has a value that no file can hold")
    return text


def _sorted(interface: InterfaceConfig) -> InterfaceConfig:
    peers = [replace(peer, allowed_ips=tuple(sorted(set(peer.allowed_ips), key=str))) for peer in interface.peers]
    return replace(
        interface,
        addresses=tuple(sorted(interface.addresses, key=str)),
        peers=tuple(sorted(peers, key=lambda peer: peer.public_key)),
    )


def _refusal(path: str, message: str) -> ConfigError:
    return ConfigError([Mistake(path, None, message)])


def _printable(path: Path) -> str:
    return str(path) if str(path).isprintable() else ascii(str(path))


# --- the disk -----------------------------------------------------------------------------------------------


def _replaced(target: Path, found: os.stat_result, data: bytes) -> bool:
    """Puts a new file in the place of the one that was found; False when that isn't there any more as it was."""
    descriptor, name = tempfile.mkstemp(prefix=".stagewire-", dir=target.parent)  # of mode 0600
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(descriptor, found.st_uid, found.st_gid)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if _version(target.stat()) != _version(found):
            return False
        new.replace(target)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
    # Too late to fail: the new file is in its place. Without this a power cut could bring the old one back, whole.
    with contextlib.suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return True


def _version(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
