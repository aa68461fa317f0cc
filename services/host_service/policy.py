"""Sets what a default route through the tunnel needs: a table, a mark, rules, an nftables table, a sysctl."""

from collections.abc import Iterator
from ipaddress import ip_interface

from host_service import firewall, rules, valid_mark
from host_service.ground import Ground, NetworkRefused, Wanted
from host_service.ledger import NftTableMade, Numbered, RuleAdded, Settled
from host_service.rules import Rule
from stagewire.limits import DEFAULT_PORT, ROUTE_PROTOCOL
from stagewire.linux.nft_names import table_of


class Policy:
    """Sets what one interface's default routes need."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.number = 0
        """The interface's mark and table; 0 without default routes."""
        self._first = {4: 0, 6: 0}
        self._wanted: set[Rule] = set()
        for operation in ground.ledger.operations():
            if isinstance(operation, Numbered):
                self.number = operation.number
                self._first = dict(zip((4, 6), operation.first, strict=True))
        self._firewall: tuple[object, ...] = ()
        self._needs_valid_mark = True

    @property
    def former(self) -> list[Rule]:
        """Returns our rules for another number, which stand until the new number's rules are whole."""
        noted = [each.rule for each in self._ground.ledger.operations() if isinstance(each, RuleAdded)]
        return [rule for rule in noted if rule.tunnel not in {0, self.number}]

    @property
    def outlived_mark(self) -> bool:
        """Tells whether the nftables table still has a former number's mark, though its rules are gone."""
        return bool(self._firewall and self._firewall[-1]) and not self.former

    # --- the number ----------------------------------------------------------------------------------------

    def choose(self, wanted: Wanted, families: set[int]) -> None:
        """Finds a table and a mark for default routes of these families. Raises NetworkRefused."""
        number = (wanted.fwmark or self.number or self._free()) if families else 0
        if number != self.number:
            if number and wanted.fwmark:
                self._refuse_anothers(number)
            for operation in self._ground.ledger.operations():
                if isinstance(operation, Numbered):
                    self._ground.ledger.undo(operation)
            self._first = {4: 0, 6: 0}
            self.number = number

    def _free(self) -> int:
        try:
            known = [rule for version in (4, 6) for rule in _standing(self._ground, version)]
            if adopted := self._from_before(known):
                return adopted
            used = rules.taken_numbers(known)
            number = DEFAULT_PORT
            while number in used or not self._ground.routes.is_empty(number) or not self._claim(number):
                number += 1
        except OSError as error:
            raise NetworkRefused(f"cannot find a free routing table: {error.strerror}") from None
        return number

    def _claim(self, number: int) -> bool:
        """Claims a number, as another gateway may start at the same moment. `tidy` removes the claim."""
        claim = rules.claim(number)
        if RuleAdded(claim) in self._ground.ledger:
            return True
        self._ground.ledger.do(RuleAdded(claim))
        if rules.add(self._ground.kernel, claim):
            return True
        self._ground.ledger.undo(RuleAdded(claim))
        return False

    def _refuse_anothers(self, number: int) -> None:
        """Raises NetworkRefused if the operator's mark is another tunnel's: we would take that tunnel's rules for ours."""
        try:
            known = [rule for version in (4, 6) for rule in _standing(self._ground, version)]
            is_anothers = any(rule.tunnel == number for rule in known) and self._from_before(known) != number
            if is_anothers or not self._claim(number):
                raise NetworkRefused(f"FwMark {number:#x} is another tunnel's mark; choose another")
        except OSError as error:
            raise NetworkRefused(f"cannot set policy rules: {error.strerror}") from None

    def _from_before(self, known: list[Rule]) -> int:
        """Returns the number of an earlier life whose rules stand but whose ledger is lost; 0 for none."""
        tables = {table for found in self._ground.routes.standing(self._ground.index) for _, table in found}
        mine = [
            rule.tunnel for rule in known if rule.protocol == ROUTE_PROTOCOL and rule.tunnel and rule.table in tables
        ]
        return mine[0] if mine else 0

    # --- rules ---------------------------------------------------------------------------------------------

    def set_rules(self, families: set[int]) -> Iterator[None]:
        """Makes missing rules. Raises NetworkRefused."""
        self._wanted.clear()
        for version in (4, 6) if self.number else ():
            try:
                if version in families:
                    self._set_rules(version)
                self._let_pass(version)
            except OSError as error:
                raise NetworkRefused(f"cannot set policy rules: {error.strerror}") from None
            yield

    def _set_rules(self, version: int) -> None:
        ground = self._ground
        standing = _standing(ground, version)
        first = self._first[version] or rules.place(standing, self.number)
        if first < 1:
            text = f"no room for the tunnel's policy rules; give the policy rule of priority {first + 4} a greater priority"
            raise NetworkRefused(text)
        if first != self._first[version]:
            before = Numbered(self.number, (self._first[4], self._first[6]))
            self._first[version] = first
            ground.ledger.do(Numbered(self.number, (self._first[4], self._first[6])))
            ground.ledger.undo(before)
        mine = rules.ours(standing, self.number, first) | {*standing}
        for rule in rules.wanted(standing, version, self.number, first):
            self._wanted.add(rule)
            ground.again("rule", int(rule not in mine and RuleAdded(rule) in ground.ledger))
            ground.ledger.do(RuleAdded(rule))
            if rule not in mine:
                rules.add(ground.kernel, rule)

    def _let_pass(self, version: int) -> None:
        """Leads our datagrams past our rules for a former number, which would take the datagrams into the tunnel."""
        for former in self.former:
            if former.version == version:
                for rule in rules.passing(version, self.number, former.priority - 2):
                    self._ground.ledger.do(RuleAdded(rule))
                    rules.add(self._ground.kernel, rule)

    def tidy(self) -> None:
        """Removes rules that are no longer needed, once the present ones are whole. Raises OSError."""
        for operation in self._ground.ledger.operations():
            if isinstance(operation, RuleAdded) and operation.rule not in self._wanted:
                rules.remove(self._ground.kernel, operation.rule)
                self._ground.ledger.undo(operation)
        if valid_mark.NOTED in self._ground.ledger and not self._needs_valid_mark:
            valid_mark.give_back(self._ground.kernel)
            self._ground.ledger.undo(valid_mark.NOTED)

    # --- nftables and sysctl -------------------------------------------------------------------------------

    def set_firewall(self, wanted: Wanted, families: set[int], *, anew: bool = False) -> bool:
        """Makes or removes the nftables table where needed. Returns whether nft ran. Raises NetworkRefused."""
        ground = self._ground
        name = table_of(ground.interface)
        noted = [each for each in ground.ledger.operations() if isinstance(each, NftTableMade) and each.name == name]
        former = {rule.tunnel for rule in self.former}
        as_wanted = wanted.addresses, tuple(sorted(families)), self.number, former
        if not noted if not families else as_wanted == self._firewall and not anew:
            return False
        standing = _table(name)
        is_ours = standing is not None and (standing.is_ours or NftTableMade(name, standing.handle) in noted)
        if standing is not None and not is_ours and families:
            self._say_anothers(name)
            return False
        self._firewall = as_wanted if families else ()
        handle = standing.handle if standing is not None and is_ours else 0
        kept = made = None
        if families:
            ground.again("firewall", int(anew))
            ground.ledger.do(NftTableMade(name))
            addresses = [ip_interface(address) for address in wanted.addresses]
            said = firewall.make(ground.interface, addresses, families, self.number, handle, former)
            ground.warn("firewall", said)
            if (made := _table(name)) is not None and made.is_ours:
                kept = NftTableMade(name, made.handle)
                ground.ledger.do(kept)
        else:
            ground.warn("firewall", firewall.remove(handle) if handle else "")
        for each in [*noted, NftTableMade(name)]:
            if each != kept:
                ground.ledger.undo(each)
        if made is not None and kept is None:  # another program made it since our look
            self._say_anothers(name)
        return True

    def _say_anothers(self, name: str) -> None:
        text = f"nftables table inet {name} is not ours; remove it, or choose another name for the interface"
        if Settled() not in self._ground.ledger:
            raise NetworkRefused(text)
        self._firewall = ()
        self._ground.warn("firewall", f"{text}; ours is made when that table goes")

    def set_sysctl(self, families: set[int]) -> None:
        """Makes rp_filter look at the mark, if IPv4 has a default route."""
        self._needs_valid_mark = 4 in families
        if self._needs_valid_mark:
            valid_mark.set_on(self._ground)

    def lost_sysctl(self) -> bool:
        """Tells whether another program reset the sysctl. After our own failure, the answer is no."""
        if not self._needs_valid_mark or "sysctl" in self._ground.warnings:
            return False
        try:
            return valid_mark.PATH.read_text().strip() == valid_mark.OFF
        except OSError:
            return False


def _table(name: str) -> firewall.Standing | None:
    try:
        return firewall.find(name)
    except OSError:  # a kernel without nftables
        return None


def _standing(ground: Ground, version: int) -> list[Rule]:
    try:
        return rules.standing(ground.kernel, version)
    except OSError:
        if version == 6:  # a kernel without IPv6
            return []
        raise
