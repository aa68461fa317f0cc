"""Makes the host treat packets of peers as a gateway's rules say: by a table of its own, by forwarding, by other tables.

Other tables stay as they are unless the file says `# stagewire: Firewall = open`; otherwise a warning names the commands.
"""

from contextlib import suppress
from typing import Final

from host_service import denials, firewall, forwarding, gateway_table, passes
from host_service.ground import Ground, NetworkRefused
from host_service.ledger import ForwardingSet, NftTableMade, PassOpened, RouterAdvertisementsKept
from host_service.passes import Own
from stagewire.control import narrower
from stagewire.control.gateway import NO_RULES, GatewayRules, kept_warning
from stagewire.linux.forwarded import Chain, Obstacle, obstacles
from stagewire.linux.nft_names import gateway_table_of

_COMMANDS: Final = 6
"""Commands in a warning."""
_MEANWHILE: Final = "mend that, host-service tries again; until then peers whose rules became narrower reach nothing"


class Gateway:
    """Holds what stands of one interface's rules."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.rules = NO_RULES
        self._standing: GatewayRules | None = None
        """The rules of the table that stands; None if that isn't known."""
        self._handle = 0
        """The handle of that table."""
        self.refused = ""
        """Why the table is not as wanted."""
        self.unheld: tuple[bytes, ...] = ()
        """Packed prefixes of the peers that the standing table lets do more than they should."""

    def set(self, rules: GatewayRules, *, anew: bool = False) -> bool:
        """Sets all of it. Returns whether nft ran. Raises NetworkRefused."""
        self.rules = rules
        try:
            ran = self._set_table(rules, anew=anew)
        except NetworkRefused as refused:
            found = self._found(gateway_table_of(self._ground.interface))
            if found is None or found.handle != self._handle:
                self._standing = None
            self.refused, self.unheld = str(refused), narrower.sources(self._standing, rules)
            if not rules.forwards:  # a host that should forward no more mustn't wait
                self.set_forwarding()
            raise
        self.refused, self.unheld = "", ()
        self.set_forwarding()
        return self.set_passes() or ran

    # --- the table -----------------------------------------------------------------------------------------

    def _set_table(self, rules: GatewayRules, *, anew: bool) -> bool:
        ground, name = self._ground, gateway_table_of(self._ground.interface)
        noted = [each for each in ground.ledger.operations() if isinstance(each, NftTableMade) and each.name == name]
        if not noted if rules == NO_RULES else rules == self._standing and not anew:
            return False
        standing = self._found(name)
        is_ours = standing is not None and (standing.is_ours or NftTableMade(name, standing.handle) in noted)
        if standing is not None and not is_ours and rules != NO_RULES:
            self._give_up(f"nftables table inet {name} is not ours; remove it")
        handle = standing.handle if standing is not None and is_ours else 0
        kept = None
        if rules != NO_RULES:
            ground.again("firewall", int(anew))
            ground.ledger.do(NftTableMade(name))
            self._make(rules, handle)
            self._standing, self._handle = rules, 0
            if (made := self._found(name)) is not None:
                kept, self._handle = NftTableMade(name, made.handle), made.handle
                ground.ledger.do(kept)
        elif handle and (said := firewall.remove(handle)):
            self._give_up(f"nftables table inet {name} can't be removed: {said}")
        else:
            self._standing = None
        for each in [*noted, NftTableMade(name)]:
            if each != kept:
                ground.ledger.undo(each)
        return True

    def _make(self, rules: GatewayRules, handle: int) -> None:
        if not firewall.is_installed():
            self._give_up("nft is not installed, and Exit, Isolation, Allow, Groups and Forward need it")
        try:
            interface = self._ground.interface
            counted = denials.standing(interface) if handle else gateway_table.NO_COUNTS
            text = "\n".join(gateway_table.lines(interface, rules, handle, counted))
        except ValueError as error:
            raise NetworkRefused(f"the rules for packets of peers make no sense: {error}") from None
        if said := firewall.run(text):
            self._give_up(f"the rules for packets of peers are not set: nft says {said}; {_MEANWHILE}")

    def _found(self, name: str) -> firewall.Standing | None:
        with suppress(OSError):  # a kernel without nftables
            return firewall.find(name)
        return None

    def _give_up(self, text: str) -> None:
        raise NetworkRefused(text)

    # --- forwarding ----------------------------------------------------------------------------------------

    def set_forwarding(self) -> None:
        """Makes the host forward packets of the versions that need it, and of no other for our sake."""
        ground = self._ground
        for version in forwarding.PATHS:
            if version in self.rules.forwards:
                forwarding.set_on(ground, version)
                continue
            ground.warn(f"forwarding {version}", "")
            operations = ground.ledger.operations()
            if any(isinstance(each, ForwardingSet) and each.version == version for each in operations):
                self._give_back(version)

    def _give_back(self, version: int) -> None:
        ledger, operations = self._ground.ledger, self._ground.ledger.operations()
        with suppress(OSError):
            forwarding.give_back(self._ground.kernel, version, operations)
            for each in operations:
                if isinstance(each, ForwardingSet) and each.version == version:
                    ledger.undo(each)
                elif isinstance(each, RouterAdvertisementsKept) and version == 6:
                    forwarding.give_back_router_advertisements(each)
                    ledger.undo(each)

    @property
    def restricts(self) -> bool:
        """Tells whether the table drops any packets."""
        return self.rules.isolates or bool(self.rules.access)

    @property
    def forwards(self) -> bool:
        return bool(self.rules.forwards)

    def lost_forwarding(self) -> bool:
        """Tells whether another program switched forwarding off. After our own failure, the answer is no."""
        wanted = [each for each in self.rules.forwards if f"forwarding {each}" not in self._ground.warnings]
        return any(map(forwarding.is_lost, wanted))

    # --- other tables --------------------------------------------------------------------------------------

    def set_passes(self) -> bool:
        """Lets packets pass other tables, or warns of those that keep them. Returns whether nft ran."""
        ground, rules = self._ground, self.rules
        noted = [each for each in ground.ledger.operations() if isinstance(each, PassOpened)]
        if not rules.forwards and not noted:
            ground.warn("passes", "")
            return False
        listed = firewall.ruleset()
        needs, own = passes.needs(rules), passes.standing(listed, ground.interface)
        if rules.opens:
            others = passes.without(listed, ground.interface)
            wanted = obstacles(others, ground.interface, rules.forwards, needs)
            left = obstacles(listed, ground.interface, rules.forwards, needs)
            changes = [self._open(each, own, anew=each.chain in {other.chain for other in left}) for each in wanted]
            places = {each.place for each in wanted}
            self._close([each for each in noted if _place(each) not in places], own)
            if any(changes):
                left = obstacles(firewall.ruleset(), ground.interface, rules.forwards, needs)
            ground.warn("passes", self._told(left))
            return bool(wanted or noted)
        if noted:
            self._close(noted, own)
            listed = firewall.ruleset()
        ground.warn("passes", self._told(obstacles(listed, ground.interface, rules.forwards, needs)))
        return bool(noted)

    def _open(self, one: Obstacle, own: list[Own], *, anew: bool) -> bool:
        """Makes our rules at a place as wanted, in one step; tells whether nft ran. `anew`: those there don't suffice."""
        place, interface = one.place, self._ground.interface
        there = [each for each in own if each.chain == place]
        old = [each for each in there if anew or each.lets not in one.passes]
        new = [each for each in one.passes if anew or each not in {other.lets for other in there}]
        if old or new:
            operation = PassOpened(place.family, place.table, place.name)
            self._ground.again("firewall", int(operation in self._ground.ledger))
            self._ground.ledger.do(operation)
            firewall.run("\n".join([*passes.closing(old), *passes.opening(place, new, interface)]))
        return bool(old or new)

    def _close(self, noted: list[PassOpened], own: list[Own]) -> None:
        places = {_place(each) for each in noted}
        ours = [each for each in own if each.chain in places]
        if ours and (said := firewall.run("\n".join(passes.closing(ours)))):
            self._ground.warn("passes closed", f"rules of ours in other nftables tables can't be removed: {said}")
            return
        self._ground.warn("passes closed", "")
        for each in noted:
            self._ground.ledger.undo(each)

    def _told(self, found: list[Obstacle]) -> str:
        if not found:
            return ""
        chains = list(dict.fromkeys(str(each.chain) for each in found))
        commands = list(dict.fromkeys(each for one in found for each in passes.commands(one, self._ground.interface)))
        more = f", then {len(commands) - _COMMANDS} more, which `status` names" if len(commands) > _COMMANDS else ""
        means = "" if self.rules.opens else ", or write `# stagewire: Firewall = open` into [Interface]"
        return kept_warning(chains, f"`{'; '.join(commands[:_COMMANDS])}`{more}{means}")


def _place(opened: PassOpened) -> Chain:
    return Chain(opened.family, opened.table, opened.chain)
