"""Makes the host as wanted, and mends what other programs undo.

The order lets no packet of the tunnel out in clear at any moment:

    the interface, down │ nftables, sysctl │ rules │ guard routes │ addresses, MTU, up │ routes

The sockets get their mark before the rules stand. When the number changes, the new rules let both marks pass. Then the
sockets get the new mark, the nftables table follows, and the old number's rules go last.

host-service compares everything when it begins, when the settings change, and when the kernel lost reports. After any other
report it mends the reported part, DEBOUNCE later. It waits at least REST between repairs, as another manager may undo our
changes again and again.
"""

import gc
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Final

from host_service import mtu
from host_service.device import Device
from host_service.gateway import Gateway
from host_service.ground import Ground, NetworkRefused, Wanted
from host_service.ledger import Settled, Unwritten
from host_service.policy import Policy
from host_service.route_messages import Found, Network
from host_service.routes import Routes
from host_service.rules import MAIN
from host_service.watch import Watched
from stagewire.limits import MIN_MTU_IPV6, ROUTE_PROTOCOL
from stagewire.linux import links
from stagewire.linux.links import Link
from stagewire.linux.nft_names import gateway_table_of, table_of
from stagewire.loop import boot_time

BUDGET: Final = 0.001
"""s of work in one turn; packets then get as long. Longer turns let packets grow too old."""
DEBOUNCE: Final = 0.05
"""s from a report to the repair."""
DEBOUNCE_MTU: Final = 0.25
"""s from a report to a look at the MTU; a routing daemon changes something all the time."""
DEBOUNCE_PASSES: Final = 0.5
"""s from a report to a look at other nftables tables, which some programs change all the time."""
REST: Final = 0.8
"""s between two repairs; each change is mended within a second."""
ALL, RULES, FIREWALL, SYSCTL, MTU, ROUTES = "all", "rules", "firewall", "sysctl", "mtu", "routes"
GATEWAY, PASSES = "gateway", "passes"
"""The parts to look at."""


_DEBOUNCES: Final = {MTU: DEBOUNCE_MTU, PASSES: DEBOUNCE_PASSES}


class HostNetwork(Watched):
    """Changes the host for one interface. `on_settled` gets the reason why a part failed, or nothing."""

    def __init__(
        self,
        ground: Ground,
        clones: list[int],
        prefixes: dict[Network, None],
        on_settled: Callable[[str], None],
        on_news: Callable[[], None],
        on_link: Callable[[Link], None],
        on_mark: Callable[[], None],
    ) -> None:
        """Keeps `prefixes`, all wanted prefixes, which the caller changes in place.

        `on_news` hears that there is something to report. `on_mark` marks our datagrams with the chosen number, before a
        default route can catch them; it may raise OSError.
        """
        self._ground = ground
        self._prefixes = prefixes
        self._on_settled, self._on_news, self._on_link, self._on_mark = on_settled, on_news, on_link, on_mark
        self.before_nft: Callable[[], None] = lambda: None
        self.after_nft: Callable[[], None] = lambda: None
        self.device = Device(ground, clones)
        self.policy = Policy(ground)
        self.gateway = Gateway(ground)
        self.routes = Routes(ground, prefixes)
        self.routes.rivals.settled = Settled() in ground.ledger
        self.endpoints: tuple[str, ...] = ()
        self._kept6 = True
        """Whether IPv6 packets are kept from other interfaces, even where ours alone lacks IPv6."""
        self._wanted: Wanted | None = None
        self._plan: Iterator[None] | None = None
        self._due: float | None = None
        """When to go on with the work; None without work."""
        self._dirty: set[str] = set()
        self._look: float | None = None
        """When to look at the dirty parts."""
        self._mended = -REST
        self._mark_last = False
        """Whether our datagrams need their present mark until the rules are gone."""
        self._check: float | None = None
        """When to read the sysctl again: the kernel reports no change of it."""
        self._whole: Wanted | None = None
        """What stood as a whole at the last look: other programs removed any missing part."""
        self._sound = False
        """Whether all was compared, and nothing refused since: additions and removals suffice."""

    # --- what is wanted ------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Tells whether work is left, after which `on_settled` hears the result."""
        return self._due is not None

    def follows(self, wanted: Wanted) -> bool:
        """Tells whether `wanted` needs no comparison, which takes seconds for 130,000 routes."""
        return self._sound and wanted == self._wanted and not self.gateway.refused

    def distrust(self) -> None:
        """Ignores additions and removals from now on: a comparison follows."""
        self._sound = False

    def begin(self, wanted: Wanted) -> None:
        """Starts to compare all that is wanted with what stands, and to change what differs."""
        self._wanted = wanted
        self._start(self._compare(wanted))

    def _start(self, plan: Iterator[None]) -> None:
        self._ground.mending = self._wanted == self._whole
        self._plan = plan
        self._sound = True
        self._due = self._due or 0.0

    def add(self, prefixes: Iterable[Network]) -> None:
        self._enter(True, prefixes)

    def remove(self, prefixes: Iterable[Network]) -> None:
        self._enter(False, prefixes)

    def _enter(self, wanted: bool, prefixes: Iterable[Network]) -> None:
        if not self._sound or self._wanted is None:  # a comparison follows
            return
        prefixes = list(prefixes)
        if self._wanted.table == "auto" and any(each.prefixlen == 0 for each in prefixes):
            self.begin(self._wanted)  # policy rules come or go with a default route
            return
        self.routes.enter(wanted, prefixes, comparing=self._plan is not None)
        if self._plan is not None or self.routes.busy:
            self._due = self._due or 0.0

    def set_endpoints(self, endpoints: tuple[str, ...]) -> None:
        """Takes the peers' endpoints: the MTU follows the ways to them."""
        if endpoints != self.endpoints:
            self.endpoints = endpoints
            self._notice(MTU)

    # --- all of it -----------------------------------------------------------------------------------------

    def _compare(self, wanted: Wanted, dirty: Container[str] = ()) -> Iterator[None]:
        ground, device, policy = self._ground, self.device, self.policy
        device.find()
        yield
        ipv6 = device.has_ipv6(wanted)
        asked6 = any(":" in address for address in wanted.addresses)
        too_small = 0 < wanted.mtu < MIN_MTU_IPV6 or device.is_too_small()
        reason = f"IPv6 needs an MTU of {MIN_MTU_IPV6}" if too_small else "IPv6 is off on this host or interface"
        text = f"{reason}: addresses and routes of IPv6 are left out"
        ground.warn("ipv6", text if asked6 and not ipv6 else "")
        self._kept6 = self._keeps6(ipv6=ipv6)
        families = self._default_families(wanted)
        policy.choose(wanted, families)
        renumbered = bool(policy.former)
        self._mark_last = renumbered and not policy.number
        if not renumbered:
            self._on_mark()
        self.routes.begin(wanted, policy.number, ipv6=ipv6, kept6=self._kept6)
        yield
        if not (renumbered and policy.number):
            self._set_firewall(wanted, families, anew=FIREWALL in dirty)
        policy.set_sysctl(families)
        yield
        # Before the interface has addresses: no packet of a peer passes without its rules.
        self._set_gateway(wanted, anew=GATEWAY in dirty)
        yield
        yield from policy.set_rules(families)
        if renumbered and policy.number:
            self._on_mark()
            self._set_firewall(wanted, families)
            yield
        yield from self.routes.compare_guards()
        device.set_mtu(self._mtu(wanted, ipv6=ipv6))
        yield
        if device.stays_down:
            device.say_down()
            return
        yield from device.set_addresses(wanted.addresses, ipv6=ipv6)
        is_up = device.set_up()
        yield
        if is_up:
            yield from self.routes.compare()

    def _keeps6(self, *, ipv6: bool) -> bool:
        return ipv6 or self.device.host_has_ipv6()

    def _default_families(self, wanted: Wanted) -> set[int]:
        if wanted.table != "auto":
            return set()
        return {each.version for each in self._prefixes if each.prefixlen == 0 and (self._kept6 or each.version == 4)}

    def _set_firewall(self, wanted: Wanted, families: set[int], *, anew: bool = False) -> None:
        self.before_nft()
        if self.policy.set_firewall(wanted, families, anew=anew):
            self.after_nft()

    def _set_gateway(self, wanted: Wanted, *, anew: bool = False) -> None:
        """Sets the rules for packets of peers. A refusal of theirs ends the work on an interface that isn't up."""
        self.before_nft()
        try:
            if self.gateway.set(wanted.gateway, anew=anew):
                self.after_nft()
        except NetworkRefused:
            self.after_nft()
            if self.device.link is None or not self.device.link.up:
                raise

    def _mtu(self, wanted: Wanted, *, ipv6: bool) -> int:
        if wanted.mtu:
            return wanted.mtu
        ground = self._ground
        ways = mtu.ways(ground.routes, self.endpoints, self.policy.number or wanted.fwmark)
        asked6 = ipv6 and any(":" in address for address in wanted.addresses)
        return mtu.derived(ways, self._mtu_of, ground.index, ipv6=asked6)

    def _mtu_of(self, index: int) -> int:
        link = links.at(self._ground.kernel, index) if index else None
        return link.mtu if link is not None else 0

    # --- what other programs undid -------------------------------------------------------------------------

    def _mend(self, dirty: set[str], wanted: Wanted) -> Iterator[None]:
        if ALL in dirty:
            yield from self._compare(wanted, dirty)
            return
        ipv6 = self.routes.ipv6
        families = self._default_families(wanted)
        if FIREWALL in dirty and families:
            self._set_firewall(wanted, families, anew=True)
            yield
        if GATEWAY in dirty:
            self._set_gateway(wanted, anew=True)
            yield
        elif PASSES in dirty:
            self.before_nft()
            if self.gateway.set_passes():
                self.after_nft()
            yield
        if SYSCTL in dirty:
            self.gateway.set_forwarding()
        if dirty & {SYSCTL, RULES}:
            self.policy.set_sysctl(families)
        if RULES in dirty:
            if self.policy.outlived_mark:
                self._set_firewall(wanted, families)
            yield from self.policy.set_rules(families)
        if MTU in dirty and not wanted.mtu:
            self.device.set_mtu(self._mtu(wanted, ipv6=ipv6))
            yield
        if ROUTES in dirty:
            yield from self.routes.compare_guards()
            self.routes.mend(is_up=self.device.link is not None and self.device.link.up)

    def _notice(self, what: str) -> None:
        """Marks a part as dirty: something of ours may be gone. Other work goes first."""
        wanted = self._wanted
        if wanted is not None and not (what == MTU and wanted.mtu):
            self._dirty.add(what)
            look = max(boot_time() + _DEBOUNCES.get(what, DEBOUNCE), self._mended + REST)
            self._look = min(look, self._look) if self._look is not None else look

    def on_link(self, link: Link) -> None:
        """Follows our interface, and interfaces that outer packets may take."""
        ground = self._ground
        if link.name == ground.interface:
            self._on_link(link)
        if link.number != ground.index and link.name != ground.interface:
            if (link.gone or not link.up) and self.routes.try_all_again():
                self._notice(ROUTES)
            self._notice(MTU)
            return
        was_up = self.device.link is not None and self.device.link.up
        if link.gone:
            if link.number == ground.index:
                self.device.gone(moved=link.moved)
                self._notice(ALL)
        elif link.number != ground.index:
            self._notice(ALL)  # new, or back from elsewhere
        elif self.device.awaits_up:
            self.device.awaits_up = not link.up  # reports from before we set it up are outdated
        else:
            self.device.link = link
            if link.up and not was_up:
                self._notice(ALL)
            elif was_up and not link.up:
                self.device.say_down()
                self._on_news()

    def on_ipv6(self) -> None:
        """Has all compared when IPv6 came or went for our interface or for the host; the kernel gives nothing back."""
        wanted, ipv6 = self._wanted, self.routes.ipv6
        if wanted is not None and (self.device.has_ipv6(wanted), self._keeps6(ipv6=ipv6)) != (ipv6, self._kept6):
            self._notice(ALL)

    def on_address(self, index: int, *, gone: bool) -> None:
        """Has all compared after a lost address: the kernel removes routes with the last address, and reports none."""
        if gone and index == self._ground.index:
            self._notice(ALL)

    def on_route(self, route: Found, *, gone: bool) -> None:
        """Follows our routes, and foreign routes that concern ours."""
        routes, place = self.routes, (route.prefix, route.table)
        if route.protocol == ROUTE_PROTOCOL and route.link == self._ground.index:
            if gone and routes.lost(place):
                self._notice(ROUTES)
            return
        if gone and routes.connected.lost(route, self._ground.index):
            self._notice(ROUTES)
        elif not gone and routes.connected.back(route, self._ground.index):
            self._notice(ALL)
        elif gone and routes.is_guard(route):
            routes.guard_lost(route)
            self._notice(ROUTES)
        elif route.link != self._ground.index and route.table == MAIN and route.prefix in routes.connected:
            self._notice(ALL)  # a foreign route beside the kernel's to us came or went
        elif routes.rivals.settled and (not gone or place in routes.rivals) and routes.try_again(place):
            self._notice(ROUTES)
        self._notice(MTU)

    def on_rule(self) -> None:
        if self.policy.number:
            self._notice(RULES)

    def on_nft(self, table: str) -> None:
        if table == table_of(self._ground.interface):
            self._notice(FIREWALL)
        elif table == gateway_table_of(self._ground.interface):
            self._notice(GATEWAY)
        elif self.gateway.forwards:
            self._notice(PASSES)

    def on_lost(self) -> None:
        self.device.awaits_up = False
        self._notice(ALL)

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Returns when to work or look next; None for never."""
        if self._due is not None:
            return self._due
        return min((at for at in (self._look, self._check) if at is not None), default=None)

    def act(self, now: float) -> None:
        """Works for about BUDGET, then leaves as much time to packets."""
        if self._due is None:
            if self._check is not None and now >= self._check:
                self._check = now + REST
                if self.policy.lost_sysctl() or self.gateway.lost_forwarding():
                    self._notice(SYSCTL)
            if self._look is None or now < self._look:
                return
            dirty, self._dirty, self._look = self._dirty, set(), None
            if self._wanted is None or not dirty:
                return
            # A refusal left the rest unmade, so mending one part would pass for the whole.
            self._start(self._mend(dirty if self._sound else {ALL, *dirty}, self._wanted))
        begun = boot_time()
        try:
            while (self._plan is not None or self.routes.busy) and boot_time() < begun + BUDGET:
                self._go_on()
            now = boot_time()
            if self._plan is not None or self.routes.busy:
                self._due = now + (now - begun)
                return
            self._settle()
        except (NetworkRefused, Unwritten, OSError) as refused:
            self._plan, self._sound = None, False
            self.routes.clear()
            fault = str(refused)
        else:
            fault = self.gateway.refused
        self._due = None
        self._say_mended(now)
        self._on_settled(fault)

    def _go_on(self) -> None:
        # The work leaves no cycles, and each search for cycles among 130,000 routes would take longer than BUDGET.
        gc.freeze()
        if self._plan is None:
            self._plan = self.routes.work()
            return
        try:
            next(self._plan)
        except StopIteration:
            self._plan = None
            self.routes.compared()

    def _settle(self) -> None:
        self.policy.tidy()
        if self._mark_last:
            self._mark_last = False
            self._on_mark()
        self._ground.ledger.do(Settled())
        self.routes.rivals.settled = True
        self._whole = self._wanted
        checks = self.policy.number or self.gateway.forwards
        self._check = (self._check or boot_time() + REST) if checks else None

    def _say_mended(self, now: float) -> None:
        if self._ground.put_back:
            self._mended = now
        self._ground.mending = False
        self._on_news()
