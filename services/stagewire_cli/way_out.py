"""Finds by which way this host would send to a peer's endpoint, and what stands in that way. Sends nothing."""

import errno
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from stagewire_cli import ping
from stagewire_cli.host_facts import Links, asked

_PING_WITHIN: Final = 0.5


@dataclass(frozen=True, slots=True)
class WayOut:
    """Describes the way to an endpoint. `error` is the errno with which the kernel refuses it, 0 for none.

    `kind` is as `ip route get` says: unicast, local, broadcast, multicast; unspecified for 0.0.0.0 and ::.
    """

    kind: str = "unicast"
    error: int = 0
    device: str = ""
    via: str = ""
    """The next router; empty if the host is on the link, or the way isn't known."""
    carrier: bool = True
    silent: bool = False
    """The next hop has not answered when this host asked for its link address."""
    fixed: str = ""
    """The link address of the next hop, if it was set by hand."""
    hop_answers: bool = True
    """The next hop answers pings, as far as they were tried."""
    down: tuple[str, ...] = ()
    """Links of this host that are set down or have no carrier, if there is no way."""


def look(place: str, mark: int, links: Links) -> WayOut | None:
    """Looks at the way to `address:port`, with the mark of our datagrams; None without a place."""
    host = host_of(place)
    try:
        ip_address(host)
    except ValueError:
        return None
    error = error_of(place, mark)
    kind = kind_of(host)
    words = ("mark", str(mark)) if mark else ()
    found = asked("ip", "-j", "route", "get", host, *words)
    if not found:
        return WayOut(kind, error, down=tuple(links.idle()) if error else ())
    route = found[0]
    kind = route.get("type", "unicast") if kind == "unicast" else kind
    device, via = route.get("dev", ""), route.get("gateway", "") or (route.get("via") or {}).get("host", "")
    states, address = _neighbour(device, via or host)
    silent, fixed = bool({"FAILED", "INCOMPLETE"} & states), address if "PERMANENT" in states else ""
    return WayOut(kind, error, device, via, links.carries(device), silent, fixed)


def hop_answers(way: WayOut, host: str) -> bool:
    """Pings the next hop towards a host once."""
    try:
        return ping.answered(ip_address(way.via or host), way.device, ping.SMALL, _PING_WITHIN)
    except OSError:
        return True  # it can't be told


def kind_of(host: str) -> str:
    """Tells what kind of address an address is by itself: unspecified, multicast, broadcast or unicast."""
    address = ip_address(host)
    if str(address) == "255.255.255.255":
        return "broadcast"
    return "unspecified" if address.is_unspecified else "multicast" if address.is_multicast else "unicast"


def is_ourselves(place: str, port: int, links: Links) -> bool:
    """Tells whether an endpoint is an address of this host with our own port."""
    host, _, to = place.rpartition(":")
    with suppress(ValueError):
        address = ip_address(host.strip("[]").partition("%")[0])
        return int(to) == port and (address.is_unspecified or links.is_own(str(address)))
    return False


def error_of(place: str, mark: int) -> int:
    """Returns the errno that a datagram to a place would meet. To connect a UDP socket looks for the route alone."""
    host, _, port = place.rpartition(":")
    host, _, zone = host.strip("[]").partition("%")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as opened:
            if mark:
                with suppress(PermissionError):
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            scope: tuple[Any, ...] = (0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)) if zone else ()
            opened.connect((host, int(port), *scope))
    except OSError as error:
        return error.errno or 0
    except ValueError:
        return errno.EINVAL
    return 0


def _neighbour(device: str, hop: str) -> tuple[set[str], str]:
    """Returns what the kernel knows of the next hop: its states, and its link address."""
    found = asked("ip", "-j", "neigh", "show", "to", hop, "dev", device) if device and device != "lo" else None
    return {state for each in found or () for state in each.get("state", ())}, found[0].get(
        "lladdr", ""
    ) if found else ""


def host_of(place: str) -> str:
    """Returns the address of `address:port`."""
    return place.rpartition(":")[0].strip("[]").partition("%")[0] if ":" in place else place
