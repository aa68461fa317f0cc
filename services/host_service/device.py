"""Makes the TUN device, gives it addresses and an MTU, and sets it up."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path
from typing import Final

from host_service import addresses as messages
from host_service.addresses import Address
from host_service.ground import Ground, NetworkRefused, Wanted
from host_service.ledger import AddressAdded, LinkMade, LinkMoved, MtuSet, Settled, Unwritten
from stagewire.limits import MIN_MTU_IPV6
from stagewire.linux import links, tun
from stagewire.linux.links import Link

_CONF6: Final = Path("/proc/sys/net/ipv6/conf")


class Device:
    """Makes and changes one interface."""

    def __init__(self, ground: Ground, clones: list[int]) -> None:
        """Keeps `clones`, descriptors of /dev/net/tun opened as root: often only root may open the file."""
        self._ground = ground
        self._clones = clones
        self.hear: Callable[[], None] = lambda: None
        """Reads the kernel's waiting reports: they tell a moved interface from a deleted one."""
        self.link: Link | None = None
        self._raise = Settled() not in ground.ledger
        """Whether to set the interface up: it is new. Later the operator decides."""
        self.awaits_up = False
        """Whether the kernel has still to report that we set the interface up."""
        self._moved = False
        """Whether the interface went to another network namespace; the ledger may have had no room for that."""
        noted = [each.mtu for each in ground.ledger.operations() if isinstance(each, MtuSet)]
        self._mtu_set = noted[-1] if noted else 0
        """The last MTU that we set, 0 for none. The operator's later MTU stays until the wanted MTU changes."""

    def find(self) -> Link:
        """Returns the interface, made anew if missing. Raises NetworkRefused."""
        ground = self._ground
        name = ground.interface
        self.link = found = links.find(ground.kernel, name)
        if found is None:
            self.hear()
            if self._moved or LinkMoved(name) in ground.ledger:
                ground.index = 0
                ground.ledger.do(LinkMoved(name))
                raise NetworkRefused(f"interface {name} was moved to another network namespace; move it back")
            renamed = links.at(ground.kernel, ground.index) if ground.index else None
            if renamed is not None and ground.owns(renamed):
                raise NetworkRefused(f"interface {name} was renamed to {renamed.name}; give it its name back")
            ground.again("link")
            self._make()
            self.link = found = links.find(ground.kernel, name)
            if found is None:
                raise NetworkRefused(f"interface {name} is gone")
        if not ground.owns(found):
            ground.index = 0
            what = "no TUN device" if found.owner is None else "not ours"
            raise NetworkRefused(f"interface {name} exists and is {what}; remove it or choose another name")
        if self._moved or LinkMoved(name) in ground.ledger or ground.index not in {0, found.number}:
            self.appeared()
        self._moved = False
        if found.owner != ground.owner and not found.attached:  # tun-service gives itself a device that it has
            self._attach()
        ground.ledger.undo(LinkMoved(name))
        ground.ledger.do(LinkMade(name, ground.owner))
        ground.index = ground.last_index = found.number
        return found

    def _make(self) -> None:
        ground = self._ground
        ground.ledger.do(LinkMade(ground.interface, ground.owner))
        self._attach()
        self.appeared()

    def _attach(self) -> None:
        """Makes the interface, or gives one that our interface had under an earlier uid its owner. Raises NetworkRefused."""
        ground = self._ground
        try:
            clone = self._open()
            try:
                tun.attach(clone, ground.interface, ground.owner, offload=ground.offload)
            finally:
                os.close(clone)
        except tun.TunUnavailable as unavailable:
            raise NetworkRefused(str(unavailable)) from None

    def _open(self) -> int:
        try:
            return tun.open_clone()
        except tun.TunUnavailable:
            if not self._clones:
                raise
            return self._clones.pop()

    def appeared(self) -> None:
        """Starts over: a new or returned interface has lost all that we gave it."""
        self._raise, self._mtu_set = True, 0

    @property
    def stays_down(self) -> bool:
        """Tells whether the operator set the interface down: then we leave it, without addresses and routes."""
        return self.link is not None and not self.link.up and not self._raise

    def say_down(self) -> None:
        """Warns if the interface stays down."""
        name = self._ground.interface
        text = f"{name} is set down; `ip link set {name} up` sets it up again"
        self._ground.warn("link", text if self.stays_down else "")

    def gone(self, *, moved: bool) -> None:
        """Notes that the interface was deleted, or moved to another network namespace, from where it may return."""
        self._ground.index, self.link = 0, None
        if moved:
            self._moved = True
            with suppress(Unwritten):  # `find` tries again, and reports the failure
                self._ground.ledger.do(LinkMoved(self._ground.interface))

    # --- what it has ---------------------------------------------------------------------------------------

    def has_ipv6(self, wanted: Wanted) -> bool:
        """Tells whether the interface can have IPv6 addresses and routes."""
        if 0 < wanted.mtu < MIN_MTU_IPV6:
            return False
        try:
            return (_CONF6 / self._ground.interface / "disable_ipv6").read_text().strip() == "0"
        except OSError:
            return self.is_too_small() and not self._keeps_mtu(wanted) and _CONF6.exists()

    def is_too_small(self) -> bool:
        """Tells whether the interface's present MTU allows no IPv6."""
        return self.link is not None and 0 < self.link.mtu < MIN_MTU_IPV6

    def _keeps_mtu(self, wanted: Wanted) -> bool:
        """Tells whether the present MTU is the operator's, and stays."""
        is_foreign = self._mtu_set and self.link is not None and self.link.mtu != self._mtu_set
        return bool(is_foreign) and wanted.mtu in {0, self._mtu_set}

    @staticmethod
    def host_has_ipv6() -> bool:
        """Tells whether IPv6 packets may leave by another interface where ours can have none."""
        try:
            return (_CONF6 / "lo" / "disable_ipv6").read_text().strip() == "0"
        except OSError:
            return False

    def set_mtu(self, mtu: int) -> None:
        """Sets the MTU if it differs from the last MTU that we set. Raises NetworkRefused."""
        if mtu == self._mtu_set:
            return
        ground = self._ground
        for each in ground.ledger.operations():
            if isinstance(each, MtuSet) and each.mtu != mtu:
                ground.ledger.undo(each)
        ground.ledger.do(MtuSet(mtu))
        try:
            links.set_mtu(ground.kernel, ground.index, mtu)
        except OSError as error:
            raise NetworkRefused(f"cannot set MTU {mtu}: {error.strerror}") from None
        self._mtu_set = mtu

    def set_addresses(self, texts: tuple[str, ...], *, ipv6: bool) -> Iterator[None]:
        """Removes unwanted addresses and adds missing ones, one for each step. Raises NetworkRefused."""
        ground = self._ground
        wanted = {address for address in map(ip_interface, texts) if ipv6 or address.version == 4}
        noted = {ip_interface(each.address) for each in ground.ledger.operations() if isinstance(each, AddressAdded)}
        standing = self._standing()
        yield
        # An address without a note is the operator's, from PostUp or by hand.
        unwanted = (standing & noted) - wanted
        for address in unwanted:
            try:
                messages.remove(ground.kernel, ground.index, address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:  # gone with its network's first address, see below
                    raise NetworkRefused(f"cannot remove address {address}: {error.strerror}") from None
            yield
        for address in noted - wanted:
            ground.ledger.undo(AddressAdded(str(address)))
        for address in wanted - noted:
            ground.ledger.do(AddressAdded(str(address)))
        if unwanted:  # the kernel removes a network's other IPv4 addresses along with its first
            standing = self._standing()
            yield
        ground.again("address", len(wanted - standing))
        for address in sorted(wanted - standing, key=lambda each: texts.index(_text(each, texts))):
            self._add(address)
            yield

    def _standing(self) -> set[Address]:
        try:
            return messages.standing(self._ground.kernel, self._ground.index)
        except OSError as error:
            raise NetworkRefused(f"cannot read addresses: {error.strerror}") from None

    def _add(self, address: Address) -> None:
        ground = self._ground
        try:
            messages.add(ground.kernel, ground.index, address)
        except OSError as error:
            if error.errno == errno.ENODEV and links.at(ground.kernel, ground.index) is None:
                raise NetworkRefused(f"interface {ground.interface} is gone") from None
            raise NetworkRefused(f"cannot add address {address}: {error.strerror}") from None

    def set_up(self) -> bool:
        """Sets a new interface up. Returns whether the interface is up. Raises NetworkRefused."""
        ground = self._ground
        # Optional: a host without IPv6 has nothing to set.
        with suppress(OSError):
            links.without_link_local(ground.kernel, ground.index)
        if self._raise:
            self.awaits_up = self.link is not None and not self.link.up
            try:
                links.set_up(ground.kernel, ground.index)
            except OSError as error:
                raise NetworkRefused(f"cannot set {ground.interface} up: {error.strerror}") from None
            self._raise = False
        self.link = links.at(ground.kernel, ground.index)
        self.say_down()
        return self.link is not None and self.link.up


def _text(address: Address, texts: tuple[str, ...]) -> str:
    return next(text for text in texts if ip_interface(text) == address)
