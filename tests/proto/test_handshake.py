"""Initiation and response: against an independent implementation of Noise, and against everything bad.

The independent one is `noiseprotocol`. WireGuard's handshake is Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s with the
identifier as prologue and the TAI64N as payload of the first message; the headers and macs around it Noise doesn't see.
"""

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from noise.connection import Keypair, NoiseConnection
from tests.proto.test_noise import LOW_ORDER

from stagewire.proto import handshake, noise
from stagewire.proto.handshake import AuthenticInitiation, Identity, Remote, SentInitiation
from stagewire.proto.messages import BadMessage, Initiation, Response, parse_handshake_untrusted

SENDER, ANSWERER = 0x01020304, 0xA0B0C0D0
STAMP = bytes.fromhex("4000000037c219bf2e000000")
LATER = bytes.fromhex("4000000037c219c02e000000")
STATIC_INITIATOR, STATIC_RESPONDER = bytes(range(32)), bytes(range(32, 64))
EPHEMERAL_INITIATOR, EPHEMERAL_RESPONDER = bytes(range(64, 96)), bytes(range(96, 128))
NO_PSK, PSK = bytes(32), bytes(range(128, 160))
MACS = bytes(32)

INITIATOR = Identity.from_private_bytes(STATIC_INITIATOR)
RESPONDER = Identity.from_private_bytes(STATIC_RESPONDER)

M = TypeVar("M", Initiation, Response)


@pytest.fixture(params=["plain", "compiled"], autouse=True)
def _kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "compiled":
        noise.use(pytest.importorskip("stagewire.proto.kernel.symmetric").SymmetricState)
    yield
    noise.use(noise.SymmetricState)


@dataclass(frozen=True)
class Vector:
    """A whole transcript: the two messages without headers and macs, and counter 0 in each direction, all hex."""

    psk: bytes
    response_payload: bytes
    first: str
    second: str
    initiator_sends: str
    responder_sends: str


FIRST = (
    "79a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51a"
    "f0225eb421886af8f54fb31289d49dcd82b0f6f3279d40d7cff913fece0c64ad226eef3320755b393b72f16842c8d7ee"
    "78a74e932caec237a1f4ecc1e99f88bbf0925b0033e8995b60f1abb2"
)
VECTORS = [
    Vector(
        NO_PSK,
        b"",
        FIRST,
        "675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52f5087da260cde9d9682ae523d1823bfb6",
        "cdae67d9fa97da58517ac13fd99c0aaf53abbf185158deda",
        "830e2e3d9d9f83a1ea93a5ffe47e52e733d3b78c2656ebf8",
    ),
    Vector(
        PSK,
        b"",
        FIRST,
        "675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52fb0dbe302187876b3058adffebeb964c8",
        "2a2a321677f086187512cb12498f997df63db07584611a86",
        "67f84fed7c2896a866b6805c39c31198dd316b78798ca723",
    ),
    Vector(
        PSK,
        LATER,
        FIRST,
        "675dd574ed7789310b3d2e7681f3790b466c773b1521fecf36577958371ea52f"
        "7e090f0a3b885958be66a6b055d145290eb9a2a6870c8baf91579f18",
        "2a2a321677f086187512cb12498f997df63db07584611a86",
        "67f84fed7c2896a866b6805c39c31198dd316b78798ca723",
    ),
]


def noise_pair(psk: bytes, initiator: bytes, responder: bytes) -> tuple[NoiseConnection, NoiseConnection]:
    """Both sides in the independent implementation, handshake not started."""
    sides = []
    for static in (initiator, responder):
        side = NoiseConnection.from_name(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
        side.set_prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com")
        side.set_psks(psk=psk)
        side.set_keypair_from_private_bytes(Keypair.STATIC, static)
        sides.append(side)
    responder_key = sides[1].noise_protocol.keypairs["s"].public_bytes
    sides[0].set_as_initiator()
    sides[0].set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, responder_key)
    sides[1].set_as_responder()
    return sides[0], sides[1]


def noise_transcript(psk: bytes, response_payload: bytes) -> Vector:
    """Generates a vector from nothing but the independent implementation."""
    initiator, responder = noise_pair(psk, STATIC_INITIATOR, STATIC_RESPONDER)
    initiator.set_keypair_from_private_bytes(Keypair.EPHEMERAL, EPHEMERAL_INITIATOR)
    responder.set_keypair_from_private_bytes(Keypair.EPHEMERAL, EPHEMERAL_RESPONDER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that ephemeral keys are given, which is the point
        initiator.start_handshake()
        responder.start_handshake()
    first = bytes(initiator.write_message(STAMP))
    assert responder.read_message(first) == STAMP
    second = bytes(responder.write_message(response_payload))
    assert initiator.read_message(second) == response_payload
    sent = [bytes(side.encrypt(b"a packet")).hex() for side in (initiator, responder)]
    return Vector(psk, response_payload, first.hex(), second.hex(), *sent)


def initiation_of(noise_message: bytes, sender: int = SENDER) -> Initiation:
    """What WireGuard puts around a first Noise message."""
    packed = b"\1\0\0\0" + sender.to_bytes(4, "little") + noise_message + MACS
    message = parse_handshake_untrusted(packed)
    assert isinstance(message, Initiation)
    return message


def response_of(noise_message: bytes, sender: int = ANSWERER, receiver: int = SENDER) -> Response:
    """What WireGuard puts around a second Noise message."""
    indices = sender.to_bytes(4, "little") + receiver.to_bytes(4, "little")
    message = parse_handshake_untrusted(b"\2\0\0\0" + indices + noise_message + MACS)
    assert isinstance(message, Response)
    return message


def remote_of(identity: Identity, other: Identity, psk: bytes) -> Remote:
    return Remote.of(identity, other.public_key, psk)


def initiated(psk: bytes = PSK, stamp: bytes = STAMP) -> tuple[bytes, SentInitiation]:
    remote = remote_of(INITIATOR, RESPONDER, psk)
    return handshake.initiate(INITIATOR, remote, SENDER, EPHEMERAL_INITIATOR, stamp)


def authenticated(message: Initiation, psk: bytes = PSK) -> AuthenticInitiation:
    opened = handshake.open_initiation_untrusted(RESPONDER, message)
    return handshake.authenticate_untrusted(opened, remote_of(RESPONDER, INITIATOR, psk))


def responded(message: Initiation, psk: bytes = PSK, stamp: bytes = b"") -> Response:
    remote = remote_of(RESPONDER, INITIATOR, psk)
    data, _ = handshake.respond(authenticated(message, psk), remote, ANSWERER, EPHEMERAL_RESPONDER, stamp)
    return response_of(data[12:])


def read(sent: SentInitiation, message: Response, psk: bytes = PSK, *, stamped: bool = False) -> bytes:
    remote = remote_of(INITIATOR, RESPONDER, psk)
    return handshake.read_response_untrusted(INITIATOR, remote, sent, message, stamped=stamped)[1]


# --- fixed vectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors_are_what_the_independent_implementation_makes(vector: Vector) -> None:
    assert noise_transcript(vector.psk, vector.response_payload) == vector


@pytest.mark.parametrize("vector", VECTORS)
def test_initiator_reproduces_the_vectors(vector: Vector) -> None:
    data, sent = initiated(vector.psk)
    assert data.hex() == "01000000" + "04030201" + vector.first
    remote = remote_of(INITIATOR, RESPONDER, vector.psk)
    stamped = bool(vector.response_payload)
    message = response_of(bytes.fromhex(vector.second))
    keys, stamp = handshake.read_response_untrusted(INITIATOR, remote, sent, message, stamped=stamped)
    assert stamp == vector.response_payload
    assert ChaCha20Poly1305(keys.send).encrypt(bytes(12), b"a packet", None).hex() == vector.initiator_sends
    assert ChaCha20Poly1305(keys.receive).decrypt(bytes(12), bytes.fromhex(vector.responder_sends), None) == b"a packet"


@pytest.mark.parametrize("vector", VECTORS)
def test_responder_reproduces_the_vectors(vector: Vector) -> None:
    initiation = authenticated(initiation_of(bytes.fromhex(vector.first)), vector.psk)
    assert initiation.timestamp == STAMP
    remote = remote_of(RESPONDER, INITIATOR, vector.psk)
    data, keys = handshake.respond(initiation, remote, ANSWERER, EPHEMERAL_RESPONDER, vector.response_payload)
    assert data.hex() == "02000000" + "d0c0b0a0" + "04030201" + vector.second
    assert ChaCha20Poly1305(keys.send).encrypt(bytes(12), b"a packet", None).hex() == vector.responder_sends
    assert ChaCha20Poly1305(keys.receive).decrypt(bytes(12), bytes.fromhex(vector.initiator_sends), None) == b"a packet"


# --- live, with random keys --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_our_initiator_meets_their_responder(seed: int) -> None:
    rng = random.Random(seed)
    psk = rng.randbytes(32) if seed % 2 else NO_PSK
    ours, theirs, ephemeral, stamp = (rng.randbytes(size) for size in (32, 32, 32, 12))
    _, responder = noise_pair(psk, ours, theirs)
    responder.start_handshake()
    identity = Identity.from_private_bytes(ours)
    remote = Remote.of(identity, Identity.from_private_bytes(theirs).public_key, psk)
    data, sent = handshake.initiate(identity, remote, SENDER, ephemeral, stamp)
    assert responder.read_message(data[8:]) == stamp
    message = response_of(bytes(responder.write_message()))
    keys, _ = handshake.read_response_untrusted(identity, remote, sent, message, stamped=False)
    assert responder.decrypt(ChaCha20Poly1305(keys.send).encrypt(bytes(12), b"out", None)) == b"out"
    assert ChaCha20Poly1305(keys.receive).decrypt(bytes(12), bytes(responder.encrypt(b"in")), None) == b"in"


@pytest.mark.parametrize("seed", range(8))
def test_our_responder_meets_their_initiator(seed: int) -> None:
    rng = random.Random(seed)
    psk = rng.randbytes(32) if seed % 2 else NO_PSK
    theirs, ours, ephemeral, stamp = (rng.randbytes(size) for size in (32, 32, 32, 12))
    initiator, _ = noise_pair(psk, theirs, ours)
    initiator.start_handshake()
    identity = Identity.from_private_bytes(ours)
    opened = handshake.open_initiation_untrusted(identity, initiation_of(bytes(initiator.write_message(stamp))))
    assert opened.public_key == Identity.from_private_bytes(theirs).public_key
    remote = Remote.of(identity, opened.public_key, psk)
    initiation = handshake.authenticate_untrusted(opened, remote)
    assert initiation.timestamp == stamp
    data, keys = handshake.respond(initiation, remote, ANSWERER, ephemeral)
    assert initiator.read_message(data[12:]) == b""
    assert initiator.decrypt(ChaCha20Poly1305(keys.send).encrypt(bytes(12), b"out", None)) == b"out"
    assert ChaCha20Poly1305(keys.receive).decrypt(bytes(12), bytes(initiator.encrypt(b"in")), None) == b"in"


# --- low-order keys ----------------------------------------------------------------------------------------


def forged_initiation(static: bytes) -> Initiation:
    """A well-made initiation that names any static key: nothing up to here needs its private half."""
    forger = Identity(INITIATOR.private_key, static)
    data, _ = handshake.initiate(forger, remote_of(INITIATOR, RESPONDER, NO_PSK), SENDER, EPHEMERAL_INITIATOR, STAMP)
    return initiation_of(data[8:])


@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER.keys())
def test_low_order_ephemeral_in_an_initiation(point: bytes) -> None:
    message = replace(initiation_of(initiated()[0][8:]), ephemeral=point)
    with pytest.raises(BadMessage, match="low_order_key"):
        handshake.open_initiation_untrusted(RESPONDER, message)


@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER.keys())
def test_low_order_ephemeral_when_responding(point: bytes) -> None:
    initiation = authenticated(initiation_of(initiated()[0][8:]))
    forged = replace(initiation, point=noise.point_of(point))
    with pytest.raises(BadMessage, match="low_order_key"):
        handshake.respond(forged, remote_of(RESPONDER, INITIATOR, PSK), ANSWERER, EPHEMERAL_RESPONDER)


@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER.keys())
def test_low_order_ephemeral_in_a_response(point: bytes) -> None:
    data, sent = initiated()
    good = responded(initiation_of(data[8:]))
    with pytest.raises(BadMessage, match="low_order_key"):
        read(sent, replace(good, ephemeral=point))
    read(sent, good)


@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER.keys())
def test_low_order_static(point: bytes) -> None:
    opened = handshake.open_initiation_untrusted(RESPONDER, forged_initiation(point))
    assert opened.public_key == point
    with pytest.raises(BadMessage, match="low_order_key"):
        Remote.of(RESPONDER, point)


# --- everything bad ----------------------------------------------------------------------------------------


def flipped(data: bytes) -> list[bytes]:
    """Every variant of `data` with one bit changed."""
    return [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]


def with_field(message: M, name: str, value: Any) -> M:
    return replace(message, **{name: value})


@pytest.mark.parametrize("name", ["ephemeral", "encrypted_static", "encrypted_timestamp"])
def test_an_initiation_with_a_bit_flipped_is_refused(name: str) -> None:
    good = initiation_of(initiated()[0][8:])
    for bad in flipped(getattr(good, name)):
        with pytest.raises(BadMessage):
            authenticated(with_field(good, name, bad))
    assert authenticated(good).timestamp == STAMP


@pytest.mark.parametrize("stamp", [b"", LATER])
@pytest.mark.parametrize("name", ["ephemeral", "encrypted_payload"])
def test_a_response_with_a_bit_flipped_is_refused_and_the_good_one_still_welcome(name: str, stamp: bytes) -> None:
    data, sent = initiated()
    good = responded(initiation_of(data[8:]), stamp=stamp)
    for bad in flipped(getattr(good, name)):
        with pytest.raises(BadMessage):
            read(sent, with_field(good, name, bad), stamped=bool(stamp))
    assert read(sent, good, stamped=bool(stamp)) == stamp


def test_an_initiation_for_another_is_refused() -> None:
    message = initiation_of(initiated()[0][8:])
    with pytest.raises(BadMessage, match="initiation_not_for_us"):
        handshake.open_initiation_untrusted(INITIATOR, message)


def test_an_initiation_that_names_another_is_not_authentic() -> None:
    third = Identity.from_private_bytes(bytes(range(200, 232)))
    opened = handshake.open_initiation_untrusted(RESPONDER, forged_initiation(third.public_key))
    before = replace(opened, state=opened.state.copy())
    with pytest.raises(BadMessage, match="initiation_not_authentic"):
        handshake.authenticate_untrusted(opened, remote_of(RESPONDER, third, NO_PSK))
    assert opened == before


def test_a_response_to_another_initiation_is_refused() -> None:
    data, sent = initiated()
    other, _ = initiated(stamp=LATER)
    with pytest.raises(BadMessage, match="response_not_authentic"):
        read(sent, responded(initiation_of(other[8:])))
    read(sent, responded(initiation_of(data[8:])))


def test_preshared_key_mismatch_shows_in_the_response() -> None:
    data, sent = initiated(PSK)
    message = responded(initiation_of(data[8:]), NO_PSK)
    with pytest.raises(BadMessage, match="response_not_authentic"):
        read(sent, message, PSK)


@pytest.mark.parametrize(
    ("stamp", "stamped", "reason"),
    [(b"", True, "response_without_timestamp"), (LATER, False, "response_with_timestamp")],
)
def test_the_other_form_of_response_is_refused(stamp: bytes, stamped: bool, reason: str) -> None:
    data, sent = initiated()
    message = responded(initiation_of(data[8:]), stamp=stamp)
    with pytest.raises(BadMessage, match=reason):
        read(sent, message, stamped=stamped)
    assert read(sent, message, stamped=not stamped) == stamp


def test_secrets_hide_from_repr() -> None:
    data, sent = initiated()
    initiation = authenticated(initiation_of(data[8:]))
    remote = remote_of(RESPONDER, INITIATOR, PSK)
    _, keys = handshake.respond(initiation, remote, ANSWERER, EPHEMERAL_RESPONDER)
    secrets = [PSK, remote.static_shared, keys.send, keys.receive, STATIC_RESPONDER, *sent.state.split()]
    shown = "".join(map(repr, (RESPONDER, remote, sent, initiation, keys)))
    assert not any(repr(secret) in shown or secret.hex() in shown for secret in secrets)
