"""Turns options of `stagewire peer`, and columns of a CSV file, into settings of a peer.

A value with a mistake is refused by the name that the operator typed, such as `--mtu`.
"""

import re
import time
from collections.abc import Callable
from typing import Any, Final

from stagewire.config import InterfaceConfig, operations, values
from stagewire.config.roster import Refused
from stagewire.config.settings import Setting, mistake_in
from stagewire_cli import client_config
from stagewire_cli.failures import Failed

Named = Callable[[str], str]
"""Returns what an operator calls an option, such as `--mtu` or `column mtu`."""
_UNITS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_AFTER: Final = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_KEYS: Final = {
    "dns": "ClientDNS",
    "keepalive": "ClientKeepalive",
    "mtu": "ClientMTU",
    "expires": "Expires",
    "rate": "Rate",
    "quota": "Quota",
    "endpoint": "Endpoint",
    "group": "Groups",
    "allow": "Allow",
    "forward": "Forward",
}
"""The key that each option sets in a peer's section."""
_FOR_NOTHING: Final = {"expires": "never", "rate": "none", "quota": "none"}
"""A word that removes a setting, as an empty text does."""


def flag(option: str) -> str:
    """Returns an option as it is typed."""
    return f"--{option.replace('_', '-')}"


def settings(interface: InterfaceConfig, chosen: dict[str, Any], named: Named = flag) -> tuple[Setting, ...]:
    """Returns a setting for each option that is given. Raises Failed."""
    found = list(_client_networks(interface, chosen, named))
    for option, key in _KEYS.items():
        given = chosen[option]
        if given is None or given == ():
            continue
        text = given if isinstance(given, str) else "; ".join(given).strip()
        found.append(checked(named(option), Setting(key, _value(option, text))))
    return tuple(found)


def checked(name: str, setting: Setting) -> Setting:
    """Returns a setting. Raises Failed for a bad value, which has come by `name`."""
    if mistake := mistake_in(setting):
        raise Failed(f"{name} {mistake}")
    return setting


def check_name(name: str) -> None:
    """Raises Failed for a text that can't be a peer's name."""
    try:
        operations.check_name(name)
    except Refused as refused:
        raise Failed(str(refused)) from None


def check_addresses(chosen: dict[str, Any], named: Named = flag) -> None:
    """Raises Failed if an address or a network of a new peer isn't any."""
    for option in ("address", "network"):
        for text in chosen[option]:
            try:
                found = values.network(text)
            except ValueError as error:
                raise Failed(f"{named(option)} {error}") from None
            if option == "address" and found.num_addresses > 1:
                such = f"such as {text.partition('/')[0]}"
                raise Failed(f"{named(option)} must be a single address, {such}, not {values.shown(text)}")


def _value(option: str, text: str) -> str:
    if text == _FOR_NOTHING.get(option):
        return ""
    if option == "expires" and (after := _AFTER.fullmatch(text)):
        return values.as_time(int(time.time()) + int(after[1]) * _UNITS[after[2]])
    return text


def _client_networks(interface: InterfaceConfig, chosen: dict[str, Any], named: Named) -> tuple[Setting, ...]:
    """Returns what a client sends through the tunnel, unless no option says it."""
    if chosen["full_tunnel"] and chosen["split"]:
        raise Failed("--full-tunnel and --split contradict one another: give one of both")
    if not (chosen["full_tunnel"] or chosen["split"] or chosen["exclude"]):
        return ()
    inside = client_config.inside(interface)
    if not chosen["full_tunnel"] and not chosen["split"]:
        inside = interface.client.allowed_ips or inside
    networks = client_config.EVERYTHING if chosen["full_tunnel"] else inside
    try:
        excluded = [values.network(each) for each in chosen["exclude"]]
    except ValueError as error:
        raise Failed(f"{named('exclude')} {error}") from None
    left = client_config.without(networks, excluded)
    if not left:
        raise Failed(f"{named('exclude')} leaves nothing that the client sends through the tunnel")
    return (checked(named("exclude"), Setting("ClientAllowedIPs", ", ".join(map(str, left)))),)
