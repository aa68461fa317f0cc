"""What each stage is told of the configuration."""

from collections.abc import Iterable
from hashlib import sha256

import pytest

from key_service.announce import ANY_PORT, Announcer
from key_service.homes import home_of
from key_service.moves import Moves
from key_service.registry import Registry
from stagewire.config import InterfaceConfig, encode_key, public_key, uapi
from stagewire.config.parser import parse
from stagewire.control.messages import (
    ConnSettings,
    HostEndpoints,
    HostSettings,
    PeersSet,
    PrefixesSet,
    RoutesSet,
    SocketSettings,
    TunSettings,
    WorkerSettings,
)
from stagewire.proto import prefix
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker

PRIVATE = bytes(range(1, 33))


def key(number: int) -> bytes:
    return public_key(sha256(number.to_bytes(2)).digest())


def made(interface: str = "", peers: int = 3, peer: str = "") -> InterfaceConfig:
    sections = [
        f"[Peer]\nPublicKey = {encode_key(key(number))}\n"
        f"AllowedIPs = 10.{number // 256}.{number % 256}.0/24, fd00:{number:x}::/64\n{peer}\n"
        for number in range(1, peers + 1)
    ]
    return parse(f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n{interface}\n" + "".join(sections), "test")


def announcer(config: InterfaceConfig, workers: int = 4, *, managed: bool = True) -> Announcer:
    handshaker = Handshaker(Identity.from_private_bytes(PRIVATE), bytes(12), bytes, lambda: 0.0)
    for peer in config.peers:
        handshaker.add_peer(peer.public_key, bytes(32), home_of(peer.public_key, workers)).endpoint = bytes([7]) * 44
    return Announcer(Registry(config), handshaker, Moves(handshaker, workers), managed, 1400)


def told(stage: str, config: InterfaceConfig, number: int = 0) -> list[object]:
    return list(announcer(config).snapshot(stage, number))


def socket_settings(config: InterfaceConfig, *, managed: bool = True) -> SocketSettings:
    snapshot = announcer(config, managed=managed).snapshot("host", 0)
    (found,) = (message for message in snapshot if isinstance(message, SocketSettings))
    return found


def networks(packed: Iterable[bytes]) -> list[str]:
    return [str(prefix.unpack_untrusted(each)) for each in packed]


def test_tun_hears_where_each_peer_lives() -> None:
    settings, *routes = told("tun", made())
    assert settings == TunSettings(4)
    homes: dict[str, int] = {}
    for message in routes:
        assert isinstance(message, RoutesSet)
        homes |= dict.fromkeys(networks(message.prefixes), message.worker)
    assert homes == {
        each: home_of(key(number), 4) for number in (1, 2, 3) for each in (f"10.0.{number}.0/24", f"fd00:{number}::/64")
    }


def test_host_hears_the_rules_of_the_peers_in_force() -> None:
    said = announcer(made("Address = 10.9.0.1/24\n# stagewire: Allow = any tcp 80", 2))
    registry = said.registry

    def sources() -> int:
        settings = next(each for each in said.snapshot("host", 0) if isinstance(each, HostSettings))
        return sum(len(each.sources) for each in settings.gateway.access)

    assert (sources(), sources()) == (4, 4)
    gone = uapi.Change(peers=(uapi.PeerChange(key(1), 0, remove=True),))
    prepared = registry.prepare(gone)
    tried = said.host_settings(prepared.settings, prepared.peers)
    assert sum(len(each.sources) for each in tried.gateway.access) == 2
    assert sources() == 4
    registry.commit(prepared)
    assert sources() == 2


def test_host_hears_addresses_mtu_table_and_prefixes_and_of_a_bare_interface_nothing_of_them() -> None:
    config = made("Address = 10.9.0.1/24, fd09::1/64\nMTU = 1380\nTable = 77\nFwMark = 0x1f")
    settings, sockets, endpoints, *routes = told("host", config)
    assert settings == HostSettings(True, ("10.9.0.1/24", "fd09::1/64"), 1380, "77", 0x1F)
    assert isinstance(sockets, SocketSettings)
    assert isinstance(endpoints, HostEndpoints)
    named = [each for message in routes if isinstance(message, RoutesSet) for each in networks(message.prefixes)]
    assert sorted(named) == sorted(each for n in (1, 2, 3) for each in (f"10.0.{n}.0/24", f"fd00:{n}::/64"))
    bare, *rest = announcer(config, managed=False).snapshot("host", 0)
    assert isinstance(bare, HostSettings)
    assert not bare.managed
    assert not any(isinstance(message, RoutesSet) for message in rest)


def test_every_worker_hears_of_every_peer_but_is_home_to_its_own() -> None:
    config = made("# stagewire: RekeyAfterTime = 60", peers=20, peer="PersistentKeepalive = 25")
    for worker in range(4):
        settings, peers, prefixes = told("device", config, worker)
        assert settings == WorkerSettings(1400, 60.0)
        assert isinstance(peers, PeersSet)
        assert isinstance(prefixes, PrefixesSet)
        assert [peer.public_key for peer in peers.peers] == [key(number) for number in range(1, 21)]
        assert all(peer.home == (home_of(peer.public_key, 4) == worker) for peer in peers.peers)
        assert {(peer.persistent_keepalive, peer.endpoint) for peer in peers.peers} == {(25, bytes([7]) * 44)}
        assert {entry.public_key: len(entry.prefixes) for entry in prefixes.entries} == {
            key(n): 2 for n in range(1, 21)
        }


def test_many_peers_come_in_batches() -> None:
    _, *messages = told("device", made(peers=300))
    assert [len(message.peers) for message in messages if isinstance(message, PeersSet)] == [64, 64, 64, 64, 44]
    sizes = [sum(len(entry.prefixes) for entry in m.entries) for m in messages if isinstance(m, PrefixesSet)]
    assert sizes == [128, 128, 128, 128, 88]


def test_conn_hears_the_public_key() -> None:
    assert told("conn", made("ListenPort = 1234")) == [ConnSettings(public_key(PRIVATE), 4, stamped=False)]


@pytest.mark.parametrize(("line", "port"), [("ListenPort = 1234", 1234), ("", ANY_PORT), ("ListenPort = 0", ANY_PORT)])
def test_host_hears_the_port(line: str, port: int) -> None:
    assert socket_settings(made(line)) == SocketSettings(port, 0)


@pytest.mark.parametrize("stage", ["status", "key", "", "nonsense"])
def test_others_hear_nothing(stage: str) -> None:
    assert told(stage, made()) == []


@pytest.mark.parametrize(
    ("interface", "chosen", "mark"), [("", 0, 0), ("", 51823, 51823), ("FwMark = 5", 0, 5), ("FwMark = 5", 5, 5)]
)
def test_outer_packets_are_marked_as_the_operator_or_host_service_says(interface: str, chosen: int, mark: int) -> None:
    announced = announcer(made(interface))
    announced.host_mark = chosen
    assert announced.socket_settings(announced.registry.interface).fwmark == mark


def test_no_private_key_is_in_any_of_it() -> None:
    psk = encode_key(bytes(range(77, 109)))
    config = made("Address = 10.9.0.1/24", peer=f"PresharedKey = {psk}")
    for stage in ("tun", "device", "conn"):
        text = repr(told(stage, config))
        for secret in (PRIVATE, bytes(range(77, 109))):
            assert repr(secret)[2:-1] not in text
            assert encode_key(secret) not in text
