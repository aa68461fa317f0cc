"""Turns [Peer] sections into peers as `wg setconf` does, in turn: the later section counts."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from stagewire.config import keys, published
from stagewire.config.drafts import PeerDraft
from stagewire.config.findings import Findings
from stagewire.config.model import Network, PeerConfig


@dataclass(slots=True, repr=False, eq=False)
class _Peer:
    """Holds one peer. `draft` is its first section, with the later ones laid over it."""

    draft: PeerDraft
    prefixes: dict[Network, None] = field(default_factory=dict)

    def lay_over(self, later: PeerDraft) -> None:
        draft, given = self.draft, later.lines
        if "PresharedKey" in given:
            draft.preshared_key = later.preshared_key
        if "Endpoint" in given:
            draft.endpoint = later.endpoint
        if "PersistentKeepalive" in given:
            draft.persistent_keepalive = later.persistent_keepalive
        if "ResponseTimestamp" in given:
            draft.response_timestamp = later.response_timestamp
        draft.name = later.name or draft.name
        if "Expires" in given:
            draft.expires = later.expires
        if "Rate" in given:
            draft.limits = replace(draft.limits, rate_to=later.limits.rate_to, rate_from=later.limits.rate_from)
        if "Quota" in given:
            draft.limits = replace(draft.limits, quota=later.limits.quota)
        if any(key.startswith("Client") for key in given):
            draft.client = later.client
        if "Groups" in given:
            draft.access = replace(draft.access, groups=later.access.groups)
        if "Allow" in given:
            draft.access = replace(draft.access, allow=later.access.allow)
        if "Forward" in given:
            draft.access = replace(draft.access, forwards=later.access.forwards)


@dataclass(frozen=True, slots=True)
class _Claim:
    """Tells which peer has a prefix, by which section, in which line."""

    peer: _Peer
    section: int
    line: int


class _Settling:
    def __init__(self, own_public: bytes | None, findings: Findings) -> None:
        self.own_public, self.findings = own_public, findings
        self.peers: dict[bytes | int, _Peer] = {}
        self.sections: dict[bytes | int, int] = {}  # the line of each peer's last section
        self.owners: dict[Network, _Claim] = {}

    def take(self, draft: PeerDraft) -> None:
        key = draft.line if draft.public_key is None else draft.public_key
        if draft.public_key is not None and not self._check_key(draft, draft.public_key):
            return
        known = self.peers.get(key)
        if known is None:
            peer = self.peers[key] = _Peer(draft)
        else:
            peer = known
            peer.lay_over(draft)
            if not draft.adds:
                for prefix in peer.prefixes:
                    del self.owners[prefix]
                peer.prefixes.clear()
        self.sections[key] = draft.line
        for line, added, prefix in draft.allowed_ips:
            self._allow(peer, draft, line, added, prefix)

    def _check_key(self, draft: PeerDraft, key: bytes) -> bool:
        """Reports an odd public key, and tells whether the section counts."""
        line = draft.lines["PublicKey"]
        if (earlier := self.sections.get(key)) is not None:
            where = f"the [Peer] in line {earlier} and the [Peer] in line {draft.line}"
            self.findings.warning(line, f"{where} have the same PublicKey; what the later one says counts")
        elif key == self.own_public:
            what = "PublicKey is that of our own PrivateKey: a gateway can't be its own peer"
            self.findings.warning(line, f"{what}, and this [Peer] is left out")
            return False
        elif where := published.where_published(key):
            self.findings.mistake(line, f"PublicKey is {where}: put the peer's own there")
        elif keys.is_low_order(key):
            what = "PublicKey is a point of low order, with which nothing can be kept secret"
            self.findings.warning(line, f"{what}: nothing is ever sent to this [Peer]")
        return True

    def _allow(self, peer: _Peer, draft: PeerDraft, line: int, added: bool, prefix: Network) -> None:
        if not added:
            if prefix in peer.prefixes:
                del self.owners[prefix], peer.prefixes[prefix]
            return
        owner = self.owners.get(prefix)
        if owner is not None and owner.peer is not peer:
            del owner.peer.prefixes[prefix]
            other = f"the [Peer] in line {owner.section} (its line {owner.line})"
            what = f"{prefix} of the [Peer] in line {draft.line} also belongs to {other}"
            self.findings.warning(line, f"{what}; the later one gets it")
        if owner is None or owner.peer is not peer:
            self.owners[prefix] = _Claim(peer, draft.line, line)
            peer.prefixes[prefix] = None


def settle(drafts: Iterable[PeerDraft], own_public: bytes | None, findings: Findings) -> tuple[PeerConfig, ...]:
    """Merges the sections into peers, in the order in which each peer is first named."""
    settling = _Settling(own_public, findings)
    for draft in drafts:
        settling.take(draft)
    return tuple(
        PeerConfig(
            public_key=peer.draft.public_key,
            preshared_key=peer.draft.preshared_key,
            allowed_ips=tuple(peer.prefixes),
            endpoint=peer.draft.endpoint,
            persistent_keepalive=peer.draft.persistent_keepalive,
            response_timestamp=peer.draft.response_timestamp,
            line=peer.draft.line,
            name=peer.draft.name,
            expires=peer.draft.expires,
            client=peer.draft.client,
            access=peer.draft.access,
            limits=peer.draft.limits,
        )
        for peer in settling.peers.values()
        if peer.draft.public_key is not None
    )
