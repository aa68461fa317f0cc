"""Which sections and keys there are, and what to say of a name that isn't one of them."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

SectionName = Literal["Interface", "Peer"]

_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Key:
    """A key, spelt as in the manuals. `in_comment` marks those that stand in a `# stagewire:` line."""

    name: str
    section: SectionName
    repeatable: bool = False
    in_comment: bool = False


KEYS: Final = {
    key.name.lower(): key
    for key in (
        Key("PrivateKey", "Interface"),
        Key("ListenPort", "Interface"),
        Key("FwMark", "Interface"),
        Key("Address", "Interface", repeatable=True),
        Key("DNS", "Interface", repeatable=True),
        Key("MTU", "Interface"),
        Key("Table", "Interface"),
        Key("PreUp", "Interface", repeatable=True),
        Key("PostUp", "Interface", repeatable=True),
        Key("PreDown", "Interface", repeatable=True),
        Key("PostDown", "Interface", repeatable=True),
        Key("SaveConfig", "Interface"),
        Key("RekeyAfterTime", "Interface", in_comment=True),
        Key("PublicKey", "Peer"),
        Key("PresharedKey", "Peer"),
        Key("AllowedIPs", "Peer", repeatable=True),
        Key("Endpoint", "Peer"),
        Key("PersistentKeepalive", "Peer"),
        Key("ResponseTimestamp", "Peer", in_comment=True),
    )
}
SECTIONS: Final[dict[str, SectionName]] = {"interface": "Interface", "peer": "Peer"}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names (in lower case) that was probably meant."""
    near = difflib.get_close_matches(name[:40].lower(), known, n=1, cutoff=0.7)
    return near[0] if near else None


def quoted(name: str) -> str:
    """The name as it goes into a message; nothing when it could be, or hold, a piece of a key."""
    return f" '{name}'" if _PLAIN_NAME.fullmatch(name) else ""
