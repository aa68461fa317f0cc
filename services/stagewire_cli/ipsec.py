"""Finds what this host's IPsec policies (ip-xfrm(8)) do to a tunnel's packets. Changes nothing."""

import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

_WITHIN: Final = 3
"""s"""
_COUNTERS: Final = Path("/proc/net/xfrm_stat")


@dataclass(frozen=True, slots=True)
class Policy:
    """Describes a policy by what it selects."""

    source: str
    destination: str
    direction: str

    @property
    def command(self) -> tuple[str, ...]:
        """Returns the command that removes it."""
        return (
            *("ip", "xfrm", "policy", "delete", "src", self.source, "dst", self.destination),
            *("dir", self.direction),
        )

    def is_about(self, address: str) -> bool:
        """Tells whether an address is of the network that the policy selects at the far end."""
        network = ip_network(self.source if self.direction == "in" else self.destination, strict=False)
        return ip_address(address) in network


def drops() -> int:
    """Counts the packets that policies and broken states have cost."""
    with suppress(OSError, ValueError):
        return sum(int(line.split()[1]) for line in _COUNTERS.read_text().splitlines())
    return 0


def policy_about(addresses: Iterable[str]) -> Policy | None:
    """Returns the policy that selects one of the addresses as the far end."""
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(
            ("ip", "xfrm", "policy"), capture_output=True, check=True, timeout=_WITHIN, text=True, errors="replace"
        ).stdout
        wanted = [*addresses]
        return next((each for each in parsed(said) if any(map(each.is_about, wanted))), None)
    return None


def parsed(said: str) -> list[Policy]:
    """Reads what `ip xfrm policy` lists: a line of selectors, then a line of what to do."""
    found, selectors = [], dict[str, str]()
    for line in said.splitlines():
        words = line.split()
        if words[:1] == ["src"]:
            selectors = dict(zip(words[::2], words[1::2], strict=False))
        elif words[:1] == ["dir"] and words[1] in {"in", "out"} and "dst" in selectors:
            with suppress(ValueError):
                policy = Policy(selectors["src"], selectors["dst"], words[1])
                ip_network(policy.source, strict=False), ip_network(policy.destination, strict=False)
                found.append(policy)
    return found
