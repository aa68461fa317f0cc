"""Chooses the DNS servers to ask: the host's own, none that the tunnel brought.

While a full tunnel is down, no question reaches the servers inside it. A local cache asks without our mark, so it gets no
answer either. Hence the servers behind a cache go first, where a file names them:

    resolv.conf, without the tunnel's servers and local ones
    else the lists that systemd-resolved or NetworkManager keep beside their local cache
    else the copy of resolv.conf from before the tunnel's servers were set
    else the local cache
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.exception
import dns.inet
import dns.name

RESOLV_CONF: Final = Path("/etc/resolv.conf")
BEHIND_LOCAL: Final = (Path("/run/systemd/resolve/resolv.conf"), Path("/run/NetworkManager/no-stub-resolv.conf"))
DEFAULT: Final = "127.0.0.1"
"""The server to ask where resolv.conf names none (resolv.conf(5))."""
MOST: Final = 6
"""Servers to ask in turn; resolv.conf(5) allows three."""
_NUMBER: Final = re.compile(r"[0-9]{1,4}")
TIMEOUTS: Final = range(1, 31)
"""s; the values of `options timeout` that count."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Names the files that list DNS servers. `before` is a copy of `resolv_conf` without the tunnel's servers."""

    before: Path
    resolv_conf: Path = RESOLV_CONF
    behind_local: tuple[Path, ...] = BEHIND_LOCAL

    def read(self, avoid: Collection[str]) -> tuple[tuple[str, ...], str]:
        """Returns the servers, and the rest of resolv.conf. `avoid` lists the tunnel's servers."""
        text, before = _text(self.resolv_conf), _text(self.before)
        behind = (*map(_text, self.behind_local), before)
        servers = choose(text, behind, avoid)
        # The program that set the tunnel's servers may have replaced the search list as well.
        return servers, clean(before if before and not _outside(text, avoid) else text)


def choose(resolv_conf: str, behind: Sequence[str], avoid: Collection[str]) -> tuple[str, ...]:
    """Returns the servers to ask, in order."""
    for text in (resolv_conf, *behind):
        if distant := [each for each in _outside(text, avoid) if not _is_local(each)]:
            return tuple(distant[:MOST])
    known = [each for text in (resolv_conf, *behind) for each in _servers(text)]
    local = dict.fromkeys(each for each in known if each not in avoid)
    return tuple(local)[:MOST] if known else (DEFAULT,)


def clean(text: str) -> str:
    """Returns the lines beside the servers, without words that dnspython refuses; resolv.conf(5) skips them too."""
    kept = []
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        if word in {"search", "domain"}:
            rest = [each for each in rest if _is_name(each)]
        elif word == "options":
            rest = [each for each in rest if _is_option(each)]
        else:
            continue
        kept.append(" ".join((word, *rest)))
    return "\n".join(kept)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _outside(text: str, avoid: Collection[str]) -> list[str]:
    return [each for each in _servers(text) if each not in avoid]


def _servers(text: str) -> Iterator[str]:
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_] if _is_address(address):
                yield address


def _is_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
        dns.inet.af_for_address(text)  # it refuses some zones
    except ValueError:
        return False
    return True


def _is_local(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback


def _is_name(text: str) -> bool:
    try:
        dns.name.from_text(text)
    except (dns.exception.DNSException, UnicodeError):
        return False
    return True


def _is_option(text: str) -> bool:
    name, _, value = text.partition(":")
    number = int(value) if _NUMBER.fullmatch(value) else -1
    return (
        name in {"rotate", "edns0"} or (name == "timeout" and number in TIMEOUTS) or (name == "ndots" and number >= 0)
    )
