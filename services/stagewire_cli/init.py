"""Makes the file of a new gateway, for `stagewire init`: a key, networks, a free port, and where clients find it."""

import errno
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface
from pathlib import Path
from typing import Final

from stagewire import config
from stagewire.config import ConfigError, HostPort, Network, encode_key, odd_networks, values
from stagewire.limits import DEFAULT_PORT
from stagewire_cli import neighbours, output_files
from stagewire_cli.failures import Failed

_PORTS: Final = 100
_KEEPALIVE: Final = 25
"""s; keeps the way through a NAT open (wg(8))."""
_EVERYTHING: Final = "0.0.0.0/0, ::/0"
_USUAL: Final = tuple(IPv4Network((0x0A000000 | second << 16, 24)) for second in (8, 13, 66, 77, 88, 99, 111, 122, 133))
"""10.8.0.0/24 and others: the first that no route of this host touches."""


def make(
    path: Path,
    endpoint: str | None,
    network: str | None,
    dns: str | None,
    port: int | None,
    ask: Callable[..., str] | None,
    *,
    exits: bool,
) -> tuple[int, HostPort]:
    """Writes the file of a new gateway; returns its port, and where clients find it. Raises Failed.

    `ask` asks the operator for what is None until `check` takes the answer; without `ask`, a suggestion counts. `exits`:
    the gateway passes clients' packets on to everywhere.
    """
    if os.path.lexists(path):
        raise Failed(f"{path} exists already, and stays as it is: take another name")
    others = neighbours.ports(path)
    if port in others:
        raise Failed(f"--port {port} is the ListenPort of {others[port]}: give another")
    port = port or free_port(others)
    found = own_address()
    if endpoint is None:
        where = "Address or name where clients find this gateway"
        endpoint = ask(where, check=partial(place_of, port=port), default=found) if ask else found
    if endpoint is None:
        raise Failed("this host has no route to others: say with --endpoint where clients find it")
    place = place_of(endpoint, port)
    own_networks = partial(_networks, place=place, path=path)
    if network is None:
        suggested = ", ".join(map(str, networks(path)))
        network = ask("Networks of the tunnel", check=own_networks, default=suggested) if ask else suggested
    own = own_networks(network)
    if dns is None:
        servers = "DNS servers of the clients, if any"
        dns = ask(servers, check=_servers, default="", show_default=False) if ask else ""
    text = _text(own, port, place, _servers(dns), exits=exits)
    try:
        config.parse_text(text, path, strict=True)
    except ConfigError as error:
        raise Failed(error.mistakes[0].message) from None
    write(path, text)
    return port, place


def _expect_free(own: tuple[Network, ...], place: HostPort, path: Path) -> None:
    """Raises Failed for a network that is another's, or in which the gateway's own endpoint lies."""
    taken = [*neighbours.networks(path)]
    for network in own:
        if (other := neighbours.forbidding(taken, network)) is not None:
            raise Failed(f"--network {network} overlaps {other.network} {other.by}: give another")
        if values.is_literal(place.host) and ip_address(place.host.partition("%")[0]) in network:
            raise Failed(
                f"--network {network} has the address {place.host} where clients find the gateway: give another"
            )


def own_address() -> str | None:
    """Returns the address by which this host reaches others, if it has any; sends nothing."""
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
    return None


def free_port(others: Container[int] = ()) -> int:
    """Returns the first UDP port from DEFAULT_PORT on that no program here uses and no file names. Raises Failed."""
    for port in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS):
        if port not in others and is_free(port):
            return port
    raise Failed(f"no UDP port from {DEFAULT_PORT} to {DEFAULT_PORT + _PORTS - 1} is free: give --port")


def is_free(port: int) -> bool:
    """Tells whether no program here uses a UDP port."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("::", port))
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind(("", port))
                return True
        return False
    return True


def networks(path: Path) -> tuple[Network, ...]:
    """Returns an IPv4 network that no route of this host and no other file touches, and a random IPv6 one (RFC 4193)."""
    taken = [each.network for each in neighbours.networks(path) if each.network.version == 4]
    four = next((each for each in _USUAL if not any(each.overlaps(other) for other in taken)), None)
    if four is None:
        raise Failed("routes of this host touch every network that would do: give --network")
    return four, IPv6Network((0xFD << 120 | secrets.randbits(40) << 80, 64))


def _text(own: tuple[Network, ...], port: int, endpoint: HostPort, dns: tuple[str, ...], *, exits: bool) -> str:
    """Returns the file of a new gateway. Each network's first address is the gateway's."""
    addresses = ", ".join(str(ip_interface((network.network_address + 1, network.prefixlen))) for network in own)
    lines = [
        "[Interface]",
        f"PrivateKey = {encode_key(config.generate_private_key(os.urandom(32)))}",
        f"Address = {addresses}",
        f"ListenPort = {port}",
        f"# stagewire: ClientEndpoint = {endpoint}",
        *([f"# stagewire: ClientDNS = {', '.join(dns)}"] if dns else []),
        f"# stagewire: ClientKeepalive = {_KEEPALIVE}",
        *(["# stagewire: Exit = on", f"# stagewire: ClientAllowedIPs = {_EVERYTHING}"] if exits else []),
    ]
    return "".join(f"{line}\n" for line in lines)


def oddities(network: str | None, path: Path, place: HostPort) -> Iterator[str]:
    """Yields what may surprise the operator of a new file. `network` is what was typed for --network."""
    made = config.load(path)
    for typed in values.split_words(network) if network else ():
        address, network_of_it = ip_interface(typed).ip, ip_interface(typed).network
        own = next(each.ip for each in made.addresses if each.network == network_of_it)
        if address not in (network_of_it.network_address, own):
            yield f"--network {typed} is taken as {network_of_it}, and the gateway's own address is {own}"
    for each in made.addresses:
        if each.version == 4 and each.is_global:
            yield f"{each.network} belongs to hosts of the internet, which neither the gateway nor its clients reach then"
    if values.is_literal(place.host):
        address = ip_address(place.host.partition("%")[0])
        if address.is_loopback:
            yield f"{place.host} is this host's own loopback: clients elsewhere don't find the gateway there"
        elif address.is_private:
            yield f"{place.host} is a private address: clients outside of its network need another --endpoint"


def place_of(said: str, port: int) -> HostPort:
    """Reads where clients find the gateway: HOST or HOST:PORT. Raises Failed."""
    try:
        place = _place(said, port)
    except ValueError:
        raise Failed(
            f"{values.shown(said)} is no place of a gateway: give an address or a name, or one with :PORT"
        ) from None
    address = ip_address(place.host.partition("%")[0]) if values.is_literal(place.host) else None
    if address is not None and (address.is_unspecified or address.is_multicast):
        raise Failed(f"{place.host} is no address that a client can call: give the gateway's own")
    return place


def _place(said: str, port: int) -> HostPort:
    with suppress(ValueError):
        return values.endpoint(said)
    return values.endpoint(f"[{said}]:{port}" if ":" in said and values.is_literal(said) else f"{said}:{port}")


def _networks(said: str, place: HostPort, path: Path) -> tuple[Network, ...]:
    """Reads the networks of --network. Raises Failed."""
    try:
        found = values.networks(said)
    except ValueError as error:
        raise Failed(f"--network {error}") from None
    if len({network.version for network in found}) < len(found):
        raise Failed("--network takes one network of each family")
    for network in found:
        if why := odd_networks.of_no_tunnel(network):
            raise Failed(f"--network {network} {why}: give one such as 10.8.0.0/24")
        if network.num_addresses < 4:
            raise Failed(f"--network {network} has no room for clients: give a larger one, such as 10.8.0.0/24")
    _expect_free(found, place, path)
    return found


def _servers(said: str) -> tuple[str, ...]:
    """Reads the servers of --dns. Raises Failed."""
    try:
        return values.servers(said) if said else ()
    except ValueError as error:
        raise Failed(f"--dns {error}") from None


def write(path: Path, said: str) -> None:
    """Writes a new file. Raises Failed; an existing file stays."""
    config.parse_text(said, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"{path.parent}: {error.strerror}; nothing is changed") from None
    output_files.write(path, said.encode("utf-8", "surrogateescape"))


def firewall_hints(port: int) -> list[str]:
    """Says what to open in this host's firewall, by the command of each firewall that is in use."""
    hints = []
    if _says("ufw", "status").startswith("Status: active"):
        hints.append(f"ufw allow {port}/udp")
    if _says("firewall-cmd", "--state").startswith("running"):
        hints.append(f"firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload")
    return hints


def _says(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        return ""
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, errors="replace", timeout=10, check=False
        ).stdout
    return ""
