"""Tells a mistyped command from the name of an interface that a program wants (`stagewire NAME`).

`wireguard-go NAME` makes an interface of any name, and so does `stagewire NAME`. An operator who types `stagewire show`
wants no interface. So a word that other tools know as a command makes none, unless wg-quick(8) asks for it.
"""

import difflib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from stagewire.environment import valid_interface_name
from stagewire.process import holders

_ANCESTORS: Final = 16
_LIKE_NAMES: Final = frozenset(["plan"])
"""Commands that a usual name of an interface resembles, such as lan."""
_WORD: Final = re.compile(r"[A-Za-z]+(?:[-_][A-Za-z]+)*")

_WORDS: Final = {
    "`stagewire status`": """show ps info stat stats statistics state counters dump get view
        print inspect display describe interfaces interface links link devices device services service ping health
        healthcheck who whoami watch monitor ip route routes address addresses""",
    "`stagewire peer list`": "list ls peers",
    "`stagewire peer add NAME`": "add qr qrcode",
    "`stagewire peer remove PEER`": "delpeer removepeer revoke",
    "`stagewire peer set PEER`": "rename rotate disable",
    "`stagewire up FILE|NAME`": """start create new connect enable open activate load launch boot setup attach mk
        make uo pu""",
    "`stagewire genkey`": "keygen key-gen gen-key genprivkey newkey",
    "`stagewire down FILE|NAME`": """stop kill end quit exit close delete del remove rm destroy disconnect deactivate
        unload terminate shutdown halt detach purge flush clear reset""",
    "`stagewire reload NAME`": "sync refresh rehash config configure conf edit diff replace change modify",
    "`stagewire check FILE|NAME`": "validate verify test lint checkconf strip",
    "`stagewire save FILE|NAME`": "store write dumpconf",
    "`stagewire backup FILE|NAME`": "export archive",
    "`stagewire restart STAGE|all`": "try-restart reboot respawn renew reexec daemon-reload update upgrade",
    "`wg`, which has this command": "showconf set setconf addconf syncconf genpsk",
    "the files in /var/log/stagewire/NAME": "log logs journal trace debug tail",
    "`stagewire --version`": "version",
    "`stagewire --help`": """help usage man commands daemon serve exec install uninstall login logout auth cat
        less wg sudo sh bash systemctl supervisorctl docker podman nmcli wireguard stagewire wg-quick wireguard-go all""",
}
"""Each suggestion, with the words that lead to it."""
_MEANT: Final = {word: meant for meant, words in _WORDS.items() for word in words.split()}
_VERBS: Final = frozenset(
    ["show", "list", "get", "set", "add", "del", "delete", "remove", "create", "start", "stop", "enable", "disable"]
)
"""Words that stay commands before a hyphen, as in `show-peers`; `site-link` and `new-york` are names."""
_OFTEN_MISTYPED: Final = (
    "show",
    "list",
    "peers",
    "logs",
    "start",
    "stop",
    "delete",
    "remove",
    "help",
    "version",
    "config",
)


def refusal(name: str, ours: Collection[str]) -> str | None:
    """Returns the error for a word that was meant as a command or a file; None for an interface's name."""
    if name.endswith(".conf"):
        return _a_file(name)
    meant = _meant(name, ours)
    if meant is None:
        return None
    return f"no such command {name!r}; did you mean {meant}? (`stagewire bare {name}` makes an interface of that name)"


def no_name(word: str) -> str | None:
    """Returns the error for an unknown option, and for a word that can name no interface; None for any other word."""
    if word.startswith("-"):
        return f"no such option {word!r}"
    if not word or valid_interface_name(word):
        return None
    if word.endswith(".conf"):
        return _a_file(word)
    return f"no such command {word!r}, and an interface's name has 1 to 15 of a-z A-Z 0-9 _ = + . -"


def _a_file(name: str) -> str:
    return f"{name!r} is a file: `stagewire up {name}` brings it up"


def _meant(name: str, ours: Collection[str]) -> str | None:
    if not _WORD.fullmatch(name):
        return None
    word = name.lower()
    if word in ours:
        return f"`stagewire {word}`"
    if word in _MEANT:
        return _MEANT[word]
    verb, hyphen, _ = word.replace("_", "-").partition("-")
    if hyphen and (verb in _VERBS or verb in ours):
        return _MEANT.get(verb) or f"`stagewire {verb}`"
    if close := difflib.get_close_matches(word, set(ours) - _LIKE_NAMES, n=1, cutoff=0.7):
        return f"`stagewire {close[0]}`"
    if close := difflib.get_close_matches(word, _OFTEN_MISTYPED, n=1, cutoff=0.75):
        return _MEANT[close[0]]
    return None


def asked_by_wg_quick(name: str, pid: int) -> bool:
    """Says whether process `pid` descends from a wg-quick(8) that brings `name` up."""
    for _ in range(_ANCESTORS):
        pid = holders.parent(pid)
        if pid <= 0:
            return False
        match _after_wg_quick(_words(pid)):
            case ["up", interface, *_]:
                return Path(interface).name.removesuffix(".conf") == name
    return False


def _after_wg_quick(words: list[str]) -> list[str]:
    """Returns the words after wg-quick's name in a command line; none for another program."""
    return next((words[place + 1 :] for place, word in enumerate(words[:3]) if Path(word).name == "wg-quick"), [])


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
    except OSError:
        return []
