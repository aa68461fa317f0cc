"""Finds what two sections claim: a name, a port of the gateway, or what a peer out of use still has.

`wg` knows neither names, nor port forwards, nor peers out of use. So a contradiction refuses the file, unless both claims
say the same.
"""

from collections.abc import Iterable, Mapping, Sequence

from stagewire.config import gateway, peer_names
from stagewire.config.drafts import PeerDraft
from stagewire.config.findings import Findings
from stagewire.config.model import Access, Forward, Network
from stagewire.limits import DEFAULT_PORT


def check_names(drafts: Iterable[PeerDraft], findings: Findings) -> None:
    """Warns of peers that differ in nothing that an operator can tell apart in a name."""
    seen: dict[str, PeerDraft] = {}
    for draft in drafts:
        first = seen.setdefault(peer_names.folded(draft.name), draft)
        if draft.name and first is not draft and first.public_key != draft.public_key:
            what = f"the name {draft.name!r} is that of the [Peer] in line {first.line} too"
            findings.warning(draft.line, f"{what}: commands need the key to tell both apart")


def check_groups(common: Access, drafts: Iterable[PeerDraft], findings: Findings) -> None:
    """Warns of groups that no rule is for, and of port forwards that lead nowhere."""
    ruled = {each.group for each in common.allow}
    for peer in drafts:
        for group in peer.access.groups:
            if group not in ruled and "" not in ruled and not peer.access.allow:
                what = f"no Allow line of [Interface] names the group {group}, so it lets this peer reach nothing"
                findings.warning(peer.lines["Groups"], what)
        own = gateway.own_addresses(_prefixes(peer))
        if not own and any(each.to is None for each in peer.access.forwards):
            what = (
                "Forward leads nowhere: no prefix of AllowedIPs is one address; name one, as in tcp 8080 10.66.0.2:80"
            )
            findings.warning(peer.lines["Forward"], what)


def check_forwards(
    common: Mapping[Forward, int], drafts: Iterable[PeerDraft], listen_port: int | None, findings: Findings
) -> None:
    """Refuses a port of the gateway that leads to two places, or is the gateway's own. `common` has lines of [Interface]."""
    given: dict[tuple[str, int, int], tuple[int, object]] = {}
    sources: list[tuple[Mapping[Forward, int], Sequence[Network]]] = [(common, ())]
    sources += [(draft.forwards, _prefixes(draft)) for draft in drafts]
    for forwards, prefixes in sources:
        for each, line in forwards.items():
            if (each.protocol, each.port) == ("udp", listen_port):
                what = f"Forward leads away UDP port {each.port}, which is this gateway's ListenPort"
                findings.mistake(line, what)
            elif (each.protocol, each.port, listen_port) == ("udp", DEFAULT_PORT, None):
                what = f"Forward leads away UDP port {each.port}, on which this gateway may listen"
                findings.mistake(line, f"{what}: give it a ListenPort")
            twice = {
                first[0]: first[1] == target
                for version, target in gateway.targets(each, prefixes).items()
                if (first := given.setdefault((each.protocol, each.port, version), (line, target)))[0] != line
            }
            for first_line, same in twice.items():
                what = f"Forward of {each.protocol} {each.port} is given in line {first_line}"
                if same:
                    findings.warning(line, f"{what} as well")
                else:
                    findings.mistake(line, f"{what} already, and leads elsewhere there: leave one of both out")


def check_out_of_use(used: Iterable[PeerDraft], away: Iterable[PeerDraft], findings: Findings) -> None:
    """Refuses a peer out of use whose key or prefix another peer has: it could never come back."""
    keys: dict[bytes, int] = {}
    owners: dict[Network, int] = {}
    for draft in used:
        if draft.public_key is not None:
            keys[draft.public_key] = draft.line
        owners.update(dict.fromkeys(_prefixes(draft), draft.line))
    for draft in away:
        if draft.public_key in keys:
            what = f"this [Peer] is out of use, and the one in line {keys[draft.public_key]} has the same PublicKey"
            findings.mistake(draft.line, f"{what}: remove one of both")
            continue
        if draft.public_key is not None:
            keys[draft.public_key] = draft.line
        for line, added, prefix in draft.allowed_ips:
            first = owners.setdefault(prefix, draft.line) if added else draft.line
            if first != draft.line:
                what = f"{prefix} is that of the [Peer] in line {first}, and this [Peer] is out of use"
                findings.mistake(line, f"{what}: give one of both another address")


def _prefixes(draft: PeerDraft) -> list[Network]:
    return [prefix for _, added, prefix in draft.allowed_ips if added]
