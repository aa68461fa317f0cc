"""A tunnel's datagram in a packet, whole or in fragments: recognised, and the hops it has left."""

import struct

import pytest
from hypothesis import given
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Packet, Raw
from tests.proto.packets.by_scapy import CHAINED, PACKETS, V4, V6, raw

from stagewire.proto.packets import ip
from stagewire.proto.packets.carried import CUT, TOO_DEEP, Carried, any_may_be

SIZES = {1: 148, 2: 92, 3: 64, 4: 3000}


def v4(payload: bytes, ttl: int = 64, **fields: object) -> Packet:
    return IP(**{**V4, "ttl": ttl, **fields}) / UDP(sport=1, dport=2) / Raw(payload)


def v6(payload: bytes, hops: int = 64) -> Packet:
    return IPv6(**V6, hlim=hops) / UDP(sport=1, dport=2) / Raw(payload)


def message(kind: int) -> bytes:
    return struct.pack("<I", kind).ljust(SIZES[kind], b"\7")


@pytest.mark.parametrize("make", [v4, v6])
@pytest.mark.parametrize("kind", SIZES)
def test_each_tunnel_leaves_eight_hops_less(make: type[Packet], kind: int) -> None:
    packet = raw(make(message(kind)))
    assert any_may_be([packet])
    assert Carried().limit(packet) == 56
    for hops, left in ((255, 56), (65, 56), (63, 55), (57, 49), (9, 1), (8, TOO_DEEP), (1, TOO_DEEP)):
        assert Carried().limit(raw(make(message(kind), hops))) == left


def test_behind_ipv4_options_too() -> None:
    assert Carried().limit(raw(v4(message(4), options=[b"\1\1\1\1"]))) == 56


@pytest.mark.parametrize("make", [v4, v6])
@pytest.mark.parametrize(
    "payload", [b"", b"\4", b"\4\0\0", b"\4\0\0\1", b"\0\0\0\0", b"\5\0\0\0", b"\0\0\0\4", b"hello"]
)
def test_any_other_datagram_is_none(make: type[Packet], payload: bytes) -> None:
    assert Carried().limit(raw(make(payload))) == 0


def test_tcp_is_not_looked_at() -> None:
    packets = [raw(head / TCP() / Raw(message(4))) for head in (IP(**V4), IPv6(**V6))]
    assert not any_may_be(packets)
    assert [Carried().limit(packet) for packet in packets] == [0, 0]


def pieces(family: int, payload: bytes, number: int = 7) -> list[bytes]:
    if family == 4:
        return [raw(each) for each in fragment(v4(payload, id=number), 800)]
    whole = IPv6(**V6) / IPv6ExtHdrFragment(id=number) / UDP(sport=1, dport=2) / Raw(payload)
    return [raw(each) for each in fragment6(whole, 900)]


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_belong_to_the_first_of_them(family: int) -> None:
    carried = Carried()
    first, *rest = pieces(family, message(4))
    assert [carried.limit(each) for each in rest] == [0] * len(rest), "nothing tells what they are"
    assert [carried.limit(each) for each in (first, *rest)] == [55 | CUT] * (1 + len(rest))
    assert not any(carried.limit(each) for each in pieces(family, message(4), number=8)[1:])
    assert not any(carried.limit(each) for each in pieces(family, b"hello" * 700, number=9))


@pytest.mark.parametrize("family", [4, 6])
def test_first_fragments_are_forgotten_in_their_order(family: int) -> None:
    carried = Carried()
    for number in range(65):
        carried.limit(pieces(family, message(4), number)[0])
    assert [carried.limit(pieces(family, message(4), number)[1]) for number in (0, 1, 64)] == [0, 55 | CUT, 55 | CUT]


@given(PACKETS | CHAINED)
def test_whatever_is_in_a_packet_nothing_is_raised(packet: bytes) -> None:
    if ip.destination(packet) is not None:
        limit = Carried().limit(packet)
        assert limit == 0 or any_may_be([packet])
