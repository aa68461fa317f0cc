"""Makes the host forward packets while a gateway needs it.

All gateways of a network namespace share the two values, and only the first finds them off. It makes a policy rule without
effect, which every gateway reads, whatever its run folder. The last gateway removes the rule and restores the value. The
value stays if another program came to need it meanwhile: Docker and libvirt switch it on as well, and find it on.

The kernel changes more with these values, so that is kept:

- Without forwarding it takes router advertisements, with forwarding only where accept_ra is 2: else the host would lose its
  own IPv6 routes. The 2 stays if another gateway needs forwarding for longer: without forwarding it means the same as 1.
- It sets accept_redirects of IPv4 to the opposite.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

from host_service import rules
from host_service.firewall import nat_tables
from host_service.gateway_table import standing_forwards
from host_service.ground import Ground
from host_service.ledger import ForwardingSet, Operation, RouterAdvertisementsKept
from stagewire.linux.netlink import Netlink

PATHS: Final = {4: Path("/proc/sys/net/ipv4/ip_forward"), 6: Path("/proc/sys/net/ipv6/conf/all/forwarding")}
COMMANDS: Final = {4: "sysctl -w net.ipv4.ip_forward=1", 6: "sysctl -w net.ipv6.conf.all.forwarding=1"}
OFF, ON = "0", "1"
_REDIRECTS: Final = Path("/proc/sys/net/ipv4/conf/all/accept_redirects")
_ROUTES6: Final = Path("/proc/thread-self/net/ipv6_route")
_RTF_GATEWAY, _RTF_ADDRCONF = 0x2, 0x40000
_HOST_TAKES, _ROUTER_TAKES = "1", "2"


def set_on(ground: Ground, version: int) -> None:
    """Switches forwarding on, and notes if it was off. Warns if the kernel refuses."""
    path, marker = PATHS[version], rules.DID_NOT_FORWARD[version]
    try:
        is_off = path.read_text().strip() == OFF
        noted = any(isinstance(each, ForwardingSet) and each.version == version for each in ground.ledger.operations())
        if is_off or noted:
            ground.again("sysctl", int(is_off and noted))
            if not noted:
                redirects = _REDIRECTS.read_text().strip() if version == 4 else ""
                ground.ledger.do(ForwardingSet(version, redirects, ",".join(nat_tables())))
            rules.add(ground.kernel, marker)
        elif marker in rules.standing(ground.kernel, 4):
            ground.ledger.do(ForwardingSet(version, "", ""))
        if is_off:
            if version == 6:
                _keep_router_advertisements(ground)
            path.write_text(ON)
    except FileNotFoundError:
        return  # a kernel without this version
    except OSError as error:
        text = f"the host forwards no IPv{version}, and this can't be changed here ({error.strerror}): `{COMMANDS[version]}`"
        ground.warn(f"forwarding {version}", text)
    else:
        ground.warn(f"forwarding {version}", "")


def is_lost(version: int) -> bool:
    """Tells whether forwarding is off."""
    try:
        return PATHS[version].read_text().strip() == OFF
    except OSError:
        return False


def give_back(kernel: Netlink, version: int, operations: list[Operation]) -> None:
    """Switches forwarding off unless others need it. Our own table must be gone. Raises OSError."""
    if standing_forwards():
        return  # the last of our gateways does it
    noted = [each for each in operations if isinstance(each, ForwardingSet) and each.version == version]
    before = {name for each in noted for name in each.nat.split(",")}
    rules.remove(kernel, rules.DID_NOT_FORWARD[version])
    if not before.issuperset(nat_tables()) or is_lost(version):
        return
    PATHS[version].write_text(OFF)
    if version == 4:
        for each in noted:
            if each.redirects in {"0", "1"}:
                _REDIRECTS.write_text(each.redirects)


def give_back_router_advertisements(kept: RouterAdvertisementsKept) -> None:
    """Lets an interface take router advertisements as before. Raises OSError."""
    path = _accept_ra(kept.link)
    if is_lost(6) and path.exists() and path.read_text().strip() == _ROUTER_TAKES:
        path.write_text(_HOST_TAKES)


def _keep_router_advertisements(ground: Ground) -> None:
    for link in _advertised_links():
        path = _accept_ra(link)
        if path.read_text().strip() == _HOST_TAKES:
            ground.ledger.do(RouterAdvertisementsKept(link))
            path.write_text(_ROUTER_TAKES)


def _advertised_links() -> set[str]:
    """Returns the interfaces on which a router has given this host a route."""
    found = set[str]()
    with suppress(OSError, ValueError, IndexError):
        for line in _ROUTES6.read_text().splitlines():
            words = line.split()
            flags = int(words[8], 16)
            if flags & _RTF_ADDRCONF and flags & _RTF_GATEWAY:
                found.add(words[9])
    return found


def _accept_ra(link: str) -> Path:
    return Path("/proc/sys/net/ipv6/conf") / link / "accept_ra"
