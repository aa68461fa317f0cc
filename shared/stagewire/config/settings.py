"""Sets and removes what a peer's section says, each key by its text in the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from stagewire.config import gateway, keys, values
from stagewire.config.model import PeerConfig

MAX_VALUE: Final = 65_536
"""Letters of a setting's value."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Sets a key of a peer's section, such as `Expires`. An empty value removes the key.

    Semicolons separate the values of a key with several lines, such as `Allow`.
    """

    key: str
    value: str = field(metadata={"most": MAX_VALUE})


def _of_client(key: str) -> Callable[[PeerConfig, str], PeerConfig]:
    return lambda peer, text: replace(peer, client=values.CLIENT[key](peer.client, text))


def _with_access(key: str, peer: PeerConfig, text: str) -> PeerConfig:
    return replace(peer, access=gateway.setting(peer.access, key, text))


def _of_limits(key: str) -> Callable[[PeerConfig, str], PeerConfig]:
    return lambda peer, text: replace(peer, limits=values.LIMITS[key](peer.limits, text))


_SETTINGS: Final[Mapping[str, Callable[[PeerConfig, str], PeerConfig]]] = {
    "AllowedIPs": lambda peer, text: replace(peer, allowed_ips=values.networks(text)),
    "Endpoint": lambda peer, text: replace(peer, endpoint=values.endpoint(text)),
    "PersistentKeepalive": lambda peer, text: replace(peer, persistent_keepalive=values.keepalive(text)),
    "Expires": lambda peer, text: replace(peer, expires=values.expires(text)),
    **{key: _of_limits(key) for key in values.LIMITS},
    **{key: _of_client(key) for key in values.CLIENT},
    **{key: partial(_with_access, key) for key in gateway.KEYS},
}
_DEFAULTS: Final[Mapping[str, Callable[[PeerConfig], PeerConfig]]] = {
    "AllowedIPs": lambda peer: replace(peer, allowed_ips=()),
    "Endpoint": lambda peer: replace(peer, endpoint=None),
    "PersistentKeepalive": lambda peer: replace(peer, persistent_keepalive=0),
    "Expires": lambda peer: replace(peer, expires=None),
    "Rate": lambda peer: replace(peer, limits=replace(peer.limits, rate_to=0, rate_from=0)),
    "Quota": lambda peer: replace(peer, limits=replace(peer.limits, quota=0)),
    "ClientAllowedIPs": lambda peer: replace(peer, client=replace(peer.client, allowed_ips=())),
    "ClientDNS": lambda peer: replace(peer, client=replace(peer.client, dns=())),
    "ClientMTU": lambda peer: replace(peer, client=replace(peer.client, mtu=None)),
    "ClientKeepalive": lambda peer: replace(peer, client=replace(peer.client, keepalive=None)),
    **{key: partial(_with_access, key, text="") for key in gateway.KEYS},
}
KEYS: Final = tuple(_SETTINGS)
"""Every key that a Setting may have."""


def mistake_in(setting: Setting) -> str:
    """Says what is wrong with a value, in words that continue the key's name; an empty text if nothing is."""
    if len(setting.value) > MAX_VALUE:
        return f"has more than {MAX_VALUE} letters"
    if "\n" in setting.value or "\0" in setting.value:
        return "must be one line"
    try:
        with_setting(setting, _NOBODY)
    except ValueError as error:
        return str(error)
    return ""


_NOBODY: Final = PeerConfig(keys.NO_KEY, keys.NO_KEY, (), None, 0, False, 0)


def with_setting(setting: Setting, peer: PeerConfig) -> PeerConfig:
    """Returns a peer with a setting. Raises ValueError, whose text continues the key's name."""
    if setting.value:
        return _SETTINGS[setting.key](peer, setting.value)
    return _DEFAULTS[setting.key](peer)
