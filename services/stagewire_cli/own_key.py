"""Answers `stagewire why` for a [Peer] that has the gateway's own public key, which the gateway leaves out."""

import os
import re
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from stagewire import config
from stagewire.config import ConfigError, encode_key
from stagewire.config.peer_names import NotFoundError, find
from stagewire.environment import Environment
from stagewire_cli import the_file
from stagewire_cli.evidence import Finding

_ANY: Final = 32
"""Bytes of a key that stands in for ours while the file is read."""


def meant(environment: Environment, text: str, ours: str) -> dict[str, str] | None:
    """Returns the key and the name of the peer with our key that a name, a key or an address means; None for another."""
    if not ours:
        return None
    if text == ours:
        return {"public_key": ours, "name": ""}
    stand_in = encode_key(os.urandom(_ANY))
    with suppress(ConfigError, OSError):
        path = the_file.of(environment)
        own_line = re.compile(rf"^(\s*PublicKey\s*=\s*){re.escape(ours)}", re.IGNORECASE | re.MULTILINE)
        written, count = own_line.subn(rf"\g<1>{stand_in}", config.load_text(path))
        if not count:
            return None
        peers = {encode_key(peer.public_key): peer for peer in config.parse_text(written, path).peers}
        named = (
            _by_address(text, peers[stand_in])
            or _by_name(text, {key: peer.name for key, peer in peers.items()}) == stand_in
        )
        return {"public_key": ours, "name": peers[stand_in].name} if named else None
    return None


def _by_address(text: str, peer: config.PeerConfig) -> bool:
    with suppress(ValueError):
        return any(ip_address(text) in prefix for prefix in peer.allowed_ips)
    return False


def _by_name(text: str, names: dict[str, str]) -> str:
    with suppress(NotFoundError):
        return find(text, names)
    return ""


def finding(name: str) -> Finding:
    """Tells that this peer is left out, and why."""
    what = f"the PublicKey of {name} in the file" if name else "this key"
    return Finding(
        "own_key",
        f"{what} is this gateway's own, and a gateway can't be its own peer: it is left out",
        "put the peer's public key there, which `wg show` at the peer tells, then `stagewire reload`",
    )
