"""Every door of the protocol core under real messages cut, lengthened, mixed and mutated.

A door raises its one exception or returns. What it refuses it has not acted on: no inner packet comes of it that the
peer didn't send, no endpoint moves, and the session that runs goes on.
"""

import random
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_network
from typing import ParamSpec, TypeVar

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proto.sim import START, Gateway, Pair, Wire, packet, pair

from stagewire.proto import endpoint as places
from stagewire.proto import handshake, ip, noise, tai64n
from stagewire.proto.cookie import CookieChecker, MacSealer
from stagewire.proto.device import Device, PeerFacts
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.gate import LOADED_AT, Gate
from stagewire.proto.handshake import Identity, Remote
from stagewire.proto.messages import BadMessage, CookieReply, Initiation, Response, parse_handshake_untrusted
from stagewire.proto.session import Session

P = ParamSpec("P")
T = TypeVar("T")
ATTACKER = Endpoint(bytes([203, 0, 113, 66]), 6666)


def a_life() -> Pair:
    """A session that came about through a cookie, and an initiation of each side's that waits for its response."""
    p = pair(11, Wire(delay=0.01), stamped=False)
    p.b.gate.note_queue(LOADED_AT, p.world.now)
    p.a.send(p.b, 2)
    p.world.run(6)
    p.b.send(p.a, 2, size=200)
    p.world.run(30)
    return p


def mid_handshake() -> Pair:
    """As `a_life`, and then both sides wait for a response: each door of a handshake is open."""
    p = a_life()
    p.world.run(200)
    p.world.wire.loss = 1.0
    p.a.send(p.b)
    p.b.send(p.a)
    return p


REAL = sorted({sent.data for sent in mid_handshake().world.log})
BY_KIND = {kind: [data for data in REAL if data[0] == kind] for kind in (1, 2, 3, 4)}
assert all(BY_KIND.values())


@st.composite
def mutated(draw: st.DrawFn, base: list[bytes] = REAL) -> bytes:
    """A real message, spoilt a little or a lot."""
    data = bytearray(draw(st.sampled_from(base)))
    for change in draw(st.lists(st.sampled_from(["cut", "extend", "flip", "set", "splice", "kind"]), max_size=4)):
        at = draw(st.integers(0, len(data)))
        match change:
            case "cut":
                del data[at:]
            case "extend":
                data += draw(st.binary(max_size=200))
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                insert = draw(st.binary(min_size=1, max_size=32))
                data[at : at + len(insert)] = insert
            case "splice":
                data[at:] = draw(st.sampled_from(REAL))[at:]
            case "kind" if data:
                data[0] = draw(st.integers(0, 255))
            case _:
                pass
    return bytes(data)


def only(error: type[Exception], door: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What the door returns; None if it raised its one exception. Anything else fails the test."""
    try:
        return door(*args, **kwargs)
    except error:
        return None


# --- single doors ------------------------------------------------------------------------------------------


@settings(max_examples=500)
@given(mutated())
def test_parse_handshake(data: bytes) -> None:
    parsed = only(BadMessage, parse_handshake_untrusted, data)
    if parsed is not None:
        assert (data[0], len(data)) in {(1, 148), (2, 92), (2, 104), (3, 64)}
        assert data[1:4] == bytes(3)


@given(st.binary(max_size=100) | st.binary(min_size=places.LENGTH, max_size=places.LENGTH))
def test_unpack_endpoint(data: bytes) -> None:
    unpacked = only(ValueError, places.unpack_untrusted, data)
    if unpacked is not None:
        assert places.unpack_untrusted(unpacked.pack()) == unpacked
        assert str(unpacked)


@given(st.binary(max_size=20) | st.binary(min_size=12, max_size=12))
def test_decode_timestamp(data: bytes) -> None:
    only(BadMessage, tai64n.decode_untrusted, data)
    only(BadMessage, tai64n.Stamper, data)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=80))
def test_open_of_the_symmetric_state(key: bytes, ciphertext: bytes) -> None:
    with pytest.raises(BadMessage):
        noise.initial_state(bytes(32)).open_untrusted(key, ciphertext, "reason")


@given(mutated(BY_KIND[1]))
def test_initiations(data: bytes) -> None:
    p = FIXED
    message = only(BadMessage, parse_handshake_untrusted, data)
    if not isinstance(message, Initiation):
        return
    for one, other in ((p.a, p.b), (p.b, p.a)):
        opened = only(BadMessage, handshake.open_initiation_untrusted, one.identity, message)
        if opened is not None:
            assert opened.public_key == other.identity.public_key
            remote = Remote.of(one.identity, opened.public_key)
            only(BadMessage, handshake.authenticate_untrusted, opened, remote)


@given(mutated(BY_KIND[2]), st.booleans())
def test_responses(data: bytes, stamped: bool) -> None:
    message = only(BadMessage, parse_handshake_untrusted, data)
    if not isinstance(message, Response):
        return
    for one, other in ((FIXED.a, FIXED.b), (FIXED.b, FIXED.a)):
        sent = one.handshaker.peers[other.identity.public_key].sent
        assert sent is not None
        remote = Remote.of(one.identity, other.identity.public_key)
        with pytest.raises(BadMessage):
            handshake.read_response_untrusted(one.identity, remote, sent, message, stamped=stamped)


@given(mutated(BY_KIND[3]))
def test_cookie_replies(data: bytes) -> None:
    message = only(BadMessage, parse_handshake_untrusted, data)
    sealer = MacSealer(bytes(32))
    sealer.seal(bytes(116), START)
    if isinstance(message, CookieReply):
        with pytest.raises(BadMessage):
            sealer.accept_cookie_reply(message, START)


@given(mutated())
def test_cookie_checker(data: bytes) -> None:
    checker = CookieChecker(bytes(32), random.Random(1).randbytes)
    assert not checker.mac1_valid(data)
    assert not checker.mac2_valid(data, b"\1\2\3\4\0\1", START)


# --- whole parts -------------------------------------------------------------------------------------------

FIXED = mid_handshake()


@settings(max_examples=300)
@given(mutated(), st.booleans(), st.booleans())
def test_the_gate_never_raises(data: bytes, loaded: bool, stamped: bool) -> None:
    drops: Counter[str] = Counter()
    gate = Gate(FIXED.b.identity.public_key, random.Random(1).randbytes, drops, stamped=stamped)
    if loaded:
        gate.note_queue(LOADED_AT, START)
    passed, answer = gate.judge_untrusted(data, ATTACKER, START)
    assert passed + sum(drops.values()) == 1
    assert not (passed and answer)
    assert len(answer) in (0, 64)
    assert len(answer) <= len(data)  # nothing is amplified
    if passed:
        assert (data[0], len(data)) in {(1, 148), (2, 92), (2, 104), (3, 64)}


def watched(one: Gateway, other: Gateway) -> tuple[object, ...]:
    peer, tunnel = one.handshaker.peers[other.identity.public_key], one.tunnel(other)
    return (peer.endpoint, peer.latest_initiation, peer.sent, peer.rx_bytes, tunnel.endpoint, tunnel.rx_bytes)


@settings(max_examples=300)
@given(mutated(BY_KIND[1] + BY_KIND[2] + BY_KIND[3]))
def test_the_handshaker_raises_bad_message_and_has_changed_nothing(data: bytes) -> None:
    p = mid_handshake()
    for one, other in ((p.a, p.b), (p.b, p.a)):
        before = watched(one, other)
        place, now, unix_ns = ATTACKER.pack(), p.world.now, p.world.unix_ns
        effects = only(BadMessage, one.handshaker.receive_untrusted, data, place, now, unix_ns)
        if effects:
            # Only an initiation that was lost on its way is worth an answer. Its index and macs are not its crypto's.
            assert any(data[8:116] == real[8:116] for real in BY_KIND[1])
        else:
            assert watched(one, other) == before


@settings(max_examples=300)
@given(st.lists(mutated(BY_KIND[4]) | mutated(), max_size=5))
def test_the_device_never_raises_and_delivers_only_what_was_sent(datagrams: list[bytes]) -> None:
    p = LIVE
    for one, other in ((p.a, p.b), (p.b, p.a)):
        before = watched(one, other)
        out = one.devices[0].inbound([(ATTACKER.pack(), datagrams)], p.world.now)
        # Every real datagram has arrived already.
        assert (out.packets, out.runs, out.events) == ([], [], [])
        assert watched(one, other) == before


LIVE = a_life()


@given(st.lists(st.binary(max_size=100) | mutated(), max_size=5))
def test_the_device_takes_anything_from_the_host(packets: list[bytes]) -> None:
    one = Device(lambda: 0.1)
    one.set_peer(PeerFacts(b"P" * 32, (ip_network("0.0.0.0/1"), ip_network("::/1")), home=True, endpoint=b"E"), START)
    out = one.outbound(packets, START)
    drops = one.drops["no_peer"] + one.drops["outbound_malformed"]
    assert len(one.tunnels()[0].staged) + drops == len(packets)
    assert len(out.packets) <= len(packets)


# --- inner packets -----------------------------------------------------------------------------------------

KEY = bytes(32)
INNER = [packet("10.0.0.1", "10.0.0.2", 7), packet("10.0.0.1", "10.0.0.2", 7, 1420), b"\x60" + bytes(79)]


@settings(max_examples=300)
@given(mutated(INNER))
def test_whatever_an_authentic_peer_sends_only_well_formed_packets_of_its_own_come_out(inner: bytes) -> None:
    one = Device(lambda: 0.1)
    one.set_peer(PeerFacts(b"P" * 32, (ip_network("10.0.0.1/32"),), home=True), START)
    cipher = ChaCha20Poly1305(KEY)
    one.install(b"P" * 32, Session(256, 512, cipher, cipher, initiator=True, created=START), ATTACKER.pack(), START)
    datagram = b"\4\0\0\0" + (256).to_bytes(4, "little") + bytes(8) + cipher.encrypt(bytes(12), inner, None)
    for out in one.inbound([(ATTACKER.pack(), [datagram])], START).packets:
        assert isinstance(out, bytes)
        assert inner.startswith(out)
        assert ip.inner_length(out) == len(out)
        assert (out[0] >> 4, out[12:16]) == (4, bytes([10, 0, 0, 1]))


@given(mutated(INNER))
def test_reading_inner_packets(data: bytes) -> None:
    assert 0 <= ip.inner_length(data) <= len(data)
    for reader in (ip.source, ip.destination):
        assert len(reader(data) or b"") in (0, 4, 16)
    answer = ip.unreachable(data)
    assert answer is None or ip.inner_length(answer) == len(answer)


def test_identities_need_32_bytes() -> None:
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="32"):
            Identity.from_private_bytes(bytes(size))
