"""Turns options of `stagewire peer`, and columns of a CSV file, into settings of a peer.

A value with a mistake is refused by the name that the operator typed, such as `--mtu`.
"""

import re
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any, Final

from stagewire.config import InterfaceConfig, peer_checks, values
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
        setting = checked(named(option), Setting(key, _value(option, text, named(option))))
        if option == "dns" and setting.value:
            try:
                values.servers(setting.value)
            except ValueError as error:
                raise Failed(f"{named(option)} {error}") from None
        if option == "expires" and setting.value and (end := values.expires(setting.value)) <= time.time():
            raise Failed(f"{named(option)} {values.as_time(end)} is over already: give a time to come")
        found.append(setting)
    return tuple(found)


def checked(name: str, setting: Setting) -> Setting:
    """Returns a setting. Raises Failed for a bad value, which has come by `name`."""
    if mistake := mistake_in(setting):
        raise Failed(f"{name} {mistake}")
    return setting


def check_name(name: str) -> None:
    """Raises Failed for a text that can't be a peer's name."""
    try:
        peer_checks.check_name(name)
    except Refused as refused:
        raise Failed(str(refused)) from None


def check_addresses(interface: InterfaceConfig, chosen: dict[str, Any], named: Named = flag) -> None:
    """Raises Failed if an address or a network of a new peer isn't any, or an address lies in no network of the tunnel."""
    for text in chosen["network"]:
        try:
            values.network(text)
        except ValueError as error:
            raise Failed(f"{named('network')} {error}") from None
    for text in chosen["address"]:
        name, alone = named("address"), text.partition("/")[0]
        try:
            found = values.network(text)
        except ValueError:
            raise Failed(f"{name} must be an address such as 10.8.0.9 or fd00::9, not {values.shown(text)}") from None
        if found.num_addresses > 1:
            raise Failed(f"{name} must be a single address, such as {alone}, not {values.shown(text)}")
        inside = [each for each in client_config.inside(interface) if each.version == found.version]
        if any(each.num_addresses > 1 for each in inside) and not any(found.network_address in each for each in inside):
            raise Failed(
                f"{name} {alone} lies outside of the tunnel's network {', '.join(map(str, inside))}: "
                f"give an address in it; {named('network')} is for what lies behind the peer"
            )


def _value(option: str, text: str, name: str) -> str:
    if text == _FOR_NOTHING.get(option):
        return ""
    if option == "expires" and text:
        if after := _AFTER.fullmatch(text):
            return values.as_time(int(time.time()) + int(after[1]) * _UNITS[after[2]])
        if text.isdecimal():
            raise Failed(f"{name} must be such as 30d, 12h or 2030-12-31, not {values.shown(text)}: is {text}d meant?")
        if "-" not in text:
            raise Failed(f"{name} must be such as 30d, 12h, 2030-12-31 or 2030-12-31T18:00Z, not {values.shown(text)}")
    return text


def warnings(interface: InterfaceConfig, chosen: dict[str, Any]) -> Iterator[str]:
    """Yields what the operator may have overlooked."""
    if chosen["full_tunnel"] and interface.exit == "off":
        yield (
            "the client will send everything here, but the file has no `# stagewire: Exit = on`: "
            "this host passes it on only if something else sees to that"
        )
    excluded = [network for each in chosen["exclude"] for network in values.networks(each)]
    servers = values.dns(chosen["dns"]) if chosen["dns"] else interface.client.dns
    own = {str(each.ip): "the gateway's own address" for each in interface.addresses}
    for text, what in {**dict.fromkeys(servers, "the client's DNS server"), **own}.items():
        if values.is_literal(text) and any(ip_address(text) in each for each in excluded):
            yield f"--exclude takes in {text}, {what}: the client does not reach it through the tunnel"


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
    for each in excluded:
        if not any(each.overlaps(other) for other in networks if each.version == other.version):
            sent = ", ".join(map(str, networks))
            raise Failed(
                f"{named('exclude')} {each} excludes nothing, as the client sends {sent} alone through the tunnel: "
                "is --full-tunnel meant too?"
            )
    left = client_config.without(networks, excluded)
    for own in interface.addresses:
        if own.version not in {each.version for each in left} and own.version in {each.version for each in networks}:
            raise Failed(
                f"{named('exclude')} leaves nothing of IPv{own.version} that the client sends through the tunnel, not even "
                f"to {own.ip}: exclude less"
            )
    if not left:
        raise Failed(f"{named('exclude')} leaves nothing that the client sends through the tunnel")
    return (checked(named("exclude"), Setting("ClientAllowedIPs", ", ".join(map(str, left)))),)
