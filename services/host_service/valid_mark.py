"""Keeps src_valid_mark on while a tunnel has a default route: the sysctl makes rp_filter look at the mark.

All tunnels of a network namespace share the value, and only the first finds it off. The first makes a policy rule without
effect, which every gateway reads, whatever its run folder. The last of our tunnels removes the rule and restores the value.
wg-quick sets the value too, and leaves it on. While a tunnel of wg-quick's stands, the value stays.
"""

from pathlib import Path
from typing import Final

from host_service import rules
from host_service.ground import Ground
from host_service.ledger import SRC_VALID_MARK, SysctlSet
from stagewire.limits import ROUTE_PROTOCOL
from stagewire.linux.netlink import Netlink

PATH: Final = Path(SRC_VALID_MARK)
OFF, ON = "0", "1"
NOTED: Final = SysctlSet(str(PATH), OFF, ON)


def set_on(ground: Ground) -> None:
    """Switches the value on. Notes if it was off."""
    try:
        is_off = PATH.read_text().strip() == OFF
        known = NOTED in ground.ledger
        if is_off or known:
            ground.again("sysctl", int(is_off and known))
            ground.ledger.do(NOTED)
            rules.add(ground.kernel, rules.WAS_OFF)
        elif rules.WAS_OFF in rules.standing(ground.kernel, 4):
            ground.ledger.do(NOTED)
        if is_off:
            PATH.write_text(ON)
    except OSError as error:
        ground.warn("sysctl", f"cannot set {PATH}, so rp_filter = 1 would cut the tunnel off: {error.strerror}")
    else:
        ground.warn("sysctl", "")


def give_back(kernel: Netlink) -> None:
    """Switches the value off, unless another tunnel needs it. Our own rules must be gone. Raises OSError."""
    known = rules.standing(kernel, 4)
    others = [rule for rule in known if rule.tunnel]
    if any(rule.protocol == ROUTE_PROTOCOL for rule in others):
        return  # the last of our tunnels does it
    rules.remove(kernel, rules.WAS_OFF)
    if not others and PATH.read_text().strip() == ON:
        PATH.write_text(OFF)
