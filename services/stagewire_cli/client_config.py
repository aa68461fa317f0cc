"""Makes the configuration of a client: what its own wg-quick, or an app that reads the QR code, needs."""

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

from stagewire.config import HostPort, InterfaceConfig, Network, PeerConfig, encode_key, public_key
from stagewire_cli.failures import Failed

PLACEHOLDER: Final = "PUT-THE-PRIVATE-KEY-HERE"
"""Stands where only the client knows the key."""
EVERYTHING: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_QR_BYTES: Final = 2953
"""Bytes that a QR code of the largest version holds (ISO/IEC 18004, level L)."""


def text(interface: InterfaceConfig, peer: PeerConfig, private_key: bytes | None, gateway: HostPort | None) -> str:
    """Returns a client's file. Raises Failed if the gateway's file doesn't say enough."""
    place = endpoint(interface, gateway)
    if interface.private_key is None:
        raise Failed("the file has no PrivateKey, so the gateway's public key isn't known")
    ours, theirs = interface.client, peer.client
    keepalive = ours.keepalive if theirs.keepalive is None else theirs.keepalive
    lines = [
        "[Interface]",
        *([f"# Name = {peer.name}"] if peer.name else []),
        f"PrivateKey = {encode_key(private_key) if private_key else PLACEHOLDER}",
        f"Address = {_joined(addresses(interface, peer))}",
        *_line("DNS", ", ".join(theirs.dns or ours.dns)),
        *_line("MTU", theirs.mtu or ours.mtu),
        "",
        "[Peer]",
        f"PublicKey = {encode_key(public_key(interface.private_key))}",
        *_line("PresharedKey", encode_key(peer.preshared_key) if any(peer.preshared_key) else ""),
        f"AllowedIPs = {_joined(theirs.allowed_ips or ours.allowed_ips or inside(interface))}",
        f"Endpoint = {place}",
        *_line("PersistentKeepalive", keepalive),
    ]
    return "".join(f"{line}\n" for line in lines)


def endpoint(interface: InterfaceConfig, gateway: HostPort | None) -> HostPort:
    """Returns where clients find the gateway: `gateway`, or what the file says. Raises Failed if neither says it."""
    found = gateway or interface.client_endpoint
    if found is None:
        raise Failed(
            "the file doesn't say where clients find this gateway: add `# stagewire: ClientEndpoint = HOST:PORT` to its "
            "[Interface], or give --gateway HOST:PORT"
        )
    return found


def addresses(interface: InterfaceConfig, peer: PeerConfig) -> tuple[Network, ...]:
    """Returns a client's own addresses: those of its allowed-IPs that are single; in our networks, if any are."""
    single = [prefix for prefix in peer.allowed_ips if prefix.num_addresses == 1]
    near = [each for each in single if any(each.network_address in own.network for own in interface.addresses)]
    if not single:
        raise Failed(
            f"peer {peer.name or encode_key(peer.public_key)} has no address of its own in its AllowedIPs: "
            "`stagewire peer set --allowed-ips` gives it one"
        )
    return tuple(near or single)


def inside(interface: InterfaceConfig) -> tuple[Network, ...]:
    """Returns the networks of our own addresses."""
    return tuple(dict.fromkeys(address.network for address in interface.addresses))


def without(networks: Iterable[Network], excluded: Iterable[Network]) -> tuple[Network, ...]:
    """Returns networks that cover all of `networks` but `excluded`."""
    left = list(networks)
    for gone in excluded:
        left = [part for network in left for part in _minus(network, gone)]
    return tuple(sorted(left, key=lambda network: (network.version, network)))


def _minus(network: Network, gone: Network) -> Iterable[Network]:
    if network.version != gone.version or not network.overlaps(gone):
        return [network]
    if network.prefixlen >= gone.prefixlen:
        return []
    return network.address_exclude(gone)  # type: ignore[arg-type]


def qr(text: str, columns: int | None = None) -> str:
    """Draws a QR code for a terminal, two rows of modules to a line. Raises Failed if there is no room for it."""
    import segno

    if len(text.encode()) > _QR_BYTES:
        raise Failed(f"the configuration has more than {_QR_BYTES} bytes, too many for a QR code: use --output")
    import io

    code = segno.make(text, error="l", boost_error=False, micro=False)
    width, _ = code.symbol_size()
    if columns is not None and columns < width:
        mend = "widen it, and `stagewire peer rotate` shows one for new keys"
        raise Failed(f"the QR code needs {width} columns, and this terminal has {columns}: {mend}")
    out = io.StringIO()
    code.terminal(out, compact=True)
    return out.getvalue()


def _joined(networks: Iterable[Network]) -> str:
    return ", ".join(map(str, networks))


def _line(key: str, value: object) -> list[str]:
    return [f"{key} = {value}"] if value else []
