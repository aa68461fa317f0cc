"""Answers `stagewire why` for a peer that is out of use: since when, and which command brings it back."""

import time
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final

from stagewire import config
from stagewire.config import ConfigError, PeerConfig, encode_key, marks, operations, roster, values
from stagewire.config.peer_names import NotFoundError, find, operand
from stagewire.control import query
from stagewire.control.event import when
from stagewire.environment import Environment
from stagewire_cli.evidence import Finding
from stagewire_cli.failures import Failed

_MOST: Final = 2048
"""Events of one kind that status-service keeps."""


@dataclass(frozen=True, slots=True)
class Away:
    """Describes a peer of the file that is disabled or expired."""

    peer: PeerConfig
    finding: Finding

    @property
    def named(self) -> dict[str, str]:
        """Returns what tells peers apart, as `stagewire status --json` does."""
        return {"public_key": encode_key(self.peer.public_key), "name": self.peer.name}


def meant(environment: Environment, text: str, in_force: list[dict[str, Any]]) -> Away | None:
    """Returns the peer out of use that a name, a key, the beginning of either, or an address means; None for another."""
    if any(peer["public_key"] == text for peer in in_force):
        return None
    if not (away := _peers(environment)):
        return None
    key = _by_address(text, in_force, away) if _is_address(text) else _by_name(text, in_force, away)
    return Away(away[key], _finding(environment, away[key])) if key in away else None


def _peers(environment: Environment) -> dict[str, PeerConfig]:
    """Returns the peers of the file that are out of use, by key; none if the interface has no file."""
    from stagewire_cli import peers

    try:
        path = peers.file_of(environment)
        text = config.load_text(path)
        if marks.uncovered(text) == text and "expires" not in text.casefold():
            return {}  # to parse thousands of peers takes long
        found = roster.read(text, str(path))
    except (Failed, ConfigError, roster.Refused):
        return {}
    now = time.time()
    return {
        encode_key(peer.public_key): peer
        for peer in found.whole.peers
        if peer.public_key in found.off or operations.is_expired(peer, now)
    }


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _by_name(text: str, in_force: list[dict[str, Any]], away: dict[str, PeerConfig]) -> str:
    names = {key: peer.name for key, peer in away.items()} | {peer["public_key"]: peer["name"] for peer in in_force}
    try:
        return find(text, names)
    except NotFoundError:
        return ""  # said by the search among the peers in force


def _by_address(text: str, in_force: list[dict[str, Any]], away: dict[str, PeerConfig]) -> str:
    address = ip_address(text)
    prefixes = [(network, peer["public_key"]) for peer in in_force for network in map(ip_network, peer["allowed_ips"])]
    prefixes += [(network, key) for key, peer in away.items() for network in peer.allowed_ips]
    at = [(network.prefixlen, key) for network, key in prefixes if address in network]
    return max(at, default=(0, ""))[1]


def _finding(environment: Environment, peer: PeerConfig) -> Finding:
    word = operand(encode_key(peer.public_key), peer.name)
    where = f"-i {environment.interface}"
    if operations.is_expired(peer, time.time()):
        end = values.as_time(peer.expires or 0)
        mend = f"`stagewire peer set {word} --expires 30d {where}` brings it back"
        return Finding("expired", f"the peer has expired at {end}, and is out of use since then", mend)
    since = _disabled_at(environment, encode_key(peer.public_key))
    mend = f"`stagewire peer enable {word} {where}` brings it back"
    return Finding("disabled", f"the peer is disabled{f' since {since}' if since else ''}", mend)


def _disabled_at(environment: Environment, public_key: str) -> str:
    """Returns when an operator disabled a peer; an empty text if no event tells it."""
    told = query.events(environment, 0, ("disabled",), _MOST)
    at = [each.unix_s for each in (told.events if told is not None else ()) if each.public_key == public_key]
    return when(max(at)) if at else ""
