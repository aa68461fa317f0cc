"""Finds the private and pre-shared keys that are no longer in force, so that nothing keeps them."""

from collections.abc import Iterable, Iterator
from typing import Final

from stagewire.config import InterfaceConfig, PeerConfig
from stagewire.config.keys import NO_KEY
from stagewire.proto import constants as c
from stagewire.proto.noise import clamp

SOME_KEY: Final = b"\xff" * c.KEY_LENGTH
"""Stands for a key that is forgotten."""


def clamped(private_key: bytes | None) -> bytes:
    """Returns a private key as the curve takes it: a file may have other bits. NO_KEY stands for none."""
    return clamp(private_key) if private_key else NO_KEY


def secrets_of(interface: InterfaceConfig, peers: Iterable[PeerConfig]) -> Iterator[bytes]:
    """Returns the keys of a configuration, or of some of its peers."""
    yield clamped(interface.private_key)
    yield from (peer.preshared_key for peer in peers)


def without(lost: set[bytes], in_force: Iterable[bytes]) -> set[bytes]:
    """Returns what is lost and not in force, as it is and clamped: a file's private key need not be clamped, ours is."""
    lost -= {NO_KEY, SOME_KEY}
    kept = {clamp(key) for key in in_force} if lost else set()
    return {form for key in lost for form in (key, clamp(key)) if clamp(key) not in kept}
