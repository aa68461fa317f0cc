"""Removes lines of a text that don't count, because a later line overrules them."""

from stagewire.config import known, tolerant
from stagewire.config.model import InterfaceConfig
from stagewire.config.text import LISTS, Line, Section, Text


def key_of_peer(section: Section) -> bytes:
    """Returns the public key of a [Peer] section."""
    return tolerant.key(next(line.value for line in reversed(section.body) if line.key == "PublicKey"))


def tidy(text: Text, says: InterfaceConfig) -> None:
    """Leaves one [Interface], one [Peer] for each peer, and one line for each key with one value.

    `says` is the text's meaning, before and after.
    """
    _join([section for section in text.sections if section.name == "Interface"], text)
    of_peer: dict[bytes, list[Section]] = {}
    for section in [section for section in text.sections if section.name == "Peer"]:
        of_peer.setdefault(key_of_peer(section), []).append(section)
    peers = {peer.public_key: peer for peer in says.peers}
    for key, sections in of_peer.items():
        if key not in peers:  # our own key is no peer
            for section in sections:
                text.remove(section)
            continue
        _join(sections, text)
        _only(sections[-1].body, "AllowedIPs", tuple(map(str, peers[key].allowed_ips)))
    for section in text.sections:
        if section.name == "Interface":
            _only(section.body, "Address", tuple(map(str, says.addresses)))
        _last_of_each(section.body)


def _join(sections: list[Section], text: Text) -> None:
    """Puts the lines of earlier sections before those of the last one."""
    if len(sections) < 2:
        return
    last = sections[-1]
    inherited = [line for section in sections[:-1] for line in section.body if line.kind in ("key", "comment")]
    if last.name == "Peer":
        inherited = [line for line in inherited if line.key not in ("PublicKey", "AllowedIPs")]
    last.body[1:1] = inherited
    for section in sections[:-1]:
        text.remove(section)


def _last_of_each(body: list[Line]) -> None:
    last = {line.key: line for line in body if line.kind == "key"}
    body[:] = [
        line for line in body if line.kind != "key" or known.KEYS[line.key.lower()].repeatable or last[line.key] is line
    ]


def _only(body: list[Line], key: str, words: tuple[str, ...]) -> None:
    """Makes a list say each of these words once, in the one spelling where it says anything else."""
    lines = [line for line in body if line.key == key]
    said = [word for line in lines for word in line.words]
    if not lines or (tuple(map(LISTS[key], said)) == words and not any(word[0] in "+-" for word in said)):
        return
    if words:
        lines[0].put(", ".join(words))
    gone = lines[1:] if words else lines
    body[:] = [line for line in body if line not in gone]
