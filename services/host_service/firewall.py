"""Makes the nftables table that a default route through the tunnel needs, much as wg-quick(8) does.

The policy rules alone leave three holes:

- With rp_filter = 1 the kernel looks up the way back for each outer packet that arrives. Without our mark that way is the
  tunnel, so the kernel drops the packet. Hence the table keeps the mark in the flow's conntrack entry, and gives it to the
  answers. src_valid_mark makes rp_filter look at the mark. (IPv6 has no rp_filter, but firewalls with `fib saddr . iif` do
  the same.)
- Linux answers for each of its addresses on every interface. So neighbours on the local network could reach the tunnel's own
  addresses, and find them out. Hence the table drops packets to these addresses from other interfaces.
- Another program may remove the rules. Until they are back, packets of connections through the tunnel would leave in clear.
  Hence the table drops packets from the tunnel's own addresses that leave by another interface.

Each interface has one table, made and removed whole. Our table has our comment, or the handle that the kernel gave it and
gives to no other. host-service touches no other table, not even a foreign one of the same name.

A kernel built without `fib` or `ct` refuses the whole table. Then the table is made without them.
"""

import errno
import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import combinations
from typing import Any, Final, NamedTuple

from host_service.addresses import Address
from stagewire.linux import netlink, privileges
from stagewire.linux.netlink import Netlink
from stagewire.linux.nft_names import PREFIX, table_of

WITHIN: Final = 9.0
"""s for one run of nft: rules for 10,000 peers take 1 s on an idle machine."""
FAMILIES: Final = {4: "ip", 6: "ip6"}
NETLINK_NETFILTER: Final = 12
_GET_TABLE, _GET_CHAIN = 10 << 8 | 1, 10 << 8 | 4
_INET: Final = bytes([1, 0, 0, 0])
_EACH_FAMILY: Final = bytes(4)
_TABLE_NAME, _TABLE_HANDLE, _TABLE_USERDATA = 1, 4, 6
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_USE, _CHAIN_TYPE = 1, 3, 4, 6, 7
_HOOK_NUMBER: Final = 1
_POSTROUTING: Final = 4
COMMENT: Final = "made by stagewire"
_CHAINS: Final = {
    "preraw": "type filter hook prerouting priority raw;",
    "premangle": "type filter hook prerouting priority mangle;",
    "postmangle": "type filter hook postrouting priority mangle;",
}
_WITHOUT: Final = {
    "fib": "the table knows packets for the tunnel's own addresses by their interface alone",
    "ct": "rp_filter = 1 would cut the tunnel off",
    "comment": "",
}
"""Parts that the table can do without, and what their absence means."""


class Standing(NamedTuple):
    """Describes a standing table. `is_ours` follows from its comment, or from its chains where it has none."""

    handle: int
    is_ours: bool


def find(table: str) -> Standing | None:
    """Looks for a table. Raises OSError if the kernel has no nftables."""
    with Netlink(NETLINK_NETFILTER) as kernel:
        try:
            body = kernel.get(_GET_TABLE, _INET + netlink.name(_TABLE_NAME, table))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        found = netlink.attributes(body[len(_INET) :])
        handle, said = int.from_bytes(found.get(_TABLE_HANDLE, b"")), found.get(_TABLE_USERDATA, b"")
        return Standing(handle, COMMENT.encode() in said if said else _chains_of(kernel, table) == {*_CHAINS})


def _chains_of(kernel: Netlink, table: str) -> set[str]:
    found = (netlink.attributes(body[len(_INET) :]) for bodies in kernel.dump(_GET_CHAIN, _INET) for body in bodies)
    text = table.encode()
    return {
        each.get(_CHAIN_NAME, b"").rstrip(b"\0").decode(errors="replace") for each in found
        if each.get(_CHAIN_TABLE, b"").rstrip(b"\0") == text
    }  # fmt: skip


def commented(comment: str) -> set[str]:
    """Returns the tables of family inet that have this comment. Raises OSError if the kernel has no nftables."""
    with Netlink(NETLINK_NETFILTER) as kernel:
        found = [netlink.attributes(body[len(_INET) :]) for bodies in kernel.dump(_GET_TABLE, _INET) for body in bodies]
    text = comment.encode() + b"\0"
    return {_text(each.get(_TABLE_NAME, b"")) for each in found if text in each.get(_TABLE_USERDATA, b"")}


def nat_tables() -> list[str]:
    """Returns the tables of other programs with rules that change source addresses; none without nftables."""
    found = set[str]()
    with suppress(OSError), Netlink(NETLINK_NETFILTER) as kernel:
        for body in (body for bodies in kernel.dump(_GET_CHAIN, _EACH_FAMILY) for body in bodies):
            each = netlink.attributes(body[len(_INET) :])
            hook = netlink.attributes(each.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER, b"")
            has_rules = int.from_bytes(each.get(_CHAIN_USE, b"")) > 0
            if _text(each.get(_CHAIN_TYPE, b"")) == "nat" and int.from_bytes(hook) == _POSTROUTING and has_rules:
                found.add(_text(each.get(_CHAIN_TABLE, b"")))
    return sorted(name for name in found if not name.startswith(PREFIX))


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def make(
    name: str,
    addresses: Iterable[Address],
    families: Iterable[int],
    mark: int,
    instead_of: int = 0,
    former: Iterable[int] = (),
) -> str:
    """Makes the interface's table. Returns a warning of what it lacks, or nothing.

    `instead_of` is the handle of our table to replace, 0 for none. `former` lists marks that conntrack may still hold.
    """
    if not is_installed():
        return (
            "nft is not installed, so the firewall stays as it is: rp_filter = 1 would cut the tunnel off, "
            "and neighbours can reach the tunnel's own addresses"
        )
    refused = ""
    addresses, families = list(addresses), list(families)
    for count in range(len(_WITHOUT) + 1):
        for without in combinations(_WITHOUT, count):
            said = run("\n".join(lines(name, addresses, families, mark, instead_of, without, former)))
            if not said:
                missing = {each: _WITHOUT[each] for each in without if _WITHOUT[each]}
                text = f"nft takes no {' and no '.join(missing)} here: {', and '.join(missing.values())}"
                return text if missing else ""
            refused = refused or said
    return f"the default route's firewall rules are not set: nft says {refused}"


def is_installed() -> bool:
    return shutil.which("nft") is not None


def remove(handle: int) -> str:
    """Removes a table. Returns the reason for a failure, or nothing."""
    return run(f"delete table inet handle {handle}") if is_installed() else "nft is not installed"


def lines(
    name: str,
    addresses: Iterable[Address],
    families: Iterable[int],
    mark: int,
    instead_of: int = 0,
    without: Iterable[str] = (),
    former: Iterable[int] = (),
) -> Iterator[str]:
    """Yields the lines of one transaction that makes the table. The transaction fails if the name is taken."""
    table, families, without = table_of(name), sorted(families), {*without}
    if instead_of:
        yield f"delete table inet handle {instead_of}"
    comment = "" if "comment" in without else f' {{ comment "{COMMENT}"; }}'
    yield f"create table inet {table}{comment}"
    for chain, what in _CHAINS.items():
        yield f"add chain inet {table} {chain} {{ {what} }}"
    elsewhere = f'iifname != "{name}"'
    for address in addresses:
        if address.version in families:
            ours = f"{FAMILIES[address.version]} daddr {address.ip}"
            from_us = f'{ours} iifname != "lo"' if "fib" in without else f"{ours} fib saddr type != local"
            yield f"add rule inet {table} preraw {elsewhere} {from_us} drop"
            yield (
                f'add rule inet {table} postmangle oifname != "lo" oifname != "{name}" meta mark != {mark} '
                f"{FAMILIES[address.version]} saddr {address.ip} drop"
            )
    for version in families if "ct" not in without else ():
        # TCP as well: resolver-service asks under the mark.
        ours = f"meta nfproto ipv{version} meta l4proto {{ tcp, udp }}"
        yield f"add rule inet {table} postmangle {ours} meta mark {mark} ct mark set meta mark"
        for earlier in sorted(former):
            yield f"add rule inet {table} premangle {ours} ct mark {earlier} ct mark set {mark}"
        # Only for our mark: wg-quick's rule clears other programs' marks on flows without a mark in conntrack.
        yield f"add rule inet {table} premangle {ours} ct mark {mark} meta mark set ct mark"


def run(text: str) -> str:
    """Has nft carry out a transaction. Returns the reason for a failure, or nothing."""
    try:
        done = _nft("-f", "-", said=text + "\n")
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]


def ruleset() -> list[dict[str, Any]]:
    """Returns all tables, chains and rules, without the elements of sets (libnftables-json(5)); nothing if nft fails."""
    with suppress(OSError, subprocess.SubprocessError, ValueError, KeyError):
        done = _nft("-j", "-t", "list", "ruleset")
        found: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
        return found
    return []


def _nft(*arguments: str, said: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["nft", *arguments], input=said, capture_output=True, text=True, errors="replace", check=False, timeout=WITHIN,
        preexec_fn=privileges.hand_on_net_admin,
    )  # fmt: skip
