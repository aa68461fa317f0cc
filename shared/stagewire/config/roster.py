"""Reads and changes a file's peers, also those out of use, whose lines are comments.

    # stagewire off: [Peer]
    # stagewire off: # Name = Anna's phone
    # stagewire off: PublicKey = …

`wg` and wg-quick see only comments there. A roster's text has no marks, so that a peer out of use is read and changed like
any other; `covered` puts the marks back.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

from stagewire.config import marks, peer_names
from stagewire.config import text as texts
from stagewire.config.keys import decode_key, encode_key
from stagewire.config.known import SPACES, squeezed
from stagewire.config.lookups import of_this_host
from stagewire.config.model import InterfaceConfig, PeerConfig
from stagewire.config.parser import parse
from stagewire.config.text import BOM, Line, Section, Text
from stagewire.config.tidy import key_of_peer


class Refused(Exception):  # noqa: N818 - the text is what the operator reads
    """Says in a line why a change of peers is not made."""


@dataclass(frozen=True, slots=True)
class Roster:
    """Holds a file's peers. `whole` has all of them, `off` the keys of those out of use; `text` has no marks."""

    text: str = field(repr=False)
    whole: InterfaceConfig
    off: frozenset[bytes]

    @property
    def peers(self) -> dict[bytes, PeerConfig]:
        """Returns all peers by public key."""
        return {peer.public_key: peer for peer in self.whole.peers}

    def find(self, word: str) -> PeerConfig:
        """Finds a peer by its name, its public key, or the beginning of either. Raises Refused."""
        names = {encode_key(peer.public_key): peer.name for peer in self.whole.peers}
        try:
            found = peer_names.find(word, names, "stagewire peer list")
        except peer_names.NotFoundError as error:
            raise Refused(str(error)) from None
        return next(peer for peer in self.whole.peers if encode_key(peer.public_key) == found)

    def label(self, key: bytes) -> str:
        """Names a peer for people."""
        return peer_names.label(encode_key(key), self.peers[key].name)


def read(text: str, path: str) -> Roster:
    """Reads a file's text. Raises ConfigError as `parse`."""
    lookups = of_this_host()
    in_use = parse(text, path, lookups=lookups)
    bare = marks.uncovered(text)
    if bare == text:
        return Roster(bare, in_use, frozenset())
    whole = parse(bare, path, lookups=lookups)
    used = {peer.public_key for peer in in_use.peers}
    return Roster(bare, whole, frozenset(peer.public_key for peer in whole.peers if peer.public_key not in used))


def marked_secrets(text: str) -> set[bytes]:
    """Returns the pre-shared keys in lines out of use, also where those lines have mistakes."""
    found = set()
    for line in text.split("\n") if marks.are_in(text) else ():
        name, _, value = (marks.without_mark(line) or "").partition("#")[0].partition("=")
        if squeezed(name).lower() == "presharedkey":
            with suppress(ValueError):
                found.add(decode_key(squeezed(value)))
    return found


def covered(text: str, off: Collection[bytes]) -> str:
    """Puts the marks before all lines of the peers in `off`."""
    if not off:
        return text
    new = read_text(text)
    for section in _sections(new):
        if key_of_peer(section) in off:
            for line in (*section.above, *section.body):
                line.text = f"{marks.MARK} {line.text}" if line.text.strip(SPACES) else marks.MARK
    return _bom(text) + str(new)


def rekeyed(text: str, key: bytes, public_key: bytes, preshared_key: bytes | None) -> str:
    """Gives a peer other keys; the pre-shared key stays if it is None."""
    new = read_text(text)
    sections = [section for section in _sections(new) if key_of_peer(section) == key]
    for section in sections:
        for line in section.body:
            if line.key == "PublicKey":
                line.put(encode_key(public_key))
        if preshared_key is not None:
            section.body[:] = [line for line in section.body if line.key != "PresharedKey"]
    if preshared_key is not None and any(preshared_key):
        body = sections[-1].body
        place = max(number for number, line in enumerate(body) if line.key == "PublicKey")
        body.insert(place + 1, Line(f"PresharedKey = {encode_key(preshared_key)}"))
    return _bom(text) + str(new)


def read_text(text: str) -> Text:
    """Cuts a text into lines."""
    return texts.read(text.removeprefix(BOM))


def _bom(text: str) -> str:
    return BOM if text.startswith(BOM) else ""


def _sections(text: Text) -> list[Section]:
    return [section for section in text.sections if section.name == "Peer"]
