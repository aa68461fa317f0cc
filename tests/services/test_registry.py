"""The configuration in force: every rule of a set, and any sets at all against a model that is too simple to be wrong."""

from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from key_service.delta import Delta
from key_service.registry import Registry, unconfigured
from stagewire.config import HostPort, encode_key, public_key
from stagewire.config.parser import parse
from stagewire.config.uapi import Change, PeerChange, PrefixChange, reader
from stagewire.proto.endpoint import Endpoint

NONE = bytes(32)
PRIVATE = bytes([8, *range(1, 31), 64])
OWN = public_key(PRIVATE)
A, B, C = (sha256(name).digest() for name in (b"a", b"b", b"c"))
PLACE = Endpoint(bytes([192, 0, 2, 1]), 99)
Prefix = IPv4Network | IPv6Network


def net(text: str) -> Prefix:
    return ip_network(text)


def peer(key: bytes, *allowed: str, **values: object) -> PeerChange:
    """`-10.0.0.0/8` removes."""
    changes = tuple(PrefixChange(net(each.lstrip("-")), not each.startswith("-")) for each in allowed)
    return PeerChange(key, 1, allowed_ips=changes, **values)  # type: ignore[arg-type]


def made(*peers: PeerChange) -> Registry:
    registry = Registry(unconfigured())
    apply(registry, Change(private_key=PRIVATE, peers=peers))
    return registry


def apply(registry: Registry, change: Change) -> Delta:
    return registry.commit(registry.prepare(change))


def allowed(registry: Registry, key: bytes) -> list[str]:
    return list(map(str, registry.peers[key].allowed_ips))


def test_nothing_holds_until_commit() -> None:
    registry = made(peer(A, "10.0.0.0/8"))
    before = registry.snapshot()
    change = Change(bytes([16, *range(31)]), 5, 6, True, (peer(B, "10.0.0.0/8"),))
    prepared = registry.prepare(change)
    assert registry.snapshot() == before
    delta = registry.commit(prepared)
    assert (delta.private_key, delta.listen_port, delta.fwmark, delta.gone) == (True, True, True, [A])
    assert delta.prefixes_gone == [(A, net("10.0.0.0/8"))]
    assert (registry.interface.listen_port, registry.interface.fwmark) == (5, 6)
    assert list(registry.peers) == [B]


def test_interface() -> None:
    registry = made()
    assert apply(registry, Change()) == Delta()
    delta = apply(registry, Change(private_key=PRIVATE, listen_port=0, fwmark=0))
    assert (delta.private_key, delta.listen_port, delta.fwmark) == (False, True, False)
    assert apply(registry, Change(private_key=NONE)).private_key
    assert registry.interface.private_key is None


def test_a_prefix_has_one_owner() -> None:
    registry = made(peer(A, "10.0.0.0/8", "fd00::/8"), peer(B))
    delta = apply(registry, Change(peers=(peer(B, "10.0.0.0/8"),)))
    assert (allowed(registry, A), allowed(registry, B)) == (["fd00::/8"], ["10.0.0.0/8"])
    assert delta.peers[A].prefixes_removed == delta.peers[B].prefixes_added == [net("10.0.0.0/8")]
    assert (delta.peers[A].mentioned, delta.peers[B].mentioned) == (False, True)
    # The last of a set has it; there and back is no change.
    delta = apply(registry, Change(peers=(peer(A, "10.0.0.0/8"), peer(B, "10.0.0.0/8"))))
    assert delta.peers[B].prefixes_added == delta.peers[A].prefixes_removed == []


def test_prefixes_are_taken_from_their_owner_alone_and_exactly() -> None:
    registry = made(peer(A, "10.0.0.0/8"), peer(B))
    for change in (peer(B, "-10.0.0.0/8"), peer(A, "-10.0.0.0/9"), peer(A, "-10.0.0.0/7")):
        apply(registry, Change(peers=(change,)))
        assert allowed(registry, A) == ["10.0.0.0/8"]
    apply(registry, Change(peers=(peer(A, "-10.0.0.0/8", "11.0.0.0/8"),)))
    assert allowed(registry, A) == ["11.0.0.0/8"]
    apply(registry, Change(peers=(peer(A, "12.0.0.0/8", replace_allowed_ips=True),)))
    assert allowed(registry, A) == ["12.0.0.0/8"]
    apply(registry, Change(peers=(peer(B, "11.0.0.0/8"),)))
    assert allowed(registry, B) == ["11.0.0.0/8"]


def test_remove_and_update_only() -> None:
    registry = made(peer(A, "10.0.0.0/8"))
    delta = apply(registry, Change(peers=(peer(B, "10.0.0.0/8", update_only=True), peer(C, remove=True))))
    assert delta == Delta()
    assert apply(registry, Change(peers=(peer(A, remove=True),))).gone == [A]
    assert registry.peers == {}
    assert apply(registry, Change(peers=(peer(B, "10.0.0.0/8"),))).peers[B].added
    # Removed and made again in one set: another peer, though the stages needn't know.
    again = Change(peers=(peer(B, remove=True), peer(B, "11.0.0.0/8", update_only=True)))
    assert apply(registry, again).gone == [B]


def test_the_own_key_is_no_peer() -> None:
    registry = made(peer(OWN, "10.0.0.0/8"), peer(A))
    assert list(registry.peers) == [A]
    other = bytes([16, *range(30), 64])
    apply(registry, Change(peers=(peer(public_key(other), "10.0.0.0/8"),)))
    delta = apply(registry, Change(private_key=other, peers=(peer(public_key(other), "11.0.0.0/8"),)))
    assert delta.gone == [public_key(other)]
    assert list(registry.peers) == [A]


def test_values_stay_unless_mentioned() -> None:
    registry = made(peer(A, preshared_key=B, endpoint=PLACE, persistent_keepalive=9))
    delta = apply(registry, Change(peers=(peer(A, "10.0.0.0/8"),)))
    changed, standing = delta.peers[A], registry.peers[A]
    assert (changed.added, changed.preshared_key, changed.endpoint, changed.keepalive) == (False, False, None, False)
    assert (standing.preshared_key, standing.endpoint) == (B, HostPort("192.0.2.1", 99))
    delta = apply(registry, Change(peers=(peer(A, preshared_key=NONE, persistent_keepalive=0, endpoint=PLACE),)))
    changed = delta.peers[A]
    assert (changed.preshared_key, changed.endpoint, changed.keepalive) == (True, PLACE, True)
    scoped = Endpoint(bytes.fromhex("fe80" + "00" * 13 + "01"), 5, 3)
    apply(registry, Change(peers=(peer(A, endpoint=scoped),)))
    assert registry.peers[A].endpoint == HostPort("fe80::1%3", 5)


def test_replacing_all_keeps_what_the_socket_has_no_word_for() -> None:
    text = (
        f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n[Peer]\nPublicKey = {encode_key(A)}\n"
        f"PresharedKey = {encode_key(B)}\n"
        "AllowedIPs = 10.0.0.0/8\n# stagewire: ResponseTimestamp = on\n"
    )
    registry = Registry(parse(text, "test"))
    delta = apply(registry, Change(replace_peers=True, peers=(peer(A, "10.0.0.0/8"),)))
    assert registry.peers[A].response_timestamp
    assert registry.peers[A].preshared_key == NONE
    assert (delta.gone, delta.peers[A].added, delta.peers[A].preshared_key) == ([], False, True)


def test_what_was_remembered_is_taken_up_whole_or_not_at_all() -> None:
    text = f"set=1\nlisten_port=7\npublic_key={A.hex()}\nallowed_ip=10.0.0.0/8\n\n".encode()
    registry = made()
    registry.restore(text[:-1])
    assert registry.peers == {}
    registry.restore(text)
    assert (registry.interface.listen_port, allowed(registry, A)) == (7, ["10.0.0.0/8"])


def test_what_many_changes_came_to_is_taken_up_whatever_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """One change has a bound, their sum has none: a rewritten journal beyond it once left nothing in force."""
    for bound in ("MAX_ITEMS", "MAX_LINES", "MAX_OPERATION"):
        monkeypatch.setattr(reader, bound, 3)
    registry = made()
    prefixes = [f"10.0.0.{number}/32" for number in range(9)]
    lines = "".join(f"allowed_ip={prefix}\n" for prefix in prefixes)
    registry.restore(f"set=1\npublic_key={A.hex()}\n{lines}\n".encode())
    assert allowed(registry, A) == prefixes


# --- against a model ------------------------------------------------------------------------------------------


@dataclass
class Model:
    """Peers in order, each with its keepalive; prefixes with their owner, in the order of being given."""

    peers: dict[bytes, int] = field(default_factory=dict)
    owners: dict[Prefix, bytes] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        if change.replace_peers:
            self.peers, self.owners = {}, {}
        for each in change.peers:
            self._apply(each)

    def _apply(self, change: PeerChange) -> None:
        key = change.public_key
        if key == OWN or (key not in self.peers and (change.update_only or change.remove)):
            return
        if change.remove or change.replace_allowed_ips:
            self.owners = {prefix: owner for prefix, owner in self.owners.items() if owner != key}
        if change.remove:
            del self.peers[key]
            return
        self.peers.setdefault(key, 0)
        if change.persistent_keepalive is not None:
            self.peers[key] = change.persistent_keepalive
        for entry in change.allowed_ips:
            if entry.add:
                self.owners[entry.prefix] = key
            elif self.owners.get(entry.prefix) == key:
                del self.owners[entry.prefix]


PREFIXES = st.builds(
    PrefixChange,
    st.sampled_from([net(each) for each in ("10.0.0.0/8", "10.0.0.0/9", "0.0.0.0/0", "::/0")]),
    st.booleans(),
)
PEERS = st.builds(
    PeerChange,
    st.sampled_from([A, B, C, OWN]),
    st.just(1),
    remove=st.integers(0, 5).map(lambda n: n == 0),
    update_only=st.booleans(),
    persistent_keepalive=st.one_of(st.none(), st.integers(0, 2)),
    replace_allowed_ips=st.booleans(),
    allowed_ips=st.lists(PREFIXES, max_size=4).map(tuple),
)
CHANGES = st.builds(
    Change, replace_peers=st.integers(0, 4).map(lambda n: n == 0), peers=st.lists(PEERS, max_size=5).map(tuple)
)


@given(st.lists(CHANGES, min_size=1, max_size=8))
def test_any_sets_come_to_what_the_model_says_and_the_deltas_to_the_same(changes: list[Change]) -> None:
    registry, model = made(), Model()
    told: dict[Prefix, bytes] = {}
    known: set[bytes] = set()
    for change in changes:
        delta = apply(registry, change)
        model.apply(change)
        assert {key: each.persistent_keepalive for key, each in registry.peers.items()} == model.peers
        owners = {prefix: key for key, each in registry.peers.items() for prefix in each.allowed_ips}
        assert owners == model.owners
        assert sum(len(each.allowed_ips) for each in registry.peers.values()) == len(owners)
        # A stage that heard nothing but the deltas has come to the same.
        for key, prefix in delta.prefixes_gone:
            assert told.pop(prefix) == key
        for key, each in delta.peers.items():
            for prefix in each.prefixes_removed:
                assert told.pop(prefix) == key
        for key, each in delta.peers.items():
            assert each.added == (key not in known)
            told |= dict.fromkeys(each.prefixes_added, key)
        known = (known - set(delta.gone)) | set(delta.peers)
        assert told == owners
        assert known == set(registry.peers)
