"""An edited file upon what is in force: the file's word counts where it has one, and what is the same is not touched."""

from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_network

from key_service.delta import Delta
from key_service.registry import Registry
from stagewire.config import InterfaceConfig, PeerConfig, encode_key, parse
from stagewire.config.uapi import Change, PeerChange
from stagewire.proto.endpoint import Endpoint

PRIVATE, OTHER = bytes([8, *range(1, 31), 64]), bytes([16, *range(1, 31), 64])
A, B, C = (sha256(name).digest() for name in (b"a", b"b", b"c"))
INTERFACE = f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\nListenPort = 5\n"
PLACE = Endpoint(bytes([192, 0, 2, 9]), 99)


def section(key: bytes, allowed: str, *lines: str) -> str:
    return "\n".join(["[Peer]", f"PublicKey = {encode_key(key)}", f"AllowedIPs = {allowed}", *lines, ""])


FILE = INTERFACE + section(A, "10.1.0.0/16", "Endpoint = 192.0.2.1:1") + section(B, "10.2.0.0/16")


def read(text: str) -> InterfaceConfig:
    return parse(text, "wg0.conf")


def reloaded(registry: Registry, text: str) -> Delta:
    file = read(text)
    prepared = registry.prepare(Change())
    for _ in prepared.work_out_file(file):
        pass
    return registry.commit(prepared)


def changed(registry: Registry, *peers: PeerChange, **values: int | bytes) -> None:
    registry.commit(registry.prepare(Change(peers=peers, **values)))  # type: ignore[arg-type]


def test_the_same_file_changes_nothing() -> None:
    registry = Registry(read(FILE))
    assert reloaded(registry, FILE) == Delta()
    assert registry.snapshot() == read(FILE)


def test_only_the_peer_that_changes_is_touched() -> None:
    registry = Registry(read(FILE))
    delta = reloaded(registry, FILE.replace("10.2.0.0/16", "10.2.0.0/17") + section(C, "10.3.0.0/16"))
    assert set(delta.peers) == {B, C}
    assert delta.peers[B].prefixes_added == [ip_network("10.2.0.0/17")]
    assert delta.peers[B].prefixes_removed == [ip_network("10.2.0.0/16")]
    assert delta.peers[C].added
    assert (delta.private_key, delta.listen_port, delta.fwmark, delta.gone) == (False, False, False, [])


def test_a_prefix_that_moves_is_taken_from_one_and_given_to_the_other() -> None:
    registry = Registry(read(FILE))
    delta = reloaded(registry, FILE.replace("10.2.0.0/16", "10.1.0.0/16", 1).replace("10.1.0.0/16", "10.2.0.0/16", 1))
    assert delta.peers[A].prefixes_added == delta.peers[B].prefixes_removed == [ip_network("10.2.0.0/16")]
    changed(registry, PeerChange(A, 1, remove=True))
    assert ip_network("10.1.0.0/16") in registry.peers[B].allowed_ips


def test_a_peer_that_the_file_does_not_name_goes() -> None:
    registry = Registry(read(FILE))
    changed(registry, PeerChange(C, 1))
    delta = reloaded(registry, INTERFACE + section(A, "10.1.0.0/16", "Endpoint = 192.0.2.1:1"))
    assert set(delta.gone) == {B, C}
    assert delta.prefixes_gone == [(B, ip_network("10.2.0.0/16"))]
    assert set(registry.peers) == {A} == registry.from_file.keys()


def test_what_wg_set_stays_where_the_file_has_no_word_for_it() -> None:
    registry = Registry(replace(read(FILE), private_key=None, listen_port=None))
    changed(
        registry,
        PeerChange(B, 1, preshared_key=OTHER, persistent_keepalive=7, endpoint=PLACE),
        private_key=PRIVATE, listen_port=77, fwmark=9,
    )  # fmt: skip
    before = registry.snapshot()
    text = FILE.replace("ListenPort = 5\n", "")
    file = replace(read(text), private_key=None)
    assert registry.with_file(file) == before
    # What the file says now, or said before and says no more, counts.
    file = replace(file, fwmark=3, peers=(file.peers[0], replace(file.peers[1], persistent_keepalive=8)))
    target = registry.with_file(file)
    assert (target.fwmark, target.peers[1].persistent_keepalive, target.peers[1].preshared_key) == (3, 8, OTHER)


def test_what_the_file_said_and_says_no_more_is_gone() -> None:
    registry = Registry(read(FILE))
    delta = reloaded(registry, FILE.replace("ListenPort = 5\n", ""))
    assert delta.listen_port
    assert registry.interface.listen_port is None


def test_an_endpoint_becomes_a_name_and_an_address_again() -> None:
    registry = Registry(read(FILE))
    delta = reloaded(registry, FILE.replace("192.0.2.1:1", "vpn.example:1"))
    assert (delta.peers[A].renamed, delta.peers[A].endpoint) == (True, None)
    delta = reloaded(registry, FILE)
    assert (delta.peers[A].renamed, delta.peers[A].endpoint) == (False, Endpoint(bytes([192, 0, 2, 1]), 1))


def test_a_peer_of_our_own_key_is_none() -> None:
    own = Registry(read(FILE))
    text = INTERFACE.replace(encode_key(PRIVATE), encode_key(OTHER)) + section(
        A, "10.1.0.0/16", "Endpoint = 192.0.2.1:1"
    )
    assert reloaded(own, text).private_key
    assert set(own.peers) == {A}


def test_with_peers_in_pieces_it_is_the_same() -> None:
    peers = tuple(
        PeerConfig(
            sha256(b"%d" % n).digest(), bytes(32), (ip_network(f"10.{n // 200}.{n % 200}.0/24"),), None, 0, False, 0
        )
        for n in range(5000)
    )
    registry, file = Registry(read(FILE)), replace(read(FILE), peers=peers)
    prepared = registry.prepare(Change())
    assert sum(1 for _ in prepared.work_out_file(file)) > 2
    registry.commit(prepared)
    assert registry.snapshot() == file


def by_operation(registry: Registry, text: str, *keys: bytes) -> Delta:
    prepared = registry.prepare(Change())
    for _ in prepared.work_out_peers(read(text), keys):
        pass
    return registry.commit(prepared)


def test_an_operation_touches_the_peers_that_it_names_and_no_other() -> None:
    registry = Registry(read(FILE))
    changed(registry, PeerChange(C, 1), PeerChange(B, 1, persistent_keepalive=9))
    text = FILE.replace("10.1.0.0/16", "10.1.0.0/17") + section(PRIVATE, "10.4.0.0/16")
    delta = by_operation(registry, text, A, PRIVATE)
    assert set(delta.peers) == {A, PRIVATE}
    assert (delta.gone, delta.peers[PRIVATE].added) == ([], True)
    assert delta.peers[A].prefixes_added == [ip_network("10.1.0.0/17")]
    assert set(registry.peers) == {A, B, C, PRIVATE}, "`wg` alone has made C"
    assert registry.peers[B].persistent_keepalive == 9
    assert registry.file == read(text)


def test_an_operation_removes_a_peer_and_gives_its_prefix_to_another() -> None:
    registry = Registry(read(FILE))
    text = INTERFACE + section(A, "10.1.0.0/16, 10.2.0.0/16", "Endpoint = 192.0.2.1:1")
    delta = by_operation(registry, text, B, A)
    assert delta.gone == [B]
    assert delta.peers[A].prefixes_added == [ip_network("10.2.0.0/16")]
    assert registry.owner_of(bytes([10, 2, 0, 1])) == A
    assert delta.peers[A].endpoint is None, "an unchanged endpoint isn't set again"


def test_a_peer_that_wg_names_again_keeps_what_wg_does_not_know() -> None:
    text = FILE + "# stagewire: Expires = 2040-01-01\n# stagewire: ClientMTU = 1300\n"
    registry = Registry(read(text))
    changed(registry, PeerChange(B, 1), replace_peers=True)
    assert registry.peers[B].expires == 2208988800
    assert registry.peers[B].client.mtu == 1300
