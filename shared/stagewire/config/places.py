"""Warns of endpoints and prefixes that can't be a peer's: this gateway's own, no host's, or inside the tunnel itself."""

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from stagewire.config.drafts import InterfaceDraft, PeerDraft
from stagewire.config.findings import Findings
from stagewire.config.model import HostPort

_BROADCAST: Final = IPv4Address("255.255.255.255")
_ITSELF: Final = "is this gateway itself: give the peer's own address and port"
_Address = IPv4Address | IPv6Address


def check(drafts: Iterable[PeerDraft], interface: InterfaceDraft, findings: Findings) -> None:
    """Looks at each [Peer]."""
    own = {address.ip: line for line, address in interface.addresses}
    for draft in drafts:
        for line, added, prefix in draft.allowed_ips:
            if added and prefix.prefixlen == prefix.max_prefixlen and prefix.network_address in own:
                given = f"the Address in line {own[prefix.network_address]}"
                what = f"{prefix} of this [Peer] is this gateway's own, {given}: nothing goes to the peer there"
                findings.warning(line, what)
        if draft.endpoint is not None and (fault := _fault(draft, draft.endpoint, interface, own)):
            findings.warning(draft.lines["Endpoint"], f"Endpoint {draft.endpoint} {fault}")


def _fault(draft: PeerDraft, endpoint: HostPort, interface: InterfaceDraft, own: Collection[_Address]) -> str:
    """Tells what is wrong with an endpoint; empty if nothing is."""
    clients = interface.client_endpoint
    if clients is not None and (endpoint.host.lower(), endpoint.port) == (clients.host.lower(), clients.port):
        return _ITSELF
    try:
        address = ip_address(endpoint.host.partition("%")[0])
    except ValueError:  # a name, which is looked up later
        return ""
    if address.is_unspecified or address == _BROADCAST:
        return "is no host's address: nothing is ever sent to this [Peer] there"
    if address.is_multicast:
        return "is a multicast address, which no host has"
    if endpoint.port == interface.listen_port and (address in own or address.is_loopback):
        return _ITSELF
    prefixes = [prefix for _, added, prefix in draft.allowed_ips if added and prefix.prefixlen]
    # With Table = off or a mark, the operator's own rules may lead outside.
    routed = interface.table != "off" and not interface.fwmark
    inside = next((prefix for prefix in prefixes if address in prefix), None) if routed else None
    if inside is not None:
        return f"lies in {inside}, which this [Peer] has inside the tunnel: give its address outside"
    return ""
