"""Holds what all parts of host-service share: netlink, the ledger, the interface's number, and warnings."""

from collections import Counter
from dataclasses import dataclass, field

from host_service.ledger import Ledger
from host_service.route_messages import RouteSocket
from stagewire.control.gateway import NO_RULES, GatewayRules
from stagewire.limits import ROUTE_PROTOCOL
from stagewire.linux import uids
from stagewire.linux.links import Link
from stagewire.linux.netlink import Netlink

MAX_WARNINGS = 16
"""Warnings that key-service gets; the log has all."""


class NetworkRefused(Exception):  # noqa: N818 - told to the operator
    """Says in one line what the kernel refused, or what belongs to another program."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Describes what key-service wants of the host.

    `addresses` are address/length; `table` is auto, off or a number. With an `mtu` of 0, the ways to the peers decide.
    `fwmark` is the operator's, 0 for none.
    """

    addresses: tuple[str, ...]
    mtu: int
    table: str
    fwmark: int
    gateway: GatewayRules = NO_RULES


@dataclass(slots=True)
class Ground:
    """Carries what concerns one interface. `owner` is the uid that may use the TUN device."""

    interface: str
    owner: int
    offload: bool
    ledger: Ledger
    kernel: Netlink = field(default_factory=Netlink)
    routes: RouteSocket = field(default_factory=lambda: RouteSocket(ROUTE_PROTOCOL))
    index: int = 0
    """The interface's number; 0 while the interface is missing."""
    last_index: int = 0
    """The present number, or the last."""
    warnings: dict[str, str] = field(default_factory=dict)
    """By subject."""
    mending: bool = False
    """Whether all stood already: then other programs removed what is missing."""
    put_back: Counter[str] = field(default_factory=Counter)
    """Repairs since the last report, by kind."""

    def warn(self, about: str, text: str) -> None:
        """Notes that something optional failed. An empty text clears the note."""
        if text:
            self.warnings[about] = text
        else:
            self.warnings.pop(about, None)

    def owns(self, link: Link) -> bool:
        """Tells whether a device is ours: a tun-service's, perhaps by an earlier uid."""
        return link.owner == self.owner or (link.owner is not None and uids.may_be("tun", link.owner))

    def again(self, what: str, count: int = 1) -> None:
        """Counts repairs: what another program had undone."""
        if self.mending and count:
            self.put_back[what] += count

    def close(self) -> None:
        """Closes netlink and the ledger; the changes to the host stay."""
        self.kernel.close()
        self.routes.close()
        self.ledger.close()
