"""Reads wg-easy: version 14's `wg0.json`, and version 15's database.

Version 14 keeps endpoint, port and the clients' settings in environment variables, so its file lacks them.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final

from stagewire.config.operations import NewPeer
from stagewire_cli.imports.fields import Fields, pair, setting
from stagewire_cli.imports.found import AMNEZIA, PRIVATE_KEYS, Found, FoundPeer, Untaken, Unusable

_HOOKS: Final = ("pre_up", "post_up", "pre_down", "post_down")
_AMNEZIA: Final = re.compile(r"(default_)?(j_(c|min|max)|[sh][1-4]|i[1-5])$")
_NOTHING: Final[tuple[object, ...]] = (None, "", "[]", [])
_PREFIX_OF_14: Final = 24
"""Bits: wg-easy 14 has no other prefix length."""

Rows = Mapping[str, list[dict[str, Any]]]


def is_file(content: object) -> bool:
    """Tells whether a JSON text is wg-easy 14's."""
    return isinstance(content, dict) and isinstance(content.get("server"), dict) and "clients" in content


def is_database(tables: Iterable[str]) -> bool:
    """Tells whether a database is wg-easy 15's, by its tables."""
    return {"interfaces_table", "clients_table", "user_configs_table"} <= set(tables)


def from_file(content: dict[str, Any]) -> Found:
    """Reads wg-easy 14. Raises Unusable."""
    server, left, untaken = Fields(content["server"]), list[str](), Untaken()
    address = server.text("address")
    gateway = pair("PrivateKey", server.text("privateKey"))
    if address:
        gateway += pair("Address", f"{address}/{_PREFIX_OF_14}")
    peers = []
    for number, (name, record) in enumerate(Fields(content["clients"]).items(), start=1):
        where = f"client {number} ({name[:36]})"
        try:
            client = Fields(record)
            new = NewPeer(
                client.text("name"),
                client.text("publicKey"),
                client.text("preSharedKey"),
                (client.text("address"),),
                (),
                setting("Expires", client.time("expiredAt")),
                off=not client.flag("enabled", default=True),
            )
            peers.append(FoundPeer(where, new))
            untaken.note(PRIVATE_KEYS, where, client.text("privateKey"))
            untaken.note("one-time links", where, record.get("oneTimeLink"))
        except Unusable as unusable:
            left.append(f"{where}: {unusable}")
    left += untaken.lines()
    left.append("port, endpoint, DNS and hooks: wg-easy 14 has them in environment variables, not in this file")
    return Found("a file of wg-easy 14", gateway, tuple(peers), tuple(left), masquerades=True)


def from_database(rows: Rows, only: str) -> Found:
    """Reads wg-easy 15. Raises Unusable."""
    interfaces = {Fields(row).text("name"): row for row in rows["interfaces_table"]}
    name = only or next(iter(interfaces), "")
    if name not in interfaces or (not only and len(interfaces) > 1):
        raise Unusable(f"has the interfaces {', '.join(interfaces) or '(none)'}: choose with --only NAME")
    own = Fields(interfaces[name])
    defaults = Fields(next((row for row in rows["user_configs_table"] if row.get("id") == name), {}))
    hooks = next((row for row in rows.get("hooks_table", ()) if row.get("id") == name), {})
    left, untaken = list(_hooks(hooks, "the gateway")), Untaken()
    addresses = [_first(own.text(key)) for key in ("ipv4_cidr", "ipv6_cidr") if key in own]
    host, port = defaults.text("host"), defaults.number("port")
    gateway = (
        *pair("PrivateKey", own.text("private_key")),
        *pair("Address", ", ".join(addresses)),
        *pair("ListenPort", own.number("port")),
        *pair("MTU", own.number("mtu")),
        *pair("Table", own.text("routing_table")),
        *pair("ClientEndpoint", f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if host else ""),
        *pair("ClientAllowedIPs", ", ".join(defaults.texts("default_allowed_ips"))),
        *pair("ClientDNS", ", ".join(defaults.texts("default_dns"))),
        *pair("ClientMTU", defaults.number("default_mtu")),
        *pair("ClientKeepalive", defaults.number("default_persistent_keepalive")),
    )
    left += _left_of_gateway(own, (interfaces[name], *rows["clients_table"]))
    links = {row.get("id") for row in rows.get("one_time_links_table", ())}
    peers = []
    for row in rows["clients_table"]:
        where = f"client {row.get('id')}"
        try:
            client = Fields(row)
            if client.text("interface_id") != name:
                continue
            peers.append(FoundPeer(where, _peer(client)))
            left += _hooks(row, where)
            _note_untaken(row, where, untaken, links)
        except Unusable as unusable:
            left.append(f"{where}: {unusable}")
    left += untaken.lines()
    masquerades = any("masquerade" in str(hooks.get(key)).lower() for key in _HOOKS)
    return Found("a database of wg-easy 15", gateway, tuple(peers), tuple(left), masquerades)


def _left_of_gateway(own: Fields, rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    if own.flag("firewall_enabled", default=False):
        yield "the firewall's rules of clients (firewall_ips)"
    if not own.flag("enabled", default=True):
        yield "the gateway: it is disabled there, and `stagewire up` starts it"
    if any(_AMNEZIA.match(key) and value for row in rows for key, value in row.items()):
        yield AMNEZIA


def _note_untaken(row: Mapping[str, Any], where: str, untaken: Untaken, links: Container[object]) -> None:
    untaken.note(PRIVATE_KEYS, where, row.get("private_key"))
    untaken.note("descriptions", where, row.get("description"))
    untaken.note("addresses that it may reach (firewall_ips)", where, row.get("firewall_ips") not in _NOTHING)
    untaken.note("one-time links", where, row.get("id") in links)


def _peer(client: Fields) -> NewPeer:
    return NewPeer(
        client.text("name"),
        client.text("public_key"),
        client.text("pre_shared_key"),
        tuple(address for key in ("ipv4_address", "ipv6_address") if (address := client.text(key))),
        tuple(client.texts("server_allowed_ips")),
        (
            *setting("Endpoint", client.text("server_endpoint")),
            *setting("Expires", client.time("expires_at")),
            *setting("ClientAllowedIPs", ", ".join(client.texts("allowed_ips"))),
            *setting("ClientDNS", ", ".join(client.texts("dns"))),
            *setting("ClientMTU", client.number("mtu")),
            *setting("ClientKeepalive", client.number("persistent_keepalive")),
        ),
        off=not client.flag("enabled", default=True),
    )


def _hooks(row: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in _HOOKS:
        if row.get(key):
            yield f"{where}: its command {key}"


def _first(cidr: str) -> str:
    """Returns the gateway's address, the first of its network."""
    try:
        network: IPv4Network | IPv6Network = ip_network(cidr, strict=False)
    except ValueError:
        raise Unusable("the gateway's network is no network") from None
    return f"{network.network_address + 1}/{network.prefixlen}"
