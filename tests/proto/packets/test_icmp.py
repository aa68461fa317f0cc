"""The ICMP errors, for which scapy is the reference."""

import struct

import pytest
from hypothesis import example, given, settings
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw
from tests.proto.packets.by_scapy import CHAINED, PACKETS, V4, V6, raw, v4, v6

from stagewire.proto.packets import icmp, ip


def checked(data: bytes) -> Packet:
    """The packet as scapy reads it, after seeing that scapy computes the same lengths and checksums."""
    read = IP(data) if data[0] >> 4 == 4 else IPv6(data)
    again = read.copy()
    for layer, fields in ((IP, ("len", "chksum")), (ICMP, ("chksum",)), (IPv6, ("plen",))):
        if again.firstlayer().haslayer(layer):
            for field in fields:
                again[layer].delfieldval(field)
    if again.haslayer(ICMPv6DestUnreach):
        again[ICMPv6DestUnreach].delfieldval("cksum")
    assert bytes(again) == data
    return read


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 499, 519, 520, 521, 1000, 1400, 60_000])
def test_ipv4_unreachable(size: int) -> None:
    packet = raw(IP(**V4) / UDP(sport=1, dport=2) / Raw(bytes(i % 251 for i in range(size))))
    answer = icmp.unreachable(packet)
    assert answer is not None
    quote = packet[:548]
    assert answer[28:] == quote
    assert len(answer) == min(576, 28 + len(packet))
    read = checked(answer)
    assert (read.src, read.dst, read.proto, read.frag) == (V4["dst"], V4["src"], 1, 0)
    assert (read[ICMP].type, read[ICMP].code) == (3, 1)
    reference = raw(
        IP(src=V4["dst"], dst=V4["src"], tos=0xC0, id=0, flags="DF", ttl=64) / ICMP(type=3, code=1) / Raw(quote)
    )
    assert answer == reference


@pytest.mark.parametrize("size", [0, 1, 2, 1183, 1184, 1185, 1400, 60_000])
def test_ipv6_unreachable(size: int) -> None:
    packet = raw(IPv6(**V6) / UDP(sport=1, dport=2) / Raw(bytes(i % 251 for i in range(size))))
    answer = icmp.unreachable(packet)
    assert answer is not None
    quote = packet[:1232]
    assert answer[48:] == quote
    assert len(answer) == min(1280, 48 + len(packet))
    reference = raw(IPv6(src=V6["dst"], dst=V6["src"], hlim=64) / ICMPv6DestUnreach(code=3) / Raw(quote))
    assert answer == reference
    assert (answer[40], answer[41]) == (1, 3)


def test_padding_is_not_quoted() -> None:
    for packet in (v4(), v6()):
        assert icmp.unreachable(packet + bytes(13)) == icmp.unreachable(packet)


def test_another_source() -> None:
    answer = icmp.unreachable(v4(), bytes([192, 0, 2, 1]))
    assert answer is not None
    assert checked(answer).src == "192.0.2.1"
    answer = icmp.unreachable(v6(), b"\xfd" + bytes(14) + b"\x99")
    assert answer is not None
    read = IPv6(answer)
    assert (read.src, read.dst) == ("fd00::99", "fd00::3")
    assert answer == raw(IPv6(src="fd00::99", dst="fd00::3", hlim=64) / ICMPv6DestUnreach(code=3) / Raw(v6()))


@pytest.mark.parametrize(("packet", "width"), [(v4(), 16), (v6(), 4), (v4(), 0), (v6(), 15)])
def test_a_source_of_the_other_version(packet: bytes, width: int) -> None:
    with pytest.raises(ValueError, match="source"):
        icmp.unreachable(packet, bytes(width))


def test_with_options() -> None:
    packet = raw(IP(**V4, options=[b"\x01\x01\x01\x01"]) / ICMP(type=8) / Raw(b"ping"))
    assert packet[0] == 0x46
    assert icmp.unreachable(packet) is not None
    packet = raw(IP(**V4, options=[b"\x01\x01\x01\x01"]) / ICMP(type=3) / Raw(b"ping"))
    assert icmp.unreachable(packet) is None


@pytest.mark.parametrize(
    "source",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"],
)
def test_no_answer_to_an_ipv4_source_that_is_not_one_host(source: str) -> None:
    assert icmp.unreachable(v4(src=source)) is None


@pytest.mark.parametrize("source", ["1.0.0.1", "126.1.1.1", "128.0.0.1", "223.255.255.254"])
def test_an_answer_to_others(source: str) -> None:
    assert icmp.unreachable(v4(src=source)) is not None


@pytest.mark.parametrize("destination", ["224.0.0.1", "239.255.255.250", "255.255.255.255"])
def test_no_answer_about_an_ipv4_destination_that_is_many(destination: str) -> None:
    assert icmp.unreachable(v4(dst=destination)) is None


@pytest.mark.parametrize(("flags", "offset", "answered"), [("MF", 0, True), ("", 1, False), ("MF", 185, False)])
def test_only_about_a_first_ipv4_fragment(flags: str, offset: int, answered: bool) -> None:
    assert (icmp.unreachable(v4(flags=flags, frag=offset)) is not None) is answered


@pytest.mark.parametrize("kind", range(256))
def test_only_about_icmp_that_is_no_error(kind: int) -> None:
    packet = raw(IP(**V4) / Raw(bytes([kind]) + bytes(30)))
    packet = packet[:9] + b"\1" + packet[10:]
    assert (icmp.unreachable(packet) is None) is (kind in {3, 4, 5, 11, 12})


def test_about_other_protocols() -> None:
    assert icmp.unreachable(raw(IP(**V4) / TCP(sport=1, dport=2))) is not None
    assert icmp.unreachable(raw(IP(**V4, proto=1))) is None  # ICMP, of a type that can't be seen
    assert icmp.unreachable(raw(IPv6(**V6) / TCP(sport=1, dport=2))) is not None
    assert icmp.unreachable(raw(IPv6(**V6, nh=58))) is None
    assert icmp.unreachable(raw(IPv6(**V6, nh=59))) is not None


@pytest.mark.parametrize("source", ["::", "::1", "ff02::1", "ff0e::5"])
def test_no_answer_to_an_ipv6_source_that_is_not_one_host(source: str) -> None:
    assert icmp.unreachable(v6(src=source)) is None


@pytest.mark.parametrize("source", ["::2", "1::", "fe80::1", "2001:db8::1"])
def test_an_answer_to_other_ipv6_sources(source: str) -> None:
    assert icmp.unreachable(v6(src=source)) is not None


def test_no_answer_about_ipv6_multicast() -> None:
    assert icmp.unreachable(v6(dst="ff02::fb")) is None


ICMPV6_ERRORS = [
    ICMPv6DestUnreach(),
    ICMPv6PacketTooBig(),
    ICMPv6TimeExceeded(),
    ICMPv6ParamProblem(),
    ICMPv6ND_Redirect(),
]
CHAINS = [
    IPv6(**V6),
    IPv6(**V6) / IPv6ExtHdrHopByHop(),
    IPv6(**V6) / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(offset=0, m=1),
    IPv6(**V6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=["fd00::9"]) / IPv6ExtHdrDestOpt(),
]


def test_behind_an_authentication_header() -> None:
    # next header, length in words less 2, reserved, and so on: 24 bytes.
    for kind, answered in [(1, False), (3, False), (128, True), (137, False)]:
        header = bytes([58, 4]) + bytes(22)
        packet = raw(IPv6(**V6, nh=51) / Raw(header + bytes([kind]) + bytes(20)))
        assert (icmp.unreachable(packet) is not None) is answered


@pytest.mark.parametrize("chain", CHAINS, ids=range(len(CHAINS)))
def test_only_about_icmpv6_that_is_no_error(chain: Packet) -> None:
    for error in ICMPV6_ERRORS:
        assert icmp.unreachable(raw(chain / error / Raw(bytes(40)))) is None
    assert icmp.unreachable(raw(chain / ICMPv6EchoRequest())) is not None
    assert icmp.unreachable(raw(chain / UDP(sport=1, dport=2))) is not None


def test_only_about_a_first_ipv6_fragment() -> None:
    def fragment(offset: int) -> bytes:
        return raw(IPv6(**V6) / IPv6ExtHdrFragment(nh=17, offset=offset, m=1) / Raw(bytes(24)))

    assert icmp.unreachable(fragment(0)) is not None
    assert icmp.unreachable(fragment(1)) is None
    assert icmp.unreachable(fragment(1000)) is None


@pytest.mark.parametrize("last", [ICMPv6EchoRequest(), UDP(sport=1, dport=2)], ids=["ICMPv6", "UDP"])
def test_no_answer_when_the_headers_are_cut_off(last: Packet) -> None:
    chain = IPv6(**V6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(offset=0, m=1) / IPv6ExtHdrDestOpt() / last
    packet = raw(chain)
    assert icmp.unreachable(packet) is not None
    for length in range(40, 64):
        cut = packet[:4] + struct.pack("!H", length - 40) + packet[6:length]
        assert icmp.unreachable(cut) is None, length


def test_an_answer_is_not_answered() -> None:
    for packet in (v4(), v6()):
        answer = icmp.unreachable(packet)
        assert answer is not None
        assert ip.inner_length(answer) == len(answer)
        assert icmp.unreachable(answer) is None


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, 7, 8, 15])
def test_no_answer_about_other_versions(version: int) -> None:
    assert icmp.unreachable(bytes([version << 4 | 5, 0, 0, 60]) + bytes(96)) is None


@settings(max_examples=300)
@given(PACKETS | CHAINED)
@example(b"")
def test_no_bytes_raise(packet: bytes) -> None:
    answer = icmp.unreachable(packet)
    if answer is not None:
        assert ip.inner_length(packet)
        assert ip.inner_length(answer) == len(answer) <= (576 if answer[0] >> 4 == 4 else 1280)
        assert ip.destination(answer) == ip.source(packet)
        assert ip.source(answer) == ip.destination(packet)
        assert icmp.unreachable(answer) is None
