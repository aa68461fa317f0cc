"""Doors for what comes from the network: handshakes at the gate and behind it, transport messages, endpoints, stamps."""

import random
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from ipaddress import ip_network

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from scapy.contrib.wireguard import Wireguard
from tests.fuzz.doors.door import Given, door, only, piece
from tests.proto import byhand
from tests.proto.far import ELSEWHERE, PLACE, WALL, Far, T, new_handshaker, setup, stamp, want
from tests.proto.sim import START, Pair, Wire, pair

from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto import handshake, noise, prefix, tai64n
from stagewire.proto.cookie import CookieChecker, MacSealer
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import SendHandshake
from stagewire.proto.gate import LOADED_AT, Gate
from stagewire.proto.handshake import Remote
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.messages import BadMessage, CookieReply, Initiation, Response, parse_handshake_untrusted
from stagewire.proto.packets import ip
from stagewire.proto.packets.block import Block
from stagewire.proto.session import Session
from stagewire.proto.worker import PeerFacts, Worker
from stagewire.reasons import Reasons

ATTACKER = Endpoint(bytes([203, 0, 113, 66]), 6666)
STATES = [noise.SymmetricState]
with suppress(ImportError):
    from stagewire.proto.kernel import symmetric

    STATES.append(symmetric.SymmetricState)
HANDSHAKES = {(1, 148), (2, 92), (2, 104), (3, 64)}


def a_life() -> Pair:
    """Makes two gateways whose session came about through a cookie; an initiation of each waits for its response."""
    p = pair(11, Wire(delay=0.01), stamped=False)
    p.b.gate.note_queue(LOADED_AT)
    p.a.send(p.b, 2)
    p.world.run(6)
    p.b.send(p.a, 2, size=200)
    p.world.run(30)
    return p


def mid_handshake() -> Pair:
    """Goes on from `a_life` until both sides wait for a response: each door of a handshake is open."""
    p = a_life()
    p.world.run(200)
    p.world.wire.loss = 1.0
    p.a.send(p.b)
    p.b.send(p.a)
    return p


@cache
def live() -> Pair:
    return a_life()


@cache
def waiting() -> Pair:
    return mid_handshake()


@cache
def real() -> tuple[bytes, ...]:
    """Returns messages of each type, as they were sent."""
    return tuple(sorted({sent.data for sent in waiting().world.log}))


def of_kind(kind: int) -> tuple[bytes, ...]:
    return tuple(data for data in real() if data[0] == kind)


def handshakes() -> tuple[bytes, ...]:
    return tuple(data for data in real() if data[0] != c.TYPE_TRANSPORT)


@door(parse_handshake_untrusted, seeds=real)
def handshake_messages(data: bytes) -> None:
    """Reads each message as scapy does."""
    parsed = only(BadMessage, parse_handshake_untrusted, data)
    if parsed is None:
        return
    assert (data[0], len(data)) in HANDSHAKES
    assert data[1:4] == bytes(3)
    if len(data) == c.STAMPED_RESPONSE_LENGTH:
        return  # no other implementation has this message
    theirs = Wireguard(data).payload
    match parsed:
        case Initiation():
            ours = (parsed.sender, parsed.ephemeral, parsed.encrypted_static, parsed.encrypted_timestamp)
            assert ours == (
                theirs.sender_index, theirs.unencrypted_ephemeral, theirs.encrypted_static, theirs.encrypted_timestamp
            )  # fmt: skip
            assert (parsed.mac1, parsed.mac2) == (theirs.mac1, theirs.mac2)
        case Response():
            assert (parsed.sender, parsed.receiver) == (theirs.sender_index, theirs.receiver_index)
            assert (parsed.ephemeral, parsed.encrypted_payload) == (
                theirs.unencrypted_ephemeral, theirs.encrypted_nothing
            )  # fmt: skip
            assert (parsed.mac1, parsed.mac2) == (theirs.mac1, theirs.mac2)
        case CookieReply():
            assert (parsed.receiver, parsed.nonce, parsed.encrypted_cookie) == (
                theirs.receiver_index, theirs.nonce, theirs.encrypted_cookie
            )  # fmt: skip


@door(places.unpack_untrusted, seeds=lambda: (PLACE, ELSEWHERE, bytes(44)))
def endpoints(data: bytes) -> None:
    unpacked = only(ValueError, places.unpack_untrusted, data)
    if unpacked is not None:
        assert places.unpack_untrusted(unpacked.pack()) == unpacked
        assert str(unpacked)


@door(prefix.unpack_untrusted, prefix.route_untrusted, seeds=lambda: (bytes([8, 10, 0, 0, 0]), bytes([64]) + bytes(16)))
def prefixes(data: bytes) -> None:
    unpacked = only(ValueError, prefix.unpack_untrusted, data)
    route = only(ValueError, prefix.route_untrusted, data)
    assert (unpacked is None) == (route is None)
    if unpacked is not None and route is not None:
        assert prefix.pack(unpacked) == data
        assert route == prefix.route(unpacked)
        assert prefix.network(route) == unpacked


@door(tai64n.decode_untrusted, seeds=lambda: (stamp(), stamp(5)))
def timestamps(data: bytes) -> None:
    decoded = only(BadMessage, tai64n.decode_untrusted, data)
    if decoded is not None:
        # A stamp of our own making is never before the floor.
        stamper = only(BadMessage, tai64n.Stamper, data)
        assert stamper is not None


@door(noise.SymmetricState.open_untrusted, seeds=lambda: (bytes(64),))
def noise_ciphertexts(data: bytes) -> None:
    for kind in STATES:
        state = kind(bytes(32), bytes(32))
        state.mix_key(data[:32])
        assert only(BadMessage, state.open_untrusted, data[32:], "reason") is None


def _with_macs(data: bytes, public_key: bytes) -> bytes:
    """Makes mac1 right, which an attacker that knows our public key can do."""
    return MacSealer(public_key).seal(data[: -c.MAC_LENGTH * 2], T) if len(data) > c.MAC_LENGTH * 2 else data


@door(Gate.judge_untrusted, seeds=lambda: [bytes([flags]) + data for data in real() for flags in (0, 1, 7)])
def gate(data: bytes) -> None:
    """Judges a datagram, loaded or not, stamped or not, with a mac1 as it came or right."""
    given = Given(data)
    flags, datagram = given.number(), given.rest()
    drops = Reasons()
    public_key = waiting().b.identity.public_key
    one = Gate(public_key, random.Random(1).randbytes, drops, START, stamped=bool(flags & 2))
    if flags & 1:
        one.note_queue(LOADED_AT)
    if flags & 4:
        datagram = _with_macs(datagram, public_key)
    passed, answer = one.judge_untrusted(datagram, places.place_of(ATTACKER.pack()), START)
    assert (passed > 0) + sum(drops.values()) == 1
    assert not (passed and answer)
    assert len(answer) in (0, 64)
    assert len(answer) <= len(datagram)  # nothing is amplified
    if passed:
        assert (datagram[0], len(datagram)) in HANDSHAKES


@door(seeds=real)
def cookies(data: bytes) -> None:
    """Accepts no cookie, and no mac, that an attacker makes up."""
    checker = CookieChecker(bytes(32), random.Random(1).randbytes)
    assert not checker.mac1_valid(data)
    assert not checker.mac2_valid(data, b"\1\2\3\4\0\1", START)
    message = only(BadMessage, parse_handshake_untrusted, data)
    if isinstance(message, CookieReply):
        sealer = MacSealer(bytes(32))
        sealer.seal(bytes(116), START)
        with pytest.raises(BadMessage):
            sealer.accept_cookie_reply(message, START)


@door(
    handshake.open_initiation_untrusted,
    handshake.authenticate_untrusted,
    handshake.read_response_untrusted,
    seeds=handshakes,
    milliseconds=30,
)
def handshake_steps(data: bytes) -> None:
    """Tries each step of a handshake with both sides' keys."""
    p = waiting()
    message = only(BadMessage, parse_handshake_untrusted, data)
    for one, other in ((p.a, p.b), (p.b, p.a)):
        remote = Remote.of(one.identity, other.identity.public_key)
        if isinstance(message, Initiation):
            opened = only(BadMessage, handshake.open_initiation_untrusted, one.identity, message)
            if opened is not None:
                assert opened.public_key == other.identity.public_key
                only(BadMessage, handshake.authenticate_untrusted, opened, remote)
        elif isinstance(message, Response):
            sent = one.handshaker.peers[other.identity.public_key].sent
            assert sent is not None
            read = handshake.read_response_untrusted
            for stamped in (False, True):
                assert only(BadMessage, read, one.identity, remote, sent, message, stamped=stamped) is None


def _state(ours: Handshaker) -> object:
    return [(p.endpoint, p.latest_initiation, p.latest_response, p.rx_bytes, p.sent) for p in ours.peers.values()]


@cache
def _under_way() -> tuple[Handshaker, Far, bytes]:
    """Returns a handshaker that waits for a response, its far end, and that initiation."""
    ours, far, peer = setup(stamped=True)
    sent = next(effect for effect in want(ours, peer) if isinstance(effect, SendHandshake))
    return ours, far, sent.data


def _answered() -> Iterator[bytes]:
    _, far, initiation = _under_way()
    yield far.respond(initiation, stamp(1))
    yield Far(new_handshaker().identity).initiation(stamp(1))
    yield from handshakes()


@door(Handshaker.receive_untrusted, seeds=_answered, milliseconds=30)
def handshaker(data: bytes) -> None:
    """Takes only what an authentic peer made, and has changed nothing otherwise."""
    ours, _, _ = _under_way()
    before = _state(ours)
    effects = only(BadMessage, ours.receive_untrusted, data, ATTACKER.pack(), T, WALL)
    if effects is None:
        assert _state(ours) == before
    if _state(ours) != before:
        _under_way.cache_clear()  # a real message passed


@door(Handshaker.receive_untrusted, seeds=lambda: (stamp(), stamp(1), bytes(12), b"\xff" * 12), milliseconds=30)
def authentic_stamps(data: bytes) -> None:
    """Takes initiations and responses of an authentic peer with any stamps in them, in any order."""
    given = Given(data)
    ours, far, peer = setup(stamped=True)
    now = T
    for _ in range(min(4, given.left // 12)):
        now += 1 + given.number()
        said, clock = given.take(11) + b"\0", WALL + int(now * 1e9)
        if given.number() & 1:
            sent = [each for each in ours.want(peer.public_key, now, clock) if isinstance(each, SendHandshake)]
            message = far.respond(sent[0].data, said) if sent else far.initiation(said)
        else:
            message = far.initiation(said)
        latest = peer.latest_initiation, peer.latest_response
        only(BadMessage, ours.receive_untrusted, message, PLACE, now, clock)
        assert peer.latest_initiation >= latest[0]
        assert peer.latest_response >= latest[1]
        ours.act(now, clock)


@door(Worker.inbound, seeds=lambda: [*real(), real()[-1] * 3])
def transport(data: bytes) -> None:
    """Delivers nothing and answers nothing: each real datagram has arrived already, and others aren't authentic."""
    given = Given(data)
    size, datagrams = given.number(2), given.rest()
    p = live()
    for one, other in ((p.a, p.b), (p.b, p.a)):
        tunnel = one.tunnel(other)
        before = tunnel.endpoint, tunnel.rx_bytes
        run = [data, datagrams, datagrams[:size]]
        if datagrams and size and size * 64 >= len(datagrams):
            out = one.workers[0].inbound([(ATTACKER.pack(), Block(datagrams, size))], p.world.now)
            assert (out.packets, out.runs, out.events) == ([], [], [])
        out = one.workers[0].inbound([(ATTACKER.pack(), run)], p.world.now)
        assert (out.packets, out.runs, out.events) == ([], [], [])
        assert (tunnel.endpoint, tunnel.rx_bytes) == before


@door(
    seeds=lambda: [
        byhand.v4("10.0.0.1"),
        byhand.v4("10.0.0.1").ljust(80, b"\0"),
        byhand.v4("10.0.0.2"),
        b"\x60" + bytes(79),
    ]
)
def authentic_packets(data: bytes) -> None:
    """Lets only well-formed packets out whose source is the peer's, whatever an authentic peer seals."""
    cipher = ChaCha20Poly1305(bytes(32))
    one = Worker(lambda: 0.1)
    one.set_peer(PeerFacts(b"P" * 32, (ip_network("10.0.0.1/32"),), home=True), START)
    one.install(b"P" * 32, Session(256, 512, cipher, cipher, initiator=True, created=START), ATTACKER.pack(), START)
    sealed = [
        b"\4\0\0\0" + (256).to_bytes(4, "little") + counter.to_bytes(8, "little")
        + cipher.encrypt(bytes(4) + counter.to_bytes(8, "little"), data, None)
        for counter in range(9)
    ]  # fmt: skip
    out = one.inbound([(ATTACKER.pack(), Block(b"".join(sealed), len(sealed[0])))], START)
    for packet in out.packets:
        assert isinstance(packet, bytes)
        assert data.startswith(packet)
        assert ip.inner_length(packet) == len(packet)
        assert (packet[0] >> 4, packet[12:16]) == (4, bytes([10, 0, 0, 1]))


@door(seeds=lambda: [piece(byhand.v4("10.0.0.1")) + piece(b"") + piece(b"\x60" + bytes(79))])
def host_packets(data: bytes) -> None:
    """Stages or counts each packet of the host, whatever it is."""
    given = Given(data)
    packets = []
    while given.left:
        packets.append(given.piece())
    one = Worker(lambda: 0.1)
    one.set_peer(PeerFacts(b"P" * 32, (ip_network("0.0.0.0/1"), ip_network("::/1")), home=True, endpoint=b"E"), START)
    out = one.outbound(packets, START)
    assert len(one.owners.tunnels()[0].staged) + sum(one.drops.values()) == len(packets)
    assert len(out.packets) <= len(packets)
