"""Says what an edited file puts in force, upon what is in force now.

The file sets peers and prefixes. A key, port, mark, endpoint or keepalive stays if neither this file nor the file before
sets it: a hook may have set it with `wg`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from stagewire.config import InterfaceConfig, PeerConfig
from stagewire.config.keys import NO_KEY

_T = TypeVar("_T")


def settings(file: InterfaceConfig, before: InterfaceConfig, now: InterfaceConfig) -> InterfaceConfig:
    """Returns the settings that belong to no peer. `before` is the file before, `now` is in force."""
    return replace(
        file,
        private_key=file.private_key or now.private_key,
        listen_port=_said(file.listen_port, before.listen_port, now.listen_port, None),
        fwmark=_said(file.fwmark, before.fwmark, now.fwmark, 0),
    )


def peers(file: InterfaceConfig, before: InterfaceConfig, now: Mapping[bytes, PeerConfig]) -> Iterator[PeerConfig]:
    """Returns the peers. `before` is the file before, `now` has the peers in force."""
    old = {peer.public_key: peer for peer in before.peers}
    return (_upon(peer, old.get(peer.public_key), now.get(peer.public_key)) for peer in file.peers)


def _said(new: _T, old: _T, now: _T, nothing: _T) -> _T:
    """Returns the new file's value, or the present value if neither file sets any."""
    return now if new == old == nothing else new


def _upon(new: PeerConfig, old: PeerConfig | None, now: PeerConfig | None) -> PeerConfig:
    if now is None:
        return new
    keepalive = _said(new.persistent_keepalive, old.persistent_keepalive if old else 0, now.persistent_keepalive, 0)
    psk = _said(new.preshared_key, old.preshared_key if old else NO_KEY, now.preshared_key, NO_KEY)
    return replace(new, preshared_key=psk, persistent_keepalive=keepalive, endpoint=new.endpoint or now.endpoint)
