"""Undoes the operations of a ledger, and checks first that each is this interface's.

The link goes first, with its addresses and routes; then the guard routes hold packets back. The guard routes go next, then
rules, nftables and sysctls. So no packet of the tunnel leaves in clear meanwhile.
"""

import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_network

from host_service import firewall, forwarding, passes, rules, valid_mark
from host_service.ledger import (
    ForwardingSet,
    GuardAdded,
    LinkMade,
    LinkMoved,
    NftTableMade,
    Operation,
    PassOpened,
    RouterAdvertisementsKept,
    RuleAdded,
    SysctlSet,
)
from host_service.route_messages import RouteSocket
from host_service.rules import Rule
from stagewire.limits import ROUTE_PROTOCOL
from stagewire.linux import links, uids
from stagewire.linux.forwarded import Chain
from stagewire.linux.links import Link
from stagewire.linux.netlink import Netlink
from stagewire.linux.nft_names import gateway_table_of, table_of

_LAST_METRIC = 0xFFFFFFFF
_CLOSED_WITHIN = 0.3
"""s for the kernel to close an ended process's descriptors."""


def undo(interface: str, owner: int, operations: Sequence[Operation], warn: Callable[[str], None]) -> None:
    """Undoes all operations. Warns of each that fails, and goes on."""
    with Netlink() as kernel:
        routes = RouteSocket(ROUTE_PROTOCOL)
        try:
            undoing = _Undoing(interface, owner, kernel, routes, warn)
            undoing.run(operations)
        finally:
            routes.close()


def _is_ours(link: Link) -> bool:
    """Tells whether an interface belongs to a tun-service, perhaps by an earlier uid."""
    return link.owner is not None and uids.may_be("tun", link.owner)


class _Undoing:
    def __init__(
        self, interface: str, owner: int, kernel: Netlink, routes: RouteSocket, warn: Callable[[str], None]
    ) -> None:
        self._interface, self._owner = interface, owner
        self._kernel, self._routes, self._warn = kernel, routes, warn
        self._link_deleted = False

    def run(self, operations: Sequence[Operation]) -> None:
        """Undoes all in the order that holds packets back."""
        found = [*operations, *self._evidence()]
        steps: list[tuple[type, Callable[..., None]]] = [
            (LinkMade, self._link),
            (LinkMoved, self._moved),
            (GuardAdded, self._guard),
            (RuleAdded, self._rule),
            (PassOpened, self._pass),
            (NftTableMade, self._nft),
            (SysctlSet, self._sysctl),
            (ForwardingSet, self._forwarding),
            (RouterAdvertisementsKept, forwarding.give_back_router_advertisements),
        ]
        for kind, undo_one in steps:
            for operation in reversed(dict.fromkeys(found)):
                if isinstance(operation, kind):
                    try:
                        undo_one(operation)
                    except OSError as error:
                        self._warn(f"cannot undo {operation}: {error.strerror or error}")
                    except (ValueError, KeyError, OverflowError, struct.error) as error:
                        # The ledger is a stage's own, and the rest must go all the same.
                        self._warn(f"cannot undo {operation}: it makes no sense ({error})")

    def _evidence(self) -> list[Operation]:
        """Finds changes that the kernel shows to be this interface's: the run folder may have been wiped."""
        link = self._find()
        found: list[Operation] = []
        if link is not None and link.attached:  # by a gateway with another run folder: our processes have ended
            return found
        for table in self._tables:
            with suppress(OSError):  # a kernel without nftables
                standing = firewall.find(table)
                found += [NftTableMade(table, standing.handle)] if standing is not None and standing.is_ours else []
        found += self._evidence_of_a_gateway(found)
        if link is None or not _is_ours(link):
            return found
        found.append(LinkMade(self._interface, self._owner))
        metric = _LAST_METRIC - link.number
        guards = [route for some in self._routes.guards(metric) for route in some]
        found += [GuardAdded(str(prefix), table, metric) for prefix, table in guards]
        tables = {table for some in self._routes.standing(link.number) for _, table in some}
        tables |= {table for _, table in guards}
        for version in (4, 6):
            found += [RuleAdded(rule) for rule in self._rules_for(version, tables)]
        found += [valid_mark.NOTED] if rules.WAS_OFF in self._standing(4) else []
        return found

    @property
    def _tables(self) -> tuple[str, str]:
        return table_of(self._interface), gateway_table_of(self._interface)

    def _evidence_of_a_gateway(self, found: Sequence[Operation]) -> list[Operation]:
        if not any(isinstance(each, NftTableMade) and each.name == self._tables[1] for each in found):
            return []
        markers = self._standing(4)
        forwards = [version for version, marker in rules.DID_NOT_FORWARD.items() if marker in markers]
        chains = {each.chain for each in passes.standing(firewall.ruleset(), self._interface)}
        return [
            *(PassOpened(chain.family, chain.table, chain.name) for chain in chains),
            *(ForwardingSet(version, "", "") for version in forwards),
        ]

    def _find(self) -> Link | None:
        """Returns the interface. Waits for the kernel to close descriptors that ended processes left in sockets."""
        until = time.monotonic() + _CLOSED_WITHIN
        while (link := links.find(self._kernel, self._interface)) is not None and link.attached:
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        return link

    def _rules_for(self, version: int, tables: set[int]) -> list[Rule]:
        standing = self._standing(version)
        return [
            rule
            for lookup in standing
            if lookup.protocol == ROUTE_PROTOCOL and lookup.tunnel and lookup.table in tables
            for rule in rules.ours(standing, lookup.table, lookup.priority - 2)
        ]

    def _standing(self, version: int) -> list[Rule]:
        try:
            return rules.standing(self._kernel, version)
        except OSError:  # a kernel without IPv6
            return []

    # --- each kind -----------------------------------------------------------------------------------------

    def _link(self, made: LinkMade) -> None:
        link = self._find()
        if made.name != self._interface or link is None or link.attached:
            return
        if _is_ours(link) and uids.may_be("tun", made.owner):
            links.delete(self._kernel, link.number)
            self._link_deleted = True

    def _moved(self, moved: LinkMoved) -> None:
        name = moved.name
        if not self._link_deleted:  # else it came back
            self._warn(
                f"{name} was moved to another network namespace; `ip -n NAMESPACE link delete {name}` removes it there"
            )

    def _guard(self, guard: GuardAdded) -> None:
        # The kernel removes only a route of this protocol, type and metric.
        self._routes.unguard((ip_network(guard.prefix), guard.table), guard.metric)

    def _rule(self, added: RuleAdded) -> None:
        if added.rule.protocol == ROUTE_PROTOCOL:
            rules.remove(self._kernel, added.rule)

    def _nft(self, made: NftTableMade) -> None:
        standing = firewall.find(made.name) if made.name in self._tables else None
        if standing is None or standing.handle != made.handle:
            return
        if said := firewall.remove(made.handle):
            self._warn(f"cannot remove nftables table {made.name}: {said}")

    def _pass(self, opened: PassOpened) -> None:
        chain = Chain(opened.family, opened.table, opened.chain)
        ours = [each for each in passes.standing(firewall.ruleset(), self._interface) if each.chain == chain]
        if ours and (said := firewall.run("\n".join(passes.closing(ours)))):
            self._warn(f"cannot remove our rules of {chain}: {said}")

    def _forwarding(self, done: ForwardingSet) -> None:
        forwarding.give_back(self._kernel, done.version, [done])

    def _sysctl(self, changed: SysctlSet) -> None:
        if changed == valid_mark.NOTED:
            valid_mark.give_back(self._kernel)
