"""Inner packets: addresses, lengths, and the ICMP errors, for which scapy is the reference."""

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
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

from stagewire.proto import ip

V4 = {"src": "10.1.2.3", "dst": "10.9.8.7"}
V6 = {"src": "fd00::3", "dst": "fd00::7"}


def raw(packet: Packet) -> bytes:
    return bytes(packet)


def v4(**fields: object) -> bytes:
    return raw(IP(**{**V4, **fields}) / UDP(sport=1, dport=2) / Raw(b"hello"))


def v6(**fields: object) -> bytes:
    return raw(IPv6(**{**V6, **fields}) / UDP(sport=1, dport=2) / Raw(b"hello"))


# --- addresses and lengths ---------------------------------------------------------------------------------


def test_addresses() -> None:
    for packet in (v4(), memoryview(v4())):
        assert ip.source(packet) == bytes([10, 1, 2, 3])
        assert ip.destination(packet) == bytes([10, 9, 8, 7])
        assert type(ip.source(packet)) is type(ip.destination(packet)) is bytes
    for packet in (v6(), memoryview(v6())):
        assert ip.source(packet) == b"\xfd" + bytes(14) + b"\3"
        assert ip.destination(packet) == b"\xfd" + bytes(14) + b"\7"
        assert type(ip.source(packet)) is type(ip.destination(packet)) is bytes


@pytest.mark.parametrize(("packet", "header"), [(v4(), 20), (v6(), 40)])
def test_no_address_without_a_whole_header(packet: bytes, header: int) -> None:
    for length in range(len(packet) + 1):
        assert (ip.source(packet[:length]) is None) is (length < header)
        assert (ip.destination(packet[:length]) is None) is (length < header)


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, 7, 8, 15])
def test_other_versions(version: int) -> None:
    packet = bytes([version << 4 | 5, 0, 0, 60]) + bytes(96)
    assert ip.source(packet) is None
    assert ip.destination(packet) is None
    assert ip.inner_length(packet) == 0
    assert ip.unreachable(packet) is None


@pytest.mark.parametrize("packet", [v4(), v6()], ids=["IPv4", "IPv6"])
def test_length(packet: bytes) -> None:
    assert ip.inner_length(packet) == len(packet)
    assert ip.inner_length(packet + bytes(15)) == len(packet)
    for length in range(len(packet)):
        assert ip.inner_length(packet[:length]) == 0


def test_ipv4_lengths() -> None:
    def packet(ihl: int, total: int, size: int = 60) -> bytes:
        return (bytes([0x40 | ihl, 0]) + struct.pack("!H", total) + bytes(100))[:size]

    assert ip.inner_length(packet(5, 20, 20)) == 20
    assert ip.inner_length(packet(5, 60)) == 60
    assert ip.inner_length(packet(15, 60)) == 60
    for ihl, total in [(4, 60), (0, 60), (5, 19), (5, 0), (6, 23), (15, 59), (5, 61), (5, 65535)]:
        assert ip.inner_length(packet(ihl, total)) == 0, (ihl, total)
    assert ip.inner_length(packet(6, 24, 20)) == 0


def test_ipv6_lengths() -> None:
    def packet(payload: int, next_header: int, size: int = 60) -> bytes:
        return (b"\x60\0\0\0" + struct.pack("!HB", payload, next_header) + bytes(100))[:size]

    assert ip.inner_length(packet(0, 59)) == 40
    assert ip.inner_length(packet(20, 17)) == 60
    assert ip.inner_length(packet(8, 0)) == 48
    for payload, next_header in [(0, 0), (21, 17), (65535, 17)]:
        assert ip.inner_length(packet(payload, next_header)) == 0


# --- destination unreachable -------------------------------------------------------------------------------


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
    answer = ip.unreachable(packet)
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
    answer = ip.unreachable(packet)
    assert answer is not None
    quote = packet[:1232]
    assert answer[48:] == quote
    assert len(answer) == min(1280, 48 + len(packet))
    reference = raw(IPv6(src=V6["dst"], dst=V6["src"], hlim=64) / ICMPv6DestUnreach(code=3) / Raw(quote))
    assert answer == reference
    assert (answer[40], answer[41]) == (1, 3)


def test_padding_is_not_quoted() -> None:
    for packet in (v4(), v6()):
        assert ip.unreachable(packet + bytes(13)) == ip.unreachable(packet)


def test_another_source() -> None:
    answer = ip.unreachable(v4(), bytes([192, 0, 2, 1]))
    assert answer is not None
    assert checked(answer).src == "192.0.2.1"
    answer = ip.unreachable(v6(), b"\xfd" + bytes(14) + b"\x99")
    assert answer is not None
    read = IPv6(answer)
    assert (read.src, read.dst) == ("fd00::99", "fd00::3")
    assert answer == raw(IPv6(src="fd00::99", dst="fd00::3", hlim=64) / ICMPv6DestUnreach(code=3) / Raw(v6()))


@pytest.mark.parametrize(("packet", "width"), [(v4(), 16), (v6(), 4), (v4(), 0), (v6(), 15)])
def test_a_source_of_the_other_version(packet: bytes, width: int) -> None:
    with pytest.raises(ValueError, match="source"):
        ip.unreachable(packet, bytes(width))


def test_with_options() -> None:
    packet = raw(IP(**V4, options=[b"\x01\x01\x01\x01"]) / ICMP(type=8) / Raw(b"ping"))
    assert packet[0] == 0x46
    assert ip.unreachable(packet) is not None
    packet = raw(IP(**V4, options=[b"\x01\x01\x01\x01"]) / ICMP(type=3) / Raw(b"ping"))
    assert ip.unreachable(packet) is None


@pytest.mark.parametrize(
    "source",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"],
)
def test_no_answer_to_an_ipv4_source_that_is_not_one_host(source: str) -> None:
    assert ip.unreachable(v4(src=source)) is None


@pytest.mark.parametrize("source", ["1.0.0.1", "126.1.1.1", "128.0.0.1", "223.255.255.254"])
def test_an_answer_to_others(source: str) -> None:
    assert ip.unreachable(v4(src=source)) is not None


@pytest.mark.parametrize("destination", ["224.0.0.1", "239.255.255.250", "255.255.255.255"])
def test_no_answer_about_an_ipv4_destination_that_is_many(destination: str) -> None:
    assert ip.unreachable(v4(dst=destination)) is None


@pytest.mark.parametrize(("flags", "offset", "answered"), [("MF", 0, True), ("", 1, False), ("MF", 185, False)])
def test_only_about_a_first_ipv4_fragment(flags: str, offset: int, answered: bool) -> None:
    assert (ip.unreachable(v4(flags=flags, frag=offset)) is not None) is answered


@pytest.mark.parametrize("kind", range(256))
def test_only_about_icmp_that_is_no_error(kind: int) -> None:
    packet = raw(IP(**V4) / Raw(bytes([kind]) + bytes(30)))
    packet = packet[:9] + b"\1" + packet[10:]
    assert (ip.unreachable(packet) is None) is (kind in {3, 4, 5, 11, 12})


def test_about_other_protocols() -> None:
    assert ip.unreachable(raw(IP(**V4) / TCP(sport=1, dport=2))) is not None
    assert ip.unreachable(raw(IP(**V4, proto=1))) is None  # ICMP, of a type that can't be seen
    assert ip.unreachable(raw(IPv6(**V6) / TCP(sport=1, dport=2))) is not None
    assert ip.unreachable(raw(IPv6(**V6, nh=58))) is None
    assert ip.unreachable(raw(IPv6(**V6, nh=59))) is not None


@pytest.mark.parametrize("source", ["::", "::1", "ff02::1", "ff0e::5"])
def test_no_answer_to_an_ipv6_source_that_is_not_one_host(source: str) -> None:
    assert ip.unreachable(v6(src=source)) is None


@pytest.mark.parametrize("source", ["::2", "1::", "fe80::1", "2001:db8::1"])
def test_an_answer_to_other_ipv6_sources(source: str) -> None:
    assert ip.unreachable(v6(src=source)) is not None


def test_no_answer_about_ipv6_multicast() -> None:
    assert ip.unreachable(v6(dst="ff02::fb")) is None


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
        assert (ip.unreachable(packet) is not None) is answered


@pytest.mark.parametrize("chain", CHAINS, ids=range(len(CHAINS)))
def test_only_about_icmpv6_that_is_no_error(chain: Packet) -> None:
    for error in ICMPV6_ERRORS:
        assert ip.unreachable(raw(chain / error / Raw(bytes(40)))) is None
    assert ip.unreachable(raw(chain / ICMPv6EchoRequest())) is not None
    assert ip.unreachable(raw(chain / UDP(sport=1, dport=2))) is not None


def test_only_about_a_first_ipv6_fragment() -> None:
    def fragment(offset: int) -> bytes:
        return raw(IPv6(**V6) / IPv6ExtHdrFragment(nh=17, offset=offset, m=1) / Raw(bytes(24)))

    assert ip.unreachable(fragment(0)) is not None
    assert ip.unreachable(fragment(1)) is None
    assert ip.unreachable(fragment(1000)) is None


@pytest.mark.parametrize("last", [ICMPv6EchoRequest(), UDP(sport=1, dport=2)], ids=["ICMPv6", "UDP"])
def test_no_answer_when_the_headers_are_cut_off(last: Packet) -> None:
    chain = IPv6(**V6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(offset=0, m=1) / IPv6ExtHdrDestOpt() / last
    packet = raw(chain)
    assert ip.unreachable(packet) is not None
    for length in range(40, 64):
        cut = packet[:4] + struct.pack("!H", length - 40) + packet[6:length]
        assert ip.unreachable(cut) is None, length


def test_an_answer_is_not_answered() -> None:
    for packet in (v4(), v6()):
        answer = ip.unreachable(packet)
        assert answer is not None
        assert ip.inner_length(answer) == len(answer)
        assert ip.unreachable(answer) is None


@given(st.binary(max_size=100))
@example(b"\xff\xff\xff\xff\x00\x01")  # the carry carries
@example(b"\xff" * 65_536)
def test_checksum(data: bytes) -> None:
    """RFC 1071: with its checksum after it, data sums up to all ones."""
    padded = data + bytes(len(data) % 2)
    words = [*struct.unpack(f"!{len(padded) // 2}H", padded), ip._checksum(data)]
    assert all(0 <= word <= 0xFFFF for word in words)
    assert sum(words) % 0xFFFF == 0
    assert sum(words) > 0


def headed(first: int, rest: bytes) -> bytes:
    """Bytes that look like a packet of their own length, so that more than the length is reached."""
    data = bytearray(bytes([first]) + rest)
    if first >> 4 == 4 and len(data) >= 20:
        data[2:4] = struct.pack("!H", len(data))
    elif first >> 4 == 6 and len(data) >= 40:
        data[4:6] = struct.pack("!H", len(data) - 40)
    return bytes(data)


PACKETS = st.binary(max_size=120) | st.builds(
    headed, st.sampled_from([0x45, 0x46, 0x4F, 0x60]), st.binary(max_size=120)
)
# Extension headers upon extension headers.
CHAINED = st.builds(
    lambda first, rest: headed(0x60, bytes(5) + bytes([first]) + bytes([64]) + b"\xfd" * 32 + rest),
    st.sampled_from([0, 43, 44, 51, 60, 135, 58]),
    st.lists(st.sampled_from([0, 1, 2, 43, 44, 51, 58, 60, 135, 255]), max_size=80).map(bytes),
)


@settings(max_examples=300)
@given(PACKETS | CHAINED)
@example(b"")
def test_no_bytes_raise(packet: bytes) -> None:
    assert len(ip.source(packet) or bytes(4)) in (4, 16)
    assert ip.source(memoryview(packet)) == ip.source(packet)
    assert ip.destination(memoryview(packet)) == ip.destination(packet)
    assert 0 <= ip.inner_length(packet) <= len(packet)
    answer = ip.unreachable(packet)
    if answer is not None:
        assert ip.inner_length(packet)
        assert ip.inner_length(answer) == len(answer) <= (576 if answer[0] >> 4 == 4 else 1280)
        assert ip.destination(answer) == ip.source(packet)
        assert ip.source(answer) == ip.destination(packet)
        assert ip.unreachable(answer) is None


def test_a_flow_is_addresses_and_ports() -> None:
    four = bytes([0x45]) + bytes(8) + b"\x06" + bytes(2) + bytes(range(1, 9)) + b"\x14\x51\x9c\x40" + bytes(16)
    assert ip.flow(four) == bytes(range(1, 9)) + b"\x14\x51\x9c\x40"
    assert ip.flow(memoryview(four)) == ip.flow(four[:9] + b"\x11" + four[10:]) == ip.flow(four)
    assert ip.flow(four[:6] + b"\x40" + four[7:]) == ip.flow(four)  # it may not be cut
    assert ip.flow(four[:9] + b"\x01" + four[10:]) == b""
    six = bytes([0x60]) + bytes(5) + b"\x06\x40" + bytes(range(32)) + b"\x14\x51\x9c\x40" + bytes(16)
    assert ip.flow(six) == bytes(range(32)) + b"\x14\x51\x9c\x40"
    assert ip.flow(six[:6] + b"\x3a" + six[7:]) == b""


def test_of_fragments_options_and_extension_headers_no_flow_can_be_told() -> None:
    four = bytes([0x45]) + bytes(8) + b"\x11" + bytes(40)
    for place, value in ((0, 0x46), (6, 0x20), (6, 0x01), (7, 0x09)):
        changed = bytearray(four)
        changed[place] = value
        assert ip.flow(bytes(changed)) is None
    assert ip.flow(bytes([0x60]) + bytes(5) + b"\x2c\x40" + bytes(60)) is None
    assert ip.flow(bytes(40)) is None
