"""Works out what host-service makes of a configuration's exit, access rules and port forwards. Pure."""

import socket
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from stagewire.config import InterfaceConfig, PeerConfig, gateway
from stagewire.config.model import Forward, Reach
from stagewire.control.gateway import NO_RULES, AccessClass, Destination, GatewayRules, PortForward
from stagewire.proto import prefix

_PROTOCOLS: Final = {"": 0, "tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "icmp": socket.IPPROTO_ICMP}


def rules(interface: InterfaceConfig, peers: Iterable[PeerConfig]) -> GatewayRules:
    """Returns the rules of a configuration. `peers` are those in force, with their present allowed-IPs."""
    peers = tuple(peers)
    exits, access = interface.exit != "off", interface.access
    ports = tuple(_ports(interface, peers))
    restricts = any(not each.group for each in access.allow) or any(map(_is_restricted, peers))
    if not exits and not ports and not restricts and not interface.isolation:
        return NO_RULES
    versions = {each.version for each in interface.addresses} | {
        each.version for peer in peers for each in peer.allowed_ips
    }
    forwarded = versions if exits else {4 if len(each.address) == 4 else 6 for each in ports}
    masqueraded = {"on": {4, 6}, "routed-ipv6": {4}}.get(interface.exit, set())
    return GatewayRules(
        tuple(sorted(forwarded)),
        tuple(sorted(masqueraded & versions)),
        interface.isolation,
        interface.open_firewall,
        tuple(_classes(access.allow, peers)) if restricts else (),
        ports,
        bool(ports) and not exits,
    )


def _is_restricted(peer: PeerConfig) -> bool:
    return bool(peer.access.groups or peer.access.allow)


# --- access -------------------------------------------------------------------------------------------------


def _classes(common: tuple[Reach, ...], peers: Iterable[PeerConfig]) -> Iterator[AccessClass]:
    """Puts peers that may reach the same into one class."""
    for_all = [each for each in common if not each.group]
    members: dict[tuple[Destination, ...] | None, list[bytes]] = {}
    for peer in peers:
        allowed: tuple[Destination, ...] | None = None
        if for_all or _is_restricted(peer):
            of_groups = [each for each in common if each.group in peer.access.groups]
            allowed = tuple(dict.fromkeys(map(_destination, [*for_all, *of_groups, *peer.access.allow])))
        members.setdefault(allowed, []).extend(map(prefix.pack, peer.allowed_ips))
    for destinations, sources in members.items():
        yield AccessClass(tuple(sources), destinations is None, destinations or ())


def _destination(one: Reach) -> Destination:
    to = b"" if one.to is None else prefix.pack(one.to)
    return Destination(to, _PROTOCOLS[one.protocol], tuple(port for each in one.ports for port in each))


# --- port forwards ------------------------------------------------------------------------------------------


def _ports(interface: InterfaceConfig, peers: tuple[PeerConfig, ...]) -> Iterator[PortForward]:
    for forward in interface.access.forwards:
        if forward.to is not None:
            yield _port(interface, forward, forward.to, _owner(forward.to, peers))
    for peer in peers:
        for forward in peer.access.forwards:
            for address in gateway.own_addresses(peer.allowed_ips) if forward.to is None else [forward.to]:
                yield _port(interface, forward, address, peer)


def _port(
    interface: InterfaceConfig, forward: Forward, to: IPv4Address | IPv6Address, peer: PeerConfig | None
) -> PortForward:
    sends = (peer.client.allowed_ips if peer is not None else ()) or interface.client.allowed_ips
    keeps = any(each.prefixlen == 0 and each.version == to.version for each in sends)
    return PortForward(_PROTOCOLS[forward.protocol], forward.port, to.packed, forward.to_port, keeps)


def _owner(address: IPv4Address | IPv6Address, peers: Iterable[PeerConfig]) -> PeerConfig | None:
    """Returns the peer with the longest prefix of an address."""
    at = ((each.prefixlen, peer) for peer in peers for each in peer.allowed_ips if address in each)
    return max(at, key=lambda found: found[0], default=(0, None))[1]
