"""Finds out why a peer has no traffic: evidence in, findings out, the most likely one first. Opens and asks nothing.

The checks (`causes`) follow a packet's way: the gateway itself, the peer's place, the handshake, the session, the host
behind it. A stage of checks that finds something ends the search, because later ones would only name its consequences.
"""

from collections.abc import Callable, Iterator
from typing import Final

from stagewire_cli.causes import beyond, handshakes, here, place, tunnel
from stagewire_cli.evidence import Away, Evidence, Finding


def search(evidence: Evidence) -> list[Finding]:
    """Returns the findings, the most likely first. There is at least one."""
    hints: list[Finding] = []
    beside = list(here.beside(evidence))
    for steps in _STEPS:
        found = [finding for step in steps for finding in step(evidence)]
        if any(finding.wrong for finding in found):
            return sorted(found, key=lambda finding: not finding.wrong) + beside
        hints += found
    return beside + (hints if hints and hints[0].id == "idle" else [_well(evidence), *hints])


def of_services(away: list[Away]) -> list[Finding]:
    """Returns the findings where key-service tells of no peer."""
    return [Finding("service_away", f"a part of the gateway does no work: {each}", each.mend) for each in away]


def _well(e: Evidence) -> Finding:
    age = "" if e.shaken is None else f"; the last handshake was {max(0, e.shaken):.0f} s ago"
    through = ", and packets of full size pass through the tunnel" if e.path.large else ""
    if e.tried == "answered" and e.path.small is None:
        through = "; no packet could be tried, as none of its AllowedIPs is a single address: ask about one behind it"
    return Finding("well", f"all is well from here{age}{through}", "nothing", wrong=False)


_Check = Callable[[Evidence], Iterator[Finding]]
_STEPS: Final[tuple[tuple[_Check, ...], ...]] = (
    (here.gateway,),
    (place.endpoint,),
    (here.datagrams,),
    (handshakes.contested, handshakes.keys, handshakes.answers),
    (tunnel.longer_prefix, handshakes.silence),
    (tunnel.held,),
    (here.tunnel_rules, here.host, tunnel.prefixes_of, tunnel.path_through, tunnel.session, tunnel.rate),
    (beyond.access, beyond.nothing_back, tunnel.earlier_sources),
)
"""Checks in order: one stage that finds something hides the later ones."""
