"""Tells in lines for the operator how two configurations differ. No line holds a secret."""

from collections.abc import Container, Iterable, Iterator
from itertools import chain

from stagewire.config import gateway
from stagewire.config.keys import NO_KEY, encode_key, public_key
from stagewire.config.model import Access, ClientSettings, InterfaceConfig, PeerConfig
from stagewire.config.peer_names import label
from stagewire.config.values import as_quota, as_rate, as_time

_HOOKS = {"pre_up": "PreUp", "post_up": "PostUp", "pre_down": "PreDown", "post_down": "PostDown"}
_AT_NEXT_UP = "  (runs at the next up)"


def difference(
    before: InterfaceConfig,
    after: InterfaceConfig,
    *,
    off_before: Container[bytes] = (),
    off_after: Container[bytes] = (),
) -> list[str]:
    """Returns a line for each removal (-), addition (+) and change (~). `off_…` has peers that are out of use, not gone."""
    return [*_of_interface(before, after), *_of_peers(before, after, off_before, off_after)]


def rotation(before: PeerConfig, after: PeerConfig) -> Iterator[str]:
    """Yields the lines of a peer that has other keys."""
    yield f"~ peer {title(before)}"
    yield f"    ~ PublicKey {encode_key(before.public_key)} -> {encode_key(after.public_key)}"
    yield from (f"    {line}" for line in _of_peer(before, after))


def _of_private_key(before: bytes | None, after: bytes | None) -> Iterator[str]:
    if not before or not after:
        if before != after:
            yield _there("PrivateKey", after)
    elif public_key(before) != public_key(after):  # a curve overlooks some bits of a private key
        yield "~ PrivateKey is another"


def _of_interface(before: InterfaceConfig, after: InterfaceConfig) -> Iterator[str]:
    yield from _of_private_key(before.private_key, after.private_key)
    yield from _value("ListenPort", before.listen_port, after.listen_port)
    yield from _value("FwMark", before.fwmark or None, after.fwmark or None)
    yield from _list("Address", map(str, before.addresses), map(str, after.addresses))
    yield from _list("DNS", before.dns, after.dns)
    yield from _value("MTU", before.mtu, after.mtu)
    yield from _value("Table", before.table, after.table)
    for name, key in _HOOKS.items():
        note = _AT_NEXT_UP if name in {"pre_up", "post_up"} else ""
        yield from (line + note for line in _list(key, getattr(before, name), getattr(after, name)))
    yield from _value("SaveConfig", before.save_config, after.save_config)
    yield from _value("RekeyAfterTime", before.rekey_after_time, after.rekey_after_time)
    yield from _value("ClientEndpoint", before.client_endpoint, after.client_endpoint)
    yield from _of_client(before.client, after.client)
    yield from _value("Exit", before.exit, after.exit)
    yield from _value("Isolation", before.isolation, after.isolation)
    yield from _value("Firewall", _firewall(before), _firewall(after))
    yield from _of_access(before.access, after.access)


def _of_peers(
    before: InterfaceConfig, after: InterfaceConfig, off_before: Container[bytes], off_after: Container[bytes]
) -> Iterator[str]:
    old = {peer.public_key: peer for peer in before.peers}
    new = {peer.public_key: peer for peer in after.peers}
    for key, peer in old.items():
        if key not in new and key in off_after:
            yield switched(peer, on=False)
        elif key not in new:
            yield f"- peer {title(peer)}{_summary(peer)}"
    for key, peer in new.items():
        known = old.get(key)
        if known is None and key in off_before:
            yield switched(peer, on=True)
        elif known is None:
            yield f"+ peer {title(peer)}{_summary(peer)}"
        elif (known != peer or known.name != peer.name) and (changes := list(_of_peer(known, peer))):
            yield f"~ peer {title(known if known.name else peer)}"
            yield from (f"    {change}" for change in changes)


def _of_peer(before: PeerConfig, after: PeerConfig) -> Iterator[str]:
    yield from _value("Name", before.name or None, after.name or None)
    psk = before.preshared_key, after.preshared_key
    if psk[0] != psk[1]:
        yield _there("PresharedKey", any(psk[1])) if NO_KEY in psk else "~ PresharedKey is another"
    yield from _list("AllowedIPs", map(str, before.allowed_ips), map(str, after.allowed_ips))
    yield from _value("Endpoint", before.endpoint, after.endpoint)
    yield from _value("PersistentKeepalive", before.persistent_keepalive or None, after.persistent_keepalive or None)
    yield from _value("ResponseTimestamp", before.response_timestamp, after.response_timestamp)
    yield from _value("Expires", _time(before), _time(after))
    yield from _value("Rate", _rate(before), _rate(after))
    yield from _value("Quota", _quota(before), _quota(after))
    yield from _of_client(before.client, after.client)
    yield from _of_access(before.access, after.access)


def switched(peer: PeerConfig, *, on: bool) -> str:
    """Says that a peer is in use again, or no more."""
    return f"~ peer {title(peer)} is {'in use' if on else 'out of use'}"


def title(peer: PeerConfig) -> str:
    """Names a peer in a line about a change."""
    key = encode_key(peer.public_key)
    return label(key, peer.name) if peer.name else key


def _of_client(before: ClientSettings, after: ClientSettings) -> Iterator[str]:
    yield from _list("ClientAllowedIPs", map(str, before.allowed_ips), map(str, after.allowed_ips))
    yield from _list("ClientDNS", before.dns, after.dns)
    yield from _value("ClientMTU", before.mtu, after.mtu)
    yield from _value("ClientKeepalive", before.keepalive, after.keepalive)


def _of_access(before: Access, after: Access) -> Iterator[str]:
    was, now = gateway.words(before), gateway.words(after)
    for key, words in was.items():
        yield from _list(key, words, now[key])


def _firewall(interface: InterfaceConfig) -> str:
    return "open" if interface.open_firewall else "closed"


def _time(peer: PeerConfig) -> str | None:
    return None if peer.expires is None else as_time(peer.expires)


def _rate(peer: PeerConfig) -> str | None:
    return as_rate(peer.limits.rate_to, peer.limits.rate_from) if peer.limits.rate_to else None


def _quota(peer: PeerConfig) -> str | None:
    return as_quota(peer.limits.quota) if peer.limits.quota else None


def _summary(peer: PeerConfig) -> str:
    """Says all of a peer but its keys: of a removed peer, nothing else remains."""
    access = gateway.words(peer.access)
    client = peer.client
    said = {
        "AllowedIPs": ", ".join(map(str, peer.allowed_ips)),
        "Endpoint": peer.endpoint,
        "PersistentKeepalive": peer.persistent_keepalive,
        "Expires": _time(peer),
        "Rate": _rate(peer),
        "Quota": _quota(peer),
        **{key: "; ".join(words) for key, words in access.items()},
        "ClientAllowedIPs": ", ".join(map(str, client.allowed_ips)),
        "ClientDNS": ", ".join(client.dns),
        "ClientMTU": client.mtu,
        "ClientKeepalive": None if client.keepalive is None else str(client.keepalive),
        "ResponseTimestamp": str(peer.response_timestamp).lower() if peer.response_timestamp else None,
    }
    return "".join(f"  {key} {value}" for key, value in said.items() if value not in (None, "", 0))


def _there(key: str, there: object) -> str:
    return f"+ {key}" if there else f"- {key}"


def _value(key: str, before: object, after: object) -> Iterator[str]:
    if before == after:
        return
    if before is None:
        yield f"+ {key} {_word(after)}"
    elif after is None:
        yield f"- {key} {_word(before)}"
    else:
        yield f"~ {key} {_word(before)} -> {_word(after)}"


def _word(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return str(value)


def _list(key: str, before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    old, new = dict.fromkeys(before), dict.fromkeys(after)
    gone = (f"- {key} {word}" for word in old if word not in new)
    yield from chain(gone, (f"+ {key} {word}" for word in new if word not in old))
