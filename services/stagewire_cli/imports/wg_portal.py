"""Reads WireGuard Portal: its SQLite database, and the JSON texts that its REST API gives out.

The wg-quick files that it writes are read by `wg_conf`. A database can be encrypted; such keys begin with WG_ENC_.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_interface
from typing import Any, Final

from stagewire.config.operations import NewPeer
from stagewire.config.settings import Setting
from stagewire_cli.imports.fields import Fields, pair, setting
from stagewire_cli.imports.found import PRIVATE_KEYS, Found, FoundPeer, Untaken, Unusable

_ENCRYPTED: Final = "WG_ENC_"
_HOOKS: Final = ("PreUp", "PostUp", "PreDown", "PostDown")

Rows = Mapping[str, list[dict[str, Any]]]


def is_database(tables: Iterable[str]) -> bool:
    """Tells whether a database is WireGuard Portal's, by its tables."""
    return {"interfaces", "peers", "peer_addresses", "interface_addresses"} <= set(tables)


def is_export(content: object) -> bool:
    """Tells whether a JSON text is one of WireGuard Portal's API: interfaces or peers, one or a list."""
    records = content if isinstance(content, list) else [content]
    return bool(records) and all(isinstance(each, dict) and "Identifier" in each and "Mode" in each for each in records)


def from_export(content: Any, only: str) -> Found:
    """Reads JSON texts of the API. Raises Unusable."""
    records = content if isinstance(content, list) else [content]
    peers = [each for each in records if "InterfaceIdentifier" in each]
    interfaces = [each for each in records if "InterfaceIdentifier" not in each]
    return _read(interfaces, peers, only)


def from_database(rows: Rows, only: str) -> Found:
    """Reads the database, by turning its rows into the records of the API. Raises Unusable."""
    ours, theirs = (_addresses(rows, table) for table in ("interface", "peer"))
    interfaces = [_interface_of(row, ours.get(row.get("identifier"), [])) for row in rows["interfaces"]]
    peers = [_peer_of(row, theirs.get(row.get("identifier"), [])) for row in rows["peers"]]
    return _read(interfaces, peers, only)


# --- records of the API ------------------------------------------------------------------------------------


def _read(interfaces: list[dict[str, Any]], peers: list[dict[str, Any]], only: str) -> Found:
    names = [Fields(each).text("Identifier") for each in interfaces]
    names += [name for each in peers if (name := Fields(each).text("InterfaceIdentifier")) not in names]
    names = list(dict.fromkeys(names))
    name = only or next(iter(names), "")
    if name not in names or (not only and len(names) > 1):
        raise Unusable(f"has the interfaces {', '.join(names) or '(none)'}: choose with --only NAME")
    left: list[str] = []
    gateway: tuple[tuple[str, str], ...] = ()
    masquerades, untaken = False, Untaken()
    for each in interfaces:
        if each["Identifier"] == name:
            gateway = _gateway(Fields(each), left)
            masquerades = any("masquerade" in str(each.get(hook)).lower() for hook in _HOOKS)
    found = []
    for each in peers:
        peer = Fields(each)
        if peer.text("InterfaceIdentifier") != name:
            continue
        where = f"peer {peer.text('Identifier')[:8]}"
        try:
            found.append(FoundPeer(where, _peer(peer)))
            left += [f"{where}: its command {hook}" for hook in _HOOKS if _option(peer, hook).text("Value")]
            untaken.note(PRIVATE_KEYS, where, each.get("PrivateKey"))
            untaken.note("notes", where, each.get("Notes"))
            untaken.note("owners (UserIdentifier)", where, each.get("UserIdentifier"))
            for key in ("FirewallMark", "RoutingTable"):
                untaken.note(f"{key} of a client's own configuration", where, each.get(key) and _of(each[key]))
        except Unusable as unusable:
            left.append(f"{where}: {unusable}")
    left += untaken.lines()
    return Found("an export of WireGuard Portal", gateway, tuple(found), tuple(left), masquerades)


def _of(option: object) -> object:
    """Returns the value of a setting that may be from the interface."""
    return option.get("Value") if isinstance(option, dict) else option


def _gateway(own: Fields, left: list[str]) -> tuple[tuple[str, str], ...]:
    left += [f"the gateway: its command {hook}" for hook in _HOOKS if own.text(hook)]
    if own.flag("Disabled", default=False):
        left.append("the gateway: it is disabled there, and `stagewire up` starts it")
    if own.flag("SaveConfig", default=False):
        left.append("the gateway: SaveConfig: `stagewire save` writes live changes back")
    if own.texts("Dns") or own.texts("DnsSearch"):
        left.append("the gateway: DNS: the gateway's own, not its clients'")
    private = own.text("PrivateKey")
    if private.startswith(_ENCRYPTED):
        left.append("the gateway: its private key is encrypted; export it by the API or as a wg-quick file")
        private = ""
    return (
        *pair("PrivateKey", private),
        *pair("Address", ", ".join(own.texts("Addresses"))),
        *pair("ListenPort", own.number("ListenPort")),
        *pair("MTU", own.number("Mtu")),
        *pair("FwMark", own.number("FirewallMark")),
        *pair("Table", own.text("RoutingTable")),
        *pair("ClientEndpoint", own.text("PeerDefEndpoint")),
        *pair("ClientAllowedIPs", ", ".join(own.texts("PeerDefAllowedIPs"))),
        *pair("ClientDNS", ", ".join((*own.texts("PeerDefDns"), *own.texts("PeerDefDnsSearch")))),
        *pair("ClientMTU", own.number("PeerDefMtu")),
        *pair("ClientKeepalive", own.number("PeerDefPersistentKeepalive")),
    )


def _peer(peer: Fields) -> NewPeer:
    preshared_key = peer.text("PresharedKey")
    if preshared_key.startswith(_ENCRYPTED):
        raise Unusable("its pre-shared key is encrypted; export it by the API or as a wg-quick file")
    extra = tuple(peer.texts("ExtraAllowedIPs"))
    is_server = peer.text("Mode") == "server"
    networks = (*_option(peer, "AllowedIPs").texts("Value"), *extra) if is_server else extra
    addresses = () if is_server else tuple(map(_host, peer.texts("Addresses")))
    if not addresses:
        addresses, networks = networks, ()
    return NewPeer(
        peer.text("DisplayName"),
        peer.text("PublicKey") or peer.text("Identifier"),
        preshared_key,
        addresses,
        networks,
        (*setting("Expires", peer.time("ExpiresAt")), *(_of_server(peer) if is_server else _of_client(peer))),
        off=peer.flag("Disabled", default=False),
    )


def _of_server(peer: Fields) -> Iterator[Setting]:
    yield from setting("Endpoint", _option(peer, "Endpoint").text("Value"))
    yield from setting("PersistentKeepalive", _option(peer, "PersistentKeepalive").number("Value"))


def _of_client(peer: Fields) -> Iterator[Setting]:
    dns = (*_option(peer, "Dns").texts("Value"), *_option(peer, "DnsSearch").texts("Value"))
    yield from setting("ClientAllowedIPs", ", ".join(_option(peer, "AllowedIPs").texts("Value")))
    yield from setting("ClientDNS", ", ".join(dns))
    yield from setting("ClientMTU", _option(peer, "Mtu").number("Value"))
    yield from setting("ClientKeepalive", _option(peer, "PersistentKeepalive").number("Value"))


def _option(record: Fields, name: str) -> Fields:
    """Returns a setting that a peer may have from its interface: {"Value": …, "Overridable": …}."""
    return record.fields(name)


def _host(cidr: str) -> str:
    try:
        return str(ip_interface(cidr).ip)
    except ValueError:
        raise Unusable("an address of it is no address") from None


# --- rows of the database ----------------------------------------------------------------------------------


def _addresses(rows: Rows, table: str) -> dict[object, list[str]]:
    found: dict[object, list[str]] = {}
    for row in rows[f"{table}_addresses"]:
        found.setdefault(row.get(f"{table}_identifier"), []).append(str(row.get("cidr_cidr")))
    return found


def _interface_of(row: dict[str, Any], addresses: list[str]) -> dict[str, Any]:
    return {
        "Identifier": row.get("identifier"),
        "PrivateKey": row.get("private_key"),
        "Addresses": addresses,
        "ListenPort": row.get("listen_port"),
        "Mtu": row.get("mtu"),
        "FirewallMark": row.get("firewall_mark"),
        "RoutingTable": row.get("routing_table"),
        "Disabled": row.get("disabled") is not None,
        "SaveConfig": row.get("save_config"),
        "Dns": row.get("dns_str"),
        "DnsSearch": row.get("dns_search_str"),
        "PeerDefEndpoint": row.get("peer_def_endpoint"),
        "PeerDefAllowedIPs": row.get("peer_def_allowed_ips_str"),
        "PeerDefDns": row.get("peer_def_dns_str"),
        "PeerDefDnsSearch": row.get("peer_def_dns_search_str"),
        "PeerDefMtu": row.get("peer_def_mtu"),
        "PeerDefPersistentKeepalive": row.get("peer_def_persistent_keepalive"),
        **{hook: row.get(column) for hook, column in _COLUMNS.items()},
    }


def _peer_of(row: dict[str, Any], addresses: list[str]) -> dict[str, Any]:
    return {
        "Identifier": row.get("identifier"),
        "DisplayName": row.get("display_name"),
        "InterfaceIdentifier": row.get("interface_identifier"),
        "Disabled": row.get("disabled") is not None,
        "ExpiresAt": row.get("expires_at"),
        "Endpoint": {"Value": row.get("endpoint_v")},
        "AllowedIPs": {"Value": row.get("allowed_ips_str_v")},
        "ExtraAllowedIPs": row.get("extra_allowed_ips_str"),
        "PresharedKey": row.get("preshared_key"),
        "PersistentKeepalive": {"Value": row.get("persistent_keep_alive_v")},
        "PublicKey": row.get("public_key"),
        "PrivateKey": row.get("private_key"),
        "Notes": row.get("notes"),
        "UserIdentifier": row.get("user_identifier"),
        "FirewallMark": {"Value": row.get("iface_firewall_mark_v")},
        "RoutingTable": {"Value": row.get("iface_routing_table_v")},
        "Mode": row.get("iface_type"),
        "Addresses": addresses,
        "Dns": {"Value": row.get("iface_dns_str_v")},
        "DnsSearch": {"Value": row.get("iface_dns_search_str_v")},
        "Mtu": {"Value": row.get("iface_mtu_v")},
        **{hook: {"Value": row.get(f"iface_{column}_v")} for hook, column in _COLUMNS.items()},
    }


_COLUMNS: Final = {"PreUp": "pre_up", "PostUp": "post_up", "PreDown": "pre_down", "PostDown": "post_down"}
