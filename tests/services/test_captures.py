"""`stagewire capture` at a worker: pcapng, filters, who may order, and pipes that are full or have no reader."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    ICMPv6Unknown,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import GRE, GRE_PPTP
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from device_service import pcapng
from device_service.selection import Selection, look
from stagewire.control.capture import Order
from stagewire_cli import capturing
from stagewire_cli.capturing import Output
from stagewire_cli.failures import Failed

KEY = bytes([1]) * 32
PAYLOAD = b"secret payload"
V4, V6 = IP(src="10.0.0.2", dst="10.0.0.1"), IPv6(src="fd00::2", dst="fd00::1")


def order(**chosen: object) -> Order:
    fields = {"whole": False, "hosts": (), "ports": (), "protocols": (), "most": 1000, "seconds": 9.0, "by": "x"}
    return Order(KEY, **{**fields, **chosen})  # type: ignore[arg-type]


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size % 4 == 0
        assert struct.unpack_from("<I", data, at + size - 4) == (size,)
        found.append((kind, data[at + 8 : at + size - 4]))
        at += size
    return found


# --- what is kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "protocol", "ports", "headers"),
    [
        (V4 / UDP(sport=5, dport=53) / Raw(PAYLOAD), 17, (5, 53), 28),
        (V4 / TCP(sport=5, dport=443, options=[("MSS", 1400)]) / Raw(PAYLOAD), 6, (5, 443), 44),
        (V4 / ICMP() / Raw(PAYLOAD), 1, (), 28),
        (IP(frag=100, proto=17) / Raw(PAYLOAD), 17, (), 20),
        (IP(proto=99) / Raw(PAYLOAD), 99, (), 20),
        (IP(proto=58) / Raw(PAYLOAD), 58, (), 20),
        (IP(proto=4) / V4 / Raw(PAYLOAD), 4, (), 20),
        (IP(proto=41) / V6 / Raw(PAYLOAD), 41, (), 20),
        (IP(options=[IPOption_Router_Alert()], proto=2) / Raw(b"\x16\0\0\0\xe0\0\0\5" + PAYLOAD), 2, (), 32),
        (IP(proto=51) / Raw(b"\x11\4" + bytes(22)) / UDP(sport=5, dport=53) / Raw(PAYLOAD), 17, (5, 53), 52),
        (V4 / GRE(proto=0x800) / Raw(PAYLOAD), 47, (), 24),
        (V4 / GRE(proto=0x800, chksum_present=1, key_present=1, seqnum_present=1) / Raw(PAYLOAD), 47, (), 36),
        (V4 / GRE_PPTP(seqnum_present=1, acknum_present=1) / Raw(PAYLOAD), 47, (), 36),
        (IP(proto=50) / Raw(bytes(8) + PAYLOAD), 50, (), 28),
        (V4 / SCTP(sport=5, dport=6) / Raw(PAYLOAD), 132, (), 32),
        (IP(proto=136) / Raw(bytes(8) + PAYLOAD), 136, (), 28),
        (IP(proto=33) / Raw(bytes(4) + b"\4" + bytes(11) + PAYLOAD), 33, (), 36),
        (V4 / TCP(sport=5, dport=443, dataofs=0) / Raw(PAYLOAD), 6, (5, 443), 40),
        (V4 / ICMP(type=200) / Raw(PAYLOAD), 1, (), 24),
        (V4 / ICMP(type=3) / V4 / UDP(sport=5, dport=53) / Raw(PAYLOAD), 1, (), 56),
        (V4 / ICMP(type=11) / V4 / TCP(options=[("MSS", 1400)]) / Raw(PAYLOAD), 1, (), 72),
        (V4 / ICMP(type=3) / V4 / ICMP(type=3) / V4 / UDP() / Raw(PAYLOAD), 1, (), 56),
        (V4 / ICMP(type=3) / IP(frag=9, proto=17) / Raw(PAYLOAD), 1, (), 48),
        (V4 / ICMP(type=3) / Raw(PAYLOAD), 1, (), 28),
        (V4 / ICMP(type=3) / V6 / UDP() / Raw(PAYLOAD), 1, (), 28),
        (IP(proto=6) / Raw(b"abc"), 6, (), 23),
        (V6 / UDP(sport=5, dport=53) / Raw(PAYLOAD), 17, (5, 53), 48),
        (V6 / IPv6ExtHdrHopByHop() / TCP(sport=5, dport=443) / Raw(PAYLOAD), 6, (5, 443), 68),
        (V6 / IPv6ExtHdrFragment(offset=0, m=1, nh=17) / UDP(sport=5, dport=53) / Raw(PAYLOAD), 17, (5, 53), 56),
        (V6 / IPv6ExtHdrFragment(offset=9, nh=17) / Raw(PAYLOAD), 17, (), 48),
        (V6 / IPv6ExtHdrFragment(offset=9, nh=60) / Raw(PAYLOAD), 60, (), 48),
        (V6 / ICMPv6EchoRequest(data=PAYLOAD), 58, (), 48),
        (V6 / ICMPv6ND_NS(tgt="fd00::1") / Raw(PAYLOAD), 58, (), 64),
        (V6 / ICMPv6Unknown(type=200) / Raw(PAYLOAD), 58, (), 44),
        (V6 / ICMPv6PacketTooBig() / V6 / UDP() / Raw(PAYLOAD), 58, (), 96),
        (IPv6(nh=1) / Raw(PAYLOAD), 1, (), 40),
        (IPv6(nh=59) / Raw(PAYLOAD), 59, (), 40),
        (IPv6(nh=51) / Raw(b"\x11\4" + bytes(22)) / UDP(sport=5, dport=53) / Raw(PAYLOAD), 17, (5, 53), 72),
    ],
    ids=lambda value: value.summary() if hasattr(value, "summary") else None,
)
def test_headers_end_where_the_payload_begins(packet: IP, protocol: int, ports: tuple[int, ...], headers: int) -> None:
    data = bytes(packet)
    assert look(data) == (protocol, ports, headers)
    assert Selection(order()).kept(data) == headers
    assert PAYLOAD not in data[:headers]
    assert Selection(order(whole=True)).kept(data) == len(data)


def test_a_packet_must_match_one_value_of_each_kind() -> None:
    data = bytes(V4 / UDP(sport=5, dport=53) / Raw(PAYLOAD))
    host = capturing.filtered(("10.0.0.1", "192.0.2.9"), (), ()).hosts
    assert Selection(order(hosts=host, ports=(53, 80), protocols=(17,))).kept(data)
    for other in ({"hosts": (b"\x0a\x00\x00\x09",)}, {"ports": (54,)}, {"protocols": (6,)}):
        assert not Selection(order(hosts=host, **other) if "hosts" not in other else order(**other)).kept(data)
    assert not Selection(order(ports=(53,))).kept(bytes(V4 / ICMP()))


@given(st.binary(min_size=40, max_size=120))
def test_any_bytes_behind_a_version_are_looked_at_without_harm(data: bytes) -> None:
    for first in (b"\x45", b"\x4f", b"\x60"):
        packet = first + data
        assert 20 <= look(packet).headers <= len(packet)
        for end in range(41, len(packet)):
            assert look(packet[:end]).headers <= min(end, look(packet).headers)


@pytest.mark.parametrize(
    ("filtered", "said"),
    [
        ((("10.0.0.300",), (), ()), "--host '10.0.0.300'"),
        (((), (53,), ("icmp",)), "--port is about tcp and udp alone, which --protocol leaves out"),
        (((), (), ("sctpx",)), "--protocol sctpx: give tcp, udp, icmp, or a number up to 255"),
        (((), (), ("256",)), "--protocol 256"),
        (((), tuple(range(65)), ()), "a filter has 64 values of a kind at most"),
    ],
)
def test_a_filter_that_makes_no_sense(
    filtered: tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...]], said: str
) -> None:
    with pytest.raises(Failed, match=said):
        capturing.filtered(*filtered)


# --- the file -----------------------------------------------------------------------------------------------


def test_blocks_are_as_the_format_has_them() -> None:
    data = (
        pcapng.begin("wg0", "headers of Zoë")
        + pcapng.packet(b"12345", 99, pcapng.INBOUND, 1 << 33)
        + pcapng.end(1, 7, 5)
    )
    (section, magic), (interface, described), (kind, packet), (statistics, counts) = blocks(data)
    assert (section, interface, kind, statistics) == (0x0A0D0D0A, 1, 6, 5)
    assert magic[:4] == bytes.fromhex("4d3c2b1a")
    assert b"wg0" in described
    assert "Zoë".encode() in described
    assert struct.unpack_from("<IIIII", packet) == (0, 2, 0, 5, 99)
    assert packet[20:28] == b"12345\0\0\0"
    assert packet[28:] == struct.pack("<HHIHH", 2, 4, 1, 0, 0)
    assert struct.pack("<Q", 8) in counts
    assert struct.pack("<Q", 7) in counts


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK)
    yield ends
    for each in ends:
        os.close(each)


def test_a_capture_that_fails_before_it_begins_leaves_no_file_and_no_other_is_touched(tmp_path: Path) -> None:
    def fail(path: Path, data: bytes) -> None:
        with capturing.opened(str(path), print) as descriptor:
            os.write(descriptor, data)
            raise Failed("no such peer")

    with pytest.raises(Failed, match="no such peer"):
        fail(tmp_path / "new", b"")
    assert not (tmp_path / "new").exists()
    with pytest.raises(Failed, match="no such peer"):
        fail(tmp_path / "begun", b"data")
    assert (tmp_path / "begun").read_bytes() == b"data"
    (tmp_path / "old").touch()
    with pytest.raises(Failed, match="exists already"), capturing.opened(str(tmp_path / "old"), print):
        pass
    assert (tmp_path / "old").exists()


def test_an_output_gets_whole_blocks_whatever_the_pieces(pipe: tuple[int, int]) -> None:
    data = pcapng.begin("wg0", "") + pcapng.packet(b"12345", 5, pcapng.OUTBOUND, 1)
    output, got = Output(pipe[1], "x", 1000), b""
    for each in data + data[:20]:
        output.take(bytes([each]))
    got = os.read(pipe[0], 4096)
    assert got == data
    output.begin_anew()
    output.take(data)
    assert os.read(pipe[0], 4096) == data


@pytest.mark.parametrize("length", [0, 11, (1 << 17) + 1, (1 << 32) - 1])
def test_what_is_no_pcapng_is_refused(pipe: tuple[int, int], length: int) -> None:
    with pytest.raises(Failed, match="no pcapng"):
        Output(pipe[1], "x", 1000).take(bytes(4) + length.to_bytes(4, "little") + bytes(12))


def test_a_worker_cannot_write_more_than_was_ordered(pipe: tuple[int, int]) -> None:
    output, block = Output(pipe[1], "x", 1000), pcapng.packet(bytes(60_000), 60_000, pcapng.INBOUND, 1)
    output.take(block)
    os.read(pipe[0], 1 << 16)
    output.take(block)
    with pytest.raises(Failed, match="the worker writes more than was ordered"):
        output.take(block)


def test_a_full_disk_leaves_whole_blocks(pipe: tuple[int, int]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(Failed, match="x: No space left on device; what was captured before is whole"):
            Output(full, "x", 1000).take(pcapng.begin("wg0", ""))
    finally:
        os.close(full)


def test_a_pipe_without_a_reader_is_said_once_and_waited_for(tmp_path: Path) -> None:
    path, said = tmp_path / "pipe", list[str]()
    os.mkfifo(path)
    readers: list[int] = []

    def tell(text: str) -> None:
        said.append(text)
        readers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    for _ in range(2):
        with capturing.opened(str(path), tell) as descriptor:
            assert os.get_blocking(descriptor)
            os.write(descriptor, b"x")
    assert said == [f"{path} has no reader yet; waits for one"]
    assert os.read(readers[0], 9) == b"xx"
    os.close(readers[0])


def test_what_is_neither_a_file_nor_a_pipe_is_refused_in_a_line(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "socket"))
        for name, kind in (("socket", "a socket"), (".", "a folder")):
            with pytest.raises(Failed, match=f"is {kind}: name a file or a pipe; nothing is captured$"):
                _open(tmp_path / name)
    for name, why in (("no/such", "No such file"), ("x" * 300, "File name too long")):
        with pytest.raises(Failed, match=f"{why}.*; nothing is captured$"):
            _open(tmp_path / name)


def _open(path: Path) -> None:
    with capturing.opened(str(path), print):
        pass
