"""Says why a peer can't have a name, a key, a prefix or a port: another has it, or nobody should.

Each function raises Refused, whose text is what the operator reads.
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from types import MappingProxyType

from stagewire.config import gateway, keys, odd_networks, peer_names, published, values
from stagewire.config.model import Network, PeerConfig
from stagewire.config.roster import Refused, Roster


def names_of(before: Roster, but: PeerConfig | None = None) -> dict[str, str]:
    """Returns the label of each peer by its folded name."""
    return {
        peer_names.folded(peer.name): before.label(peer.public_key)
        for peer in before.whole.peers
        if peer is not but and peer.name
    }


def check_name(name: str, others: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raises Refused for a text that can't be a peer's name, or is that of one of `others`: labels by folded names."""
    if not name or name != peer_names.cleaned(name):
        letters = f"1 to {peer_names.MAX_NAME} letters that can be shown"
        raise Refused(f"{values.shown(name)} is no peer's name, which has {letters}, without spaces at its ends")
    if values.MAYBE_KEY.search(name):
        raise Refused("a peer's name must not look like a key: put a space or a hyphen after 19 letters at most")
    if (label := others.get(peer_names.folded(name))) is not None:
        raise Refused(f"peer {label} has the name already: take another, or `stagewire peer remove` it first")


def public_key(text: str, known: Iterable[bytes], before: Roster) -> bytes:
    try:
        key = keys.decode_key(text)
    except ValueError as error:
        raise Refused(f"the public key {error}") from None
    own = before.whole.private_key
    if key in known:
        label = before.label(key) if key in before.peers else text
        raise Refused(f"peer {label} has this public key already")
    if own is not None and key == keys.public_key(own):
        raise Refused("this is the gateway's own public key: give the peer's")
    if where := published.where_published(key):
        raise Refused(f"the public key is {where}: give the peer's own")
    if keys.is_low_order(key):
        raise Refused("the public key is a point of low order, with which nothing can be kept secret")
    return key


def preshared_key(text: str) -> bytes:
    if not text:
        return keys.NO_KEY
    try:
        key = keys.decode_key(text)
    except ValueError as error:
        raise Refused(f"the pre-shared key {error}") from None
    if where := published.where_published(key):
        raise Refused(f"the pre-shared key is {where}")
    return key


def check_prefix(before: Roster, prefix: Network, owners: Mapping[Network, bytes]) -> None:
    owner = owners.get(prefix)
    if owner is not None:
        name = before.label(owner) if owner in before.peers else keys.encode_key(owner)
        raise Refused(f"{prefix} belongs to peer {name}")
    if any(prefix == ip_network(each.ip) for each in before.whole.addresses):
        raise Refused(f"{prefix} is the gateway's own address")
    if why := odd_networks.of_no_peer(prefix, before.whole):
        raise Refused(f"{prefix} {why}: give another")


Ports = dict[tuple[str, int, int], tuple[object, str]]
"""Where each port of the gateway leads, and whose it is, by protocol, port and family."""


def ports_of(before: Roster, but: PeerConfig | None = None) -> Ports:
    found: Ports = {}
    for each in before.whole.access.forwards:
        for version, target in gateway.targets(each, ()).items():
            found[each.protocol, each.port, version] = target, f"{gateway.forward_text(each)} in [Interface]"
    for peer in before.whole.peers:
        if peer is not but:
            found |= ports_of_peer(peer, f"peer {before.label(peer.public_key)}")
    return found


def ports_of_peer(peer: PeerConfig, label: str) -> Ports:
    return {
        (each.protocol, each.port, version): (target, label)
        for each in peer.access.forwards
        for version, target in gateway.targets(each, peer.allowed_ips).items()
    }


def check_forwards(peer: PeerConfig, others: Ports) -> None:
    """Raises Refused for a port that leads elsewhere already."""
    own: dict[tuple[str, int, int], object] = {}
    for each in peer.access.forwards:
        for version, target in gateway.targets(each, peer.allowed_ips).items():
            claim = each.protocol, each.port, version
            if claim in others and others[claim][0] != target:
                raise Refused(
                    f"{each.protocol} {each.port} is forwarded to {others[claim][1]} already: take another port"
                )
            if own.setdefault(claim, target) != target:
                raise Refused(f"Forward of {each.protocol} {each.port} leads to two places: leave one of both out")
