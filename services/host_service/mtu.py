"""Derives the MTU from the routes to the peers, nearly as wg-quick(8) does: the greatest, less the tunnel's overhead."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from host_service.route_messages import RouteSocket
from stagewire.limits import DEFAULT_MTU, MIN_MTU_IPV6, TUNNEL_OVERHEAD

_LEAST: Final = 576


def derived(ways: Iterable[tuple[int, int]], mtu_of: Callable[[int], int], ours: int, *, ipv6: bool) -> int:
    """Returns the MTU for ways of (interface, MTU or 0). `ours` is the tunnel's own interface, which counts as no way."""
    found = [mtu or mtu_of(link) for link, mtu in ways if link != ours]
    greatest = max(found, default=0)
    if not greatest:
        return DEFAULT_MTU
    return min(DEFAULT_MTU, max(greatest - TUNNEL_OVERHEAD, MIN_MTU_IPV6 if ipv6 else _LEAST))


def ways(routes: RouteSocket, endpoints: Iterable[str], mark: int) -> list[tuple[int, int]]:
    """Returns (interface, MTU or 0) of the ways to the endpoints; without any, of the default routes."""
    found: list[tuple[int, int]] = []
    for endpoint in endpoints:
        with suppress(OSError, ValueError):
            found.append(routes.way(ip_address(endpoint.partition("%")[0]).packed, mark))
    if not found:
        with suppress(OSError):
            found = list(routes.default_ways())
    return found
