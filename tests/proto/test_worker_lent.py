"""A train's memory is somebody else's again once it has been handled: what is kept of it must be a copy."""

import random
from collections.abc import Sequence

import pytest
from tests.proto.byhand import ELSEWHERE, PEER, PLACE, T, facts, new_session, ours, theirs, tunnel_of
from tests.proto.packets.flows import TCP, UDP, Shape
from tests.proto.test_worker_trains import running, sent

from stagewire.pipe import trains
from stagewire.proto.packets import split
from stagewire.proto.packets.block import Block
from stagewire.proto.packets.merge import TAKES_TCP, Merged
from stagewire.proto.tunnel import Output, Packet
from stagewire.proto.worker import Worker

SHAPES = {
    "super-packets": [Shape(size=500, payload=random.Random(at).randbytes(4_700), port=at) for at in range(3)],
    "single packets": [Shape(payload=random.Random(at).randbytes(90 + at)) for at in range(5)],
    "alike": [Shape(protocol=UDP, payload=random.Random(at).randbytes(300), size=300) for at in range(30)],
}


def train_of(items: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Packs items as tun-service does."""
    return trains.HEADER.pack(trains.VERSION, trains.PLAIN, 0, len(items), T) + b"".join(
        trains.LENGTH.pack(len(header) + len(packet)) + header + packet for header, packet in items
    )


def packets_in(memory: bytearray) -> list[Packet]:
    """As device-service takes a train apart."""
    whole = memoryview(memory)
    start, packets = trains.HEADER.size, list[Packet]()
    while start < len(memory):
        (length,) = trains.LENGTH.unpack_from(memory, start)
        item = whole[start + 4 : start + 4 + length]
        packets.append(split.open_untrusted(bytes(item[:10]), item[10:]))
        start += 4 + length
    return packets


@pytest.mark.parametrize("kind", SHAPES)
def test_what_waits_for_a_session_is_a_copy(kind: str) -> None:
    memory = bytearray(train_of([shape.as_read() for shape in SHAPES[kind]]))
    one = Worker(lambda: 0.1)
    one.set_peer(facts(PEER, "10.0.0.0/8"), T)
    assert not one.outbound(packets_in(memory), T).runs
    memory[:] = bytes(len(memory))
    out = one.install(PEER, new_session(), PLACE, T)
    assert out is not None
    expected = [packet for shape in SHAPES[kind] for packet in shape.train()]
    assert [
        ours(datagram)[: len(packet)] for datagram, packet in zip(sent(out.runs), expected, strict=True)
    ] == expected


@pytest.mark.parametrize("count", [1, 3, 30])
def test_what_was_opened_is_a_copy(count: int) -> None:
    shape = Shape(size=500, payload=random.Random(1).randbytes(500 * count))
    sealed = [theirs(at, packet + bytes(-len(packet) % 16)) for at, packet in enumerate(shape.train())]
    memory = bytearray(b"".join(sealed))
    one = running(takes=TAKES_TCP)
    out = one.inbound([(ELSEWHERE, Block(memoryview(memory), len(sealed[0])))], T)
    memory[:] = bytes(len(memory))
    (item,) = out.packets
    packet = item.packet if isinstance(item, Merged) else item
    assert bytes(packet)[-500 * count :] == shape.payload


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("version", [4, 6])
def test_a_super_packet_that_changes_after_it_was_judged_ends_nobody(version: int, protocol: int) -> None:
    """Only its own packets are wrong then, and go where they were to go."""
    shape = Shape(version, protocol, 6, bytes(60))
    rng = random.Random(1)
    for _ in range(300):
        header, packet = shape.as_read()
        memory = bytearray(packet)
        whole = split.open_untrusted(header, memoryview(memory))
        for at in [*rng.sample(range(60), 4), 0]:
            memory[at] = rng.randrange(256)
        assert isinstance(whole, split.SuperPacket)
        assert len(whole.packets()) == whole.count
        assert whole.first()
        one = running()
        out = Output()
        tunnel_of(one).send([whole], T, out)
        assert len(sent(out.runs)) == whole.count
