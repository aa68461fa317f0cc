"""What a default route through the tunnel needs of the firewall, as wg-quick(8) sets it.

tun-service sets the policy rules: what doesn't carry our mark goes into the tunnel. They alone would have two holes:

- With rp_filter = 1 the kernel asks, for each outer packet that comes in, by which way it would answer, without our mark:
  through the tunnel, so it drops the packet. Hence the mark is kept in the flow's conntrack entry and given to the answers,
  and src_valid_mark makes rp_filter look at it. (IPv6 has no rp_filter, but firewalls with `fib saddr . iif` do the same.)
- Linux answers for each of its addresses on every interface, so neighbours on the local network could reach the tunnel's
  own addresses, and learn by that which they are. Hence what comes for them from elsewhere is dropped.

All is one nftables table for each interface, made and removed whole. src_valid_mark stays on, as others may need it by then;
nothing but the reverse path of marked packets depends on it.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from stagewire.config import InterfaceConfig

MARK: Final = 51820
"""What key-service marks outer packets with when there is a default route and no FwMark."""
_SRC_VALID_MARK: Final = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")
_FAMILIES: Final = {4: "ip", 6: "ip6"}
_CHAINS: Final = (
    "add chain inet {table} preraw {{ type filter hook prerouting priority raw; }}",
    "add chain inet {table} premangle {{ type filter hook prerouting priority mangle; }}",
    "add chain inet {table} postmangle {{ type filter hook postrouting priority mangle; }}",
)


def set_rules(name: str, interface: InterfaceConfig, warn: Callable[[str], None]) -> None:
    """Before the tunnel sends its first packet; whatever an earlier life left is replaced."""
    families = sorted(families_of(interface))
    if not families:
        return
    if 4 in families:
        try:
            if _SRC_VALID_MARK.read_text().strip() != "1":
                _SRC_VALID_MARK.write_text("1")
        except OSError as error:
            warn(f"net.ipv4.conf.all.src_valid_mark is not set, so rp_filter = 1 would cut the tunnel off: {error}")
    if not shutil.which("nft"):
        warn(
            "there is no nft, so the firewall is left as it is: rp_filter = 1 would cut the tunnel off, "
            "and neighbours can reach the tunnel's own addresses"
        )
        return
    done = _nft("\n".join(rules(name, interface)))
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[:1] or [f"it ended with {done.returncode}"]
        warn(f"the default route's firewall rules are not set: nft says {said[0]}")


def remove_rules(name: str) -> None:
    """Whether there are any or not."""
    if shutil.which("nft"):
        _nft("\n".join(_without(table_of(name))))


def families_of(interface: InterfaceConfig) -> set[int]:
    """Those whose default route leads through the tunnel by policy rules."""
    if interface.table != "auto":
        return set()
    return {each.version for peer in interface.peers for each in peer.allowed_ips if each.prefixlen == 0}


def table_of(name: str) -> str:
    """Of an interface; characters that nft has no place for in a name become their codes."""
    return "stagewire-" + re.sub(r"[^A-Za-z0-9._-]", lambda found: f"/{ord(found[0]):x}", name)


def rules(name: str, interface: InterfaceConfig) -> Iterator[str]:
    """The lines of one transaction that makes the table."""
    table, mark = table_of(name), interface.fwmark or MARK
    yield from _without(table)
    yield f"add table inet {table}"
    yield from (chain.format(table=table) for chain in _CHAINS)
    families = families_of(interface)
    for address in interface.addresses:
        if address.version in families:
            yield (
                f'add rule inet {table} preraw iifname != "{name}" {_FAMILIES[address.version]} daddr {address.ip} '
                "fib saddr type != local drop"
            )
    for version in sorted(families):
        udp = f"meta nfproto ipv{version} meta l4proto udp"
        yield f"add rule inet {table} postmangle {udp} meta mark {mark} ct mark set meta mark"
        # Ours alone: wg-quick's rule takes everybody else's mark away from what has none in conntrack.
        yield f"add rule inet {table} premangle {udp} ct mark {mark} meta mark set ct mark"


def _without(table: str) -> Iterator[str]:
    # A table that isn't there can't be deleted, and one that is there may be added.
    yield f"add table inet {table}"
    yield f"delete table inet {table}"


def _nft(text: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["nft", "-f", "-"], input=text + "\n", capture_output=True, text=True, check=False)
