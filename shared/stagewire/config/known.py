"""Lists sections and keys, and finds what an unknown name probably meant."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

SectionName = Literal["Interface", "Peer"]

SPACES: Final = " \t\r\v\f"
"""Spaces of the C locale, as `wg` and bash see them; str.strip() alone would also take Unicode's."""
_NO_SPACES: Final = dict.fromkeys(map(ord, SPACES))
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Key:
    """Describes a key, spelt as in the manuals.

    A key without a `section` belongs in both. `in_comment` marks a key for a `# stagewire:` line. `of_wg` marks a key that
    `wg` itself reads: its line may have spaces anywhere. `may_be_empty` marks a key for which wg-quick or `wg` takes no
    value as the default. `guards` marks a key whose mistakes would let packets pass that the operator wants kept: its
    line is refused, though it is a comment.
    """

    name: str
    section: SectionName | None
    repeatable: bool = False
    in_comment: bool = False
    of_wg: bool = False
    may_be_empty: bool = False
    guards: bool = False


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
        Key("RekeyAfterTime", "Interface", in_comment=True),
        Key("ClientEndpoint", "Interface", in_comment=True),
        Key("Exit", "Interface", in_comment=True, guards=True),
        Key("Isolation", "Interface", in_comment=True, guards=True),
        Key("Firewall", "Interface", in_comment=True, guards=True),
        Key("Allow", None, repeatable=True, in_comment=True, guards=True),
        Key("Forward", None, repeatable=True, in_comment=True, guards=True),
        Key("Groups", "Peer", repeatable=True, in_comment=True, guards=True),
        Key("ClientAllowedIPs", None, in_comment=True),
        Key("ClientDNS", None, in_comment=True),
        Key("ClientMTU", None, in_comment=True),
        Key("ClientKeepalive", None, in_comment=True),
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


def quoted(name: str) -> str:
    """Quotes a name for a message; returns an empty text if the name may be or hold a piece of a key."""
    return f" '{name}'" if _PLAIN_NAME.fullmatch(name) else ""
