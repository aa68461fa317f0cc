"""What each stage is told of the configuration."""

from hashlib import sha256
from ipaddress import ip_network

import pytest

from key_service import snapshot
from key_service.homes import home_of
from stagewire.config import InterfaceConfig, encode_key, public_key
from stagewire.config.parse import parse
from stagewire.ipc.control import ConnSettings, Routes, TunSettings, WorkerPeers, WorkerSettings
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker

PRIVATE = bytes(range(1, 33))


def key(number: int) -> bytes:
    return public_key(sha256(number.to_bytes(2)).digest())


def made(interface: str = "", peers: int = 3, peer: str = "") -> InterfaceConfig:
    sections = []
    for number in range(1, peers + 1):
        prefixes = f"10.{number // 256}.{number % 256}.0/24, fd00:{number:x}::/64"
        sections.append(f"[Peer]\nPublicKey = {encode_key(key(number))}\nAllowedIPs = {prefixes}\n{peer}\n")
    return parse(f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n{interface}\n" + "".join(sections), "test")


def told(stage: str, config: InterfaceConfig, number: int = 0, workers: int = 4) -> list[object]:
    handshaker = Handshaker(Identity.from_private_bytes(PRIVATE), bytes(12), bytes, lambda: 0.0)
    for peer in config.peers:
        handshaker.add_peer(peer.public_key, bytes(32), home_of(peer.public_key, workers)).endpoint = bytes([7]) * 44
    return list(snapshot.for_stage(stage, number, config, handshaker, workers))


def test_tun_hears_addresses_and_routes_and_where_each_peer_lives() -> None:
    config = made("Address = 10.9.0.1/24, fd09::1/64\nMTU = 1380\nTable = 77\nFwMark = 0x1f")
    settings, routes = told("tun", config)
    assert settings == TunSettings(("10.9.0.1/24", "fd09::1/64"), 1380, "77", 0x1F, 4)
    assert isinstance(routes, Routes)
    assert [(route.prefixes, route.worker) for route in routes.routes] == [
        ((f"10.0.{number}.0/24", f"fd00:{number}::/64"), home_of(key(number), 4)) for number in (1, 2, 3)
    ]


def test_every_worker_hears_of_every_peer_but_is_home_to_its_own() -> None:
    config = made("# stagewire: RekeyAfterTime = 60", peers=20, peer="PersistentKeepalive = 25")
    for worker in range(4):
        settings, peers = told("device", config, worker)
        assert settings == WorkerSettings(snapshot.DEFAULT_MTU, 60.0)
        assert isinstance(peers, WorkerPeers)
        assert [peer.public_key for peer in peers.peers] == [key(number) for number in range(1, 21)]
        assert all(peer.home == (home_of(peer.public_key, 4) == worker) for peer in peers.peers)
        assert {(peer.persistent_keepalive, peer.endpoint) for peer in peers.peers} == {(25, bytes([7]) * 44)}


def test_many_peers_come_in_batches() -> None:
    config = made(peers=300)
    for stage, kind in (("tun", Routes), ("device", WorkerPeers)):
        batches = told(stage, config)[1:]
        assert len(batches) == 3
        assert all(isinstance(batch, kind) for batch in batches)
    sizes = [len(batch.peers) for batch in told("device", config)[1:] if isinstance(batch, WorkerPeers)]
    assert sizes == [128, 128, 44]


def test_conn_hears_the_port_and_the_public_key() -> None:
    (settings,) = told("conn", made("ListenPort = 1234"))
    assert settings == ConnSettings(public_key(PRIVATE), 1234, 0, 4, stamped=False)
    (settings,) = told("conn", made())
    assert isinstance(settings, ConnSettings)
    assert settings.listen_port == snapshot.DEFAULT_PORT
    (settings,) = told("conn", made("ListenPort = 0"))
    assert isinstance(settings, ConnSettings)
    assert settings.listen_port == 0


@pytest.mark.parametrize("stage", ["status", "key", "", "nonsense"])
def test_others_hear_nothing(stage: str) -> None:
    assert told(stage, made()) == []


@pytest.mark.parametrize(
    ("interface", "default_route", "mark"),
    [
        ("", False, 0),
        ("", True, snapshot.DEFAULT_ROUTE_MARK),
        ("FwMark = 5", True, 5),
        ("FwMark = 5", False, 5),
        ("Table = off", True, 0),
        ("Table = 7", True, 0),
    ],
)
def test_outer_packets_are_marked_when_a_default_route_would_catch_them(
    interface: str, default_route: bool, mark: int
) -> None:
    config = made(interface, peers=1, peer="AllowedIPs = 0.0.0.0/0" if default_route else "")
    assert snapshot.outer_mark(config) == mark
    (settings,) = told("conn", config)
    assert isinstance(settings, ConnSettings)
    assert settings.fwmark == mark
    assert (ip_network("0.0.0.0/0") in config.peers[0].allowed_ips) == default_route


def test_no_private_key_is_in_any_of_it() -> None:
    psk = encode_key(bytes(range(77, 109)))
    config = made("Address = 10.9.0.1/24", peer=f"PresharedKey = {psk}")
    for stage in ("tun", "device", "conn"):
        text = repr(told(stage, config))
        for secret in (PRIVATE, bytes(range(77, 109))):
            assert repr(secret)[2:-1] not in text
            assert encode_key(secret) not in text
