"""Reports foreign routes that keep ours away or precede them, and replaces none.

IPv4 allows several routes of one prefix and metric, and the first holds. IPv6 allows two of different metrics. A route of a
greater metric, or a later one, stays behind ours. A narrow route, of one `tos` or from some addresses, precedes ours for
its packets; ours stays for the rest.
"""

from collections.abc import Callable, Generator, Iterable, Sequence

from host_service.ground import MAX_WARNINGS, Ground, NetworkRefused
from host_service.route_messages import USUAL_METRIC, Found, Route
from host_service.rules import MAIN
from stagewire.limits import ROUTE_PROTOCOL


class Rivals:
    """Holds the foreign routes beside one interface's own."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.settled = False
        """Whether all stood that was wanted at first: from then on, a taken prefix is left out and reported."""
        self.taken: dict[Route, str] = {}
        """Places that a foreign route has instead of ours, and its description."""
        self._narrow: dict[Route, str] = {}
        """Places where a foreign route precedes ours for some packets, and its description."""
        self._before: dict[Route, str] = {}
        """Networks of our addresses where a foreign route precedes the kernel's to us, and its description."""

    def __contains__(self, route: Route) -> bool:
        return route in self.taken or route in self._narrow

    def places(self) -> list[Route]:
        """Returns the places where foreign routes are known."""
        return [*self.taken, *self._narrow]

    def forget(self, route: Route) -> None:
        """Counts a place as free."""
        self.taken.pop(route, None)
        self._narrow.pop(route, None)

    def clear(self) -> None:
        """Counts all places as free."""
        self.taken.clear()
        self._narrow.clear()
        self._before.clear()

    def look(
        self,
        version: int,
        tables: Iterable[int],
        is_wanted: Callable[[Route], bool],
        is_network: Callable[[Route], bool],
    ) -> Generator[None, None, list[Route]]:
        """Looks for foreign routes at all places. Returns our routes that have no effect. Raises NetworkRefused.

        `is_network` tells whether a place is the network of an address of ours, which the kernel routes to us.
        """
        routes, index = self._ground.routes, self._ground.index
        suspects: dict[Route, None] = {}
        try:
            for table in tables:
                for found in routes.not_to(index, version, table):
                    for each in found:
                        place = (each.prefix, table)
                        if (each.link != index and is_network(place)) or (
                            (each.narrow or each.metric <= USUAL_METRIC[version]) and is_wanted(place)
                        ):
                            suspects[place] = None
                    yield
        except OSError as error:
            raise NetworkRefused(f"cannot read routes: {error.strerror}") from None
        vain: list[Route] = []
        if suspects:
            there = yield from self.at(version, suspects)
            networks = {place for place in suspects if is_network(place)}
            for place in networks:
                self._judge_network(place, there[place])
            vain = [route for route in suspects if route not in networks and self.judge(route, there[route])]
        self.say()
        return vain

    def at(self, version: int, routes: Iterable[Route]) -> Generator[None, None, dict[Route, list[Found]]]:
        """Returns all routes at some places, ours as well, in the order of precedence. Raises NetworkRefused."""
        there: dict[Route, list[Found]] = {route: [] for route in routes}
        try:
            for table in {table for _, table in there}:
                prefixes = {prefix for prefix, its in there if its == table}
                for found in self._ground.routes.of(version, table, prefixes):
                    for each in found:
                        there[each.prefix, table].append(each)
                    yield
        except OSError as error:
            raise NetworkRefused(f"cannot read routes: {error.strerror}") from None
        return there

    def judge(self, route: Route, there: Sequence[Found]) -> bool:
        """Finds what precedes our route at a place. Returns whether ours must go. Raises NetworkRefused."""
        version = route[0].version
        ours = next((at for at, each in enumerate(there) if self.is_ours(each)), len(there))
        others = [each for each in (there if version == 6 else there[:ours]) if not self.is_ours(each)]
        self.forget(route)
        for each in others:
            if not each.narrow and each.metric <= USUAL_METRIC[version]:
                self._take(route, each)
                return ours < len(there)
        narrow = [each.described() for each in others if each.narrow]
        if narrow:
            self._narrow[route] = narrow[0]
        return False

    def _judge_network(self, place: Route, there: Sequence[Found]) -> None:
        plain = [each for each in there if not each.narrow]
        to_us = [each.link == self._ground.index for each in plain]
        if any(to_us) and not to_us[0]:
            self._before[place] = plain[0].described()

    def is_ours(self, found: Found) -> bool:
        """Tells whether a route is this interface's own."""
        usual = not found.narrow and found.metric == USUAL_METRIC[found.prefix.version]
        return usual and found.link == self._ground.index and found.protocol == ROUTE_PROTOCOL

    def _take(self, route: Route, rival: Found) -> None:
        if not self.settled:
            where = "" if route[1] == MAIN else f" in table {route[1]}"
            raise NetworkRefused(
                f"route {route[0]} is taken{where}: {rival.described()}; remove that route, or the prefix from AllowedIPs"
            )
        self.taken[route] = rival.described()

    def say(self) -> None:
        """Warns of some foreign routes of each kind, and no longer of routes that are gone."""
        taken = {f"route {prefix}": f"is taken: {text}; ours is made when that route goes"
                 for (prefix, _), text in list(self.taken.items())[:MAX_WARNINGS]}  # fmt: skip
        narrow = {f"route {prefix}": f"does not hold for all packets: {text} precedes it for some"
                  for (prefix, _), text in list(self._narrow.items())[:MAX_WARNINGS]}  # fmt: skip
        before = {f"route {prefix}": f"is taken: {text}; packets for our address's network go there until that route goes"
                  for (prefix, _), text in list(self._before.items())[:MAX_WARNINGS]}  # fmt: skip
        named = {**before, **narrow, **taken}
        ground = self._ground
        for about in [each for each in ground.warnings if each.startswith("route ") and each not in named]:
            ground.warn(about, "")
        for about, text in named.items():
            ground.warn(about, f"{about} {text}")
