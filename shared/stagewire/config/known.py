"""Lists sections and keys, and finds what an unknown name probably meant."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

SectionName = Literal["Interface", "Peer"]

SPACES: Final = " \t\r\v\f"
"""Spaces of the C locale, as `wg` and bash see them; str.strip() alone would also take Unicode's."""
_NO_SPACES: Final = dict.fromkeys(map(ord, SPACES))
_ALMOST_OURS = re.compile(r"[ \t]*([^#=]*?)[ \t]*[:;.,-]*[ \t]*([A-Za-z]+)[ \t]*=")
"""A comment that assigns something to a key, and the words before the key."""
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Key:
    """Describes a key, spelt as in the manuals.

    A key without a `section` belongs in both. `in_comment` marks a key for a `# stagewire:` line. `of_wg` marks a key that
    `wg` itself reads: its line may have spaces anywhere. `may_be_empty` marks a key for which wg-quick or `wg` takes no
    value as the default. `harmless` marks a key of ours whose line may be left out if it has a mistake. Any other line of
    ours with a mistake refuses the file, though it is a comment: a peer would pass that the operator wants kept or limited.
    """

    name: str
    section: SectionName | None
    repeatable: bool = False
    in_comment: bool = False
    of_wg: bool = False
    may_be_empty: bool = False
    harmless: bool = False


KEYS: Final = {
    key.name.lower(): key
    for key in (
        Key("PrivateKey", "Interface", of_wg=True),
        Key("ListenPort", "Interface", of_wg=True),
        Key("FwMark", "Interface", of_wg=True),
        Key("Address", "Interface", repeatable=True, may_be_empty=True),
        Key("DNS", "Interface", repeatable=True, may_be_empty=True),
        Key("MTU", "Interface", may_be_empty=True),
        Key("Table", "Interface", may_be_empty=True),
        Key("PreUp", "Interface", repeatable=True, may_be_empty=True),
        Key("PostUp", "Interface", repeatable=True, may_be_empty=True),
        Key("PreDown", "Interface", repeatable=True, may_be_empty=True),
        Key("PostDown", "Interface", repeatable=True, may_be_empty=True),
        Key("SaveConfig", "Interface"),
        Key("RekeyAfterTime", "Interface", in_comment=True, harmless=True),
        Key("ClientEndpoint", "Interface", in_comment=True, harmless=True),
        Key("Exit", "Interface", in_comment=True),
        Key("Isolation", "Interface", in_comment=True),
        Key("Firewall", "Interface", in_comment=True),
        Key("Allow", None, repeatable=True, in_comment=True),
        Key("Forward", None, repeatable=True, in_comment=True),
        Key("Groups", "Peer", repeatable=True, in_comment=True),
        Key("ClientAllowedIPs", None, in_comment=True, harmless=True),
        Key("ClientDNS", None, in_comment=True, harmless=True),
        Key("ClientMTU", None, in_comment=True, harmless=True),
        Key("ClientKeepalive", None, in_comment=True, harmless=True),
        Key("PublicKey", "Peer", of_wg=True),
        Key("PresharedKey", "Peer", of_wg=True),
        Key("AllowedIPs", "Peer", repeatable=True, of_wg=True, may_be_empty=True),
        Key("Endpoint", "Peer", of_wg=True),
        Key("PersistentKeepalive", "Peer", of_wg=True),
        Key("ResponseTimestamp", "Peer", in_comment=True),
        Key("Expires", "Peer", in_comment=True),
        Key("Rate", "Peer", in_comment=True),
        Key("Quota", "Peer", in_comment=True),
    )
}
AMNEZIA: Final = frozenset(["jc", "jmin", "jmax", *(f"{kind}{number}" for kind in "shi" for number in range(1, 6))])
"""AmneziaWG's keys, in lower case."""
SECTIONS: Final[dict[str, SectionName]] = {"interface": "Interface", "peer": "Peer"}


def squeezed(text: str) -> str:
    """Removes the spaces, as `wg` does with every line before it reads it."""
    return text.translate(_NO_SPACES)


def section_of(text: str) -> SectionName | None:
    """Finds the section of a header: `[Interface]` or `[Peer]`, in any case, with spaces anywhere."""
    text = squeezed(text)
    return SECTIONS.get(text[1:-1].lower()) if text.endswith("]") else None


def key_of(name: str) -> Key | None:
    """Finds the key of this name, in any case. A key that `wg` reads may have spaces in its name."""
    key = KEYS.get(name.lower())
    if key is None:
        key = KEYS.get(squeezed(name).lower())
        return key if key is not None and key.of_wg else None
    return key


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Finds the known name (in lower case) that was probably meant."""
    import difflib  # noqa: PLC0415 - a mistake alone needs it

    near = difflib.get_close_matches(name[:40].lower(), known, n=1, cutoff=0.7)
    return near[0] if near else None


def begins_with_key(text: str) -> bool:
    """Tells whether the first word of a text is a key, or nearly one."""
    first = (text.split() or [""])[0].rstrip(":,;.")
    return key_of(first) is not None or nearest(first, KEYS) is not None


def key_behind_a_slip(comment: str) -> Key | None:
    """Finds the key of a comment such as `stagwire: Rate = 20M`, in which the word before the key is wrong."""
    found = _ALMOST_OURS.match(comment)
    key = KEYS.get(found[2].lower()) if found else None
    if found is None or key is None or not key.in_comment or key.harmless:
        return None
    return key if nearest("".join(found[1].split()), ["stagewire"]) else None


def quoted(name: str) -> str:
    """Quotes a name for a message; returns an empty text if the name may be or hold a piece of a key."""
    return f" '{name}'" if _PLAIN_NAME.fullmatch(name) else ""
