"""A train's memory is somebody else's again once it has been handled: what is kept of it must be a copy."""

import random

import pytest
from tests.proto.byhand import ELSEWHERE, PEER, PLACE, T, facts, new_session, ours, theirs, tunnel_of
from tests.proto.offload.flows import TCP, UDP, Shape
from tests.proto.offload.test_lane import running, sent
from tests.proto.offload.test_uniform import train_of

from stagewire.ipc import trains
from stagewire.proto.device import Device
from stagewire.proto.offload import segment, uniform
from stagewire.proto.offload.block import Block
from stagewire.proto.offload.coalesce import TAKES_TCP, Merged
from stagewire.proto.tunnel import Output, Packet

SHAPES = {
    "super-packets": [Shape(size=500, payload=random.Random(at).randbytes(4_700), port=at) for at in range(3)],
    "single packets": [Shape(payload=random.Random(at).randbytes(90 + at)) for at in range(5)],
    "alike": [Shape(protocol=UDP, payload=random.Random(at).randbytes(300), size=300) for at in range(30)],
}


def packets_in(memory: bytearray) -> list[Packet]:
    """As device-service takes a train apart."""
    whole = memoryview(memory)
    found = trains.stride_untrusted(bytes(memory), T)
    if found is not None and (alike := uniform.of_items(whole, *found)) is not None and alike.count >= uniform.LEAST:
        return [alike]
    start, packets = trains.HEADER.size, list[Packet]()
    while start < len(memory):
        (length,) = trains.LENGTH.unpack_from(memory, start)
        item = whole[start + 4 : start + 4 + length]
        packets.append(segment.open_untrusted(bytes(item[:10]), item[10:]))
        start += 4 + length
    return packets


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_what_waits_for_a_session_is_a_copy(kind: str, wide: bool) -> None:
    memory = bytearray(train_of([shape.as_read() for shape in SHAPES[kind]]))
    one = Device(lambda: 0.1, wide=wide)
    one.set_peer(facts(PEER, "10.0.0.0/8"), T)
    assert not one.outbound(packets_in(memory), T).runs
    memory[:] = bytes(len(memory))
    out = one.install(PEER, new_session(), PLACE, T)
    assert out is not None
    expected = [packet for shape in SHAPES[kind] for packet in shape.train()]
    assert [
        ours(datagram)[: len(packet)] for datagram, packet in zip(sent(out.runs), expected, strict=True)
    ] == expected


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("count", [1, 3, 30])
def test_what_was_opened_is_a_copy(count: int, wide: bool) -> None:
    shape = Shape(size=500, payload=random.Random(1).randbytes(500 * count))
    sealed = [theirs(at, packet + bytes(-len(packet) % 16)) for at, packet in enumerate(shape.train())]
    memory = bytearray(b"".join(sealed))
    one = running(wide=wide, takes=TAKES_TCP)
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
        whole = segment.open_untrusted(header, memoryview(memory))
        for at in [*rng.sample(range(60), 4), 0]:
            memory[at] = rng.randrange(256)
        assert isinstance(whole, segment.SuperPacket)
        assert len(whole.packets()) == whole.count
        assert whole.first()
        one = running(wide=True)
        out = Output()
        tunnel_of(one).send([whole], T, out)
        assert len(sent(out.runs)) == whole.count
