"""The replies, to the letter."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from tests.config.uapi.keys import ONE, SECRET, TWO

from stagewire.config import uapi
from stagewire.config.uapi import (
    InterfaceState,
    PeerState,
    get_error,
    get_reply,
    set_reply,
)
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.noise import clamp

FULL = InterfaceState(
    private_key=clamp(SECRET),
    listen_port=51820,
    fwmark=0xCA6C,
    peers=(
        PeerState(
            ONE,
            preshared_key=TWO,
            endpoint=Endpoint(ip_address("fe80::1").packed, 7, 3),
            last_handshake_unix_ns=1_700_000_000_000_000_042,
            tx_bytes=2**64 - 1,
            rx_bytes=5,
            persistent_keepalive=25,
            allowed_ips=(ip_network("10.0.0.0/24"), ip_network("fd00::/64")),
        ),
        PeerState(TWO),
    ),
)


def test_the_reply_to_get_to_the_letter() -> None:
    assert b"".join(get_reply(FULL)).decode().splitlines() == [
        f"private_key={clamp(SECRET).hex()}",
        "listen_port=51820",
        "fwmark=51820",
        f"public_key={ONE.hex()}",
        f"preshared_key={TWO.hex()}",
        "protocol_version=1",
        "endpoint=[fe80::1%3]:7",
        "last_handshake_time_sec=1700000000",
        "last_handshake_time_nsec=42",
        "tx_bytes=18446744073709551615",
        "rx_bytes=5",
        "persistent_keepalive_interval=25",
        "allowed_ip=10.0.0.0/24",
        "allowed_ip=fd00::/64",
        f"public_key={TWO.hex()}",
        f"preshared_key={'00' * 32}",
        "protocol_version=1",
        "last_handshake_time_sec=0",
        "last_handshake_time_nsec=0",
        "tx_bytes=0",
        "rx_bytes=0",
        "persistent_keepalive_interval=0",
        "errno=0",
        "",
    ]


@pytest.mark.parametrize("private_key", [None, bytes(32)])
def test_the_reply_to_get_of_nothing(private_key: bytes | None) -> None:
    assert b"".join(get_reply(InterfaceState(private_key))) == b"errno=0\n\n"


def test_the_reply_to_get_comes_in_pieces() -> None:
    made = 0

    def peers() -> Iterator[PeerState]:
        nonlocal made
        for number in range(10_000):
            made += 1
            yield PeerState(number.to_bytes(32))

    pieces = get_reply(InterfaceState(peers=peers()))
    first = next(pieces)
    assert made < 400
    sizes = [len(first), *(len(piece) for piece in pieces)]
    assert made == 10_000
    assert len(sizes) > 30
    assert max(sizes) < 66_000


def test_the_signs_of_errno() -> None:
    assert set_reply(0) == get_error(0) == b"errno=0\n\n"
    assert set_reply(uapi.EADDRINUSE) == b"errno=-98\n\n"
    assert get_error(uapi.EIO) == b"errno=5\n\n"


def test_no_repr_shows_a_secret() -> None:
    for value in (FULL, *FULL.peers):
        for secret in (SECRET, clamp(SECRET), TWO):
            assert repr(secret) not in repr(value).replace(f"public_key={TWO!r}", "")
