"""Reads peers' names from comment lines, makes them fit to show, and finds a peer by what an operator types.

`# Name = Anna's phone` stands in a [Peer], or in the comment lines that touch its header from above.
"""

import difflib
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from stagewire.config import known
from stagewire.config.known import SPACES

MAX_NAME: Final = 64
"""Letters of a name; longer ones are cut."""
_MAX_READ: Final = 1024
"""Letters that are looked at: a line may be as long as a file."""
_SHORT_KEY: Final = 10
_LISTED: Final = 5
_NAME = re.compile(rf"[{SPACES}]*(?:friendly_)?name[{SPACES}]*=", re.IGNORECASE)


def in_comment(comment: str) -> str | None:
    """Returns the name that a comment gives, as written; None if it gives none. `comment` follows the `#`."""
    found = _NAME.match(comment)
    return comment[found.end() :].strip(SPACES) if found else None


def is_dead_header(comment: str) -> bool:
    """Tells whether a comment is a section's header out of use: what follows belongs to no peer."""
    return known.section_of(comment.strip(SPACES)) is not None


def cleaned(text: str) -> str:
    """Makes one short line of a name, without letters that move a cursor, hide or turn the text around."""
    whole = unicodedata.normalize("NFC", text[:_MAX_READ])
    words = "".join(" " if letter.isspace() else letter for letter in whole if letter.isspace() or letter.isprintable())
    name = " ".join(words.split())
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1].rstrip()}…"


def folded(name: str) -> str:
    """Returns what names have in common that an operator can't tell apart."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def operand(public_key: str, name: str) -> str:
    """Writes what names a peer in a command, for a shell: a name may have any letter."""
    return shlex.quote(name) if name and not name.startswith("-") else public_key


def label(public_key: str, name: str) -> str:
    """Names a peer in a line for people: its name with the first letters of its public key (base64)."""
    short = public_key[:_SHORT_KEY]
    return f"{name} ({short})" if name else short


class NotFoundError(ValueError):
    """Says in a line why a text names no peer, or more than one."""


def _instead(wanted: str, names: Iterable[str], lister: str) -> str:
    folded = {name.casefold(): name for name in names if name}
    close = difflib.get_close_matches(wanted.casefold(), folded, n=1, cutoff=0.7)
    return f"did you mean {folded[close[0]]!r}?" if close else f"`{lister}` lists all peers"


def find(text: str, names: Mapping[str, str], lister: str = "stagewire status") -> str:
    """Finds a peer's public key. `names` has each peer's name, or an empty text, by public key (base64).

    `text` is a public key, a name, or the beginning of either that fits one peer alone. Letters' case counts only if
    several names differ in nothing else. A name that is another peer's short key, as `label` shows it, fits both. Raises
    NotFoundError, which names `lister`, a command.
    """
    if text in names:
        return text
    wanted = cleaned(text)
    steps = (
        [key for key, name in names.items() if name == wanted or key[:_SHORT_KEY] == text],
        [key for key, name in names.items() if folded(name) == folded(wanted)],
        [key for key, name in names.items() if name.casefold().startswith(wanted.casefold()) or key.startswith(text)],
    )
    found = next((step for step in steps if step), []) if wanted else []
    match found:
        case [one]:
            return one
        case []:
            raise NotFoundError(f"no peer has the name or key {wanted!r}; {_instead(wanted, names.values(), lister)}")
        case _:
            first = ", ".join(label(key, names[key]) for key in found[:_LISTED])
            more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            raise NotFoundError(f"{wanted!r} fits several peers: {first}{more}; type more letters, or the key")
