"""The handshake messages: there and back, and nothing but BadMessage for all else."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto import constants as c
from stagewire.proto import messages
from stagewire.proto.messages import BadMessage, CookieReply, Initiation, Response, parse_handshake_untrusted

U32 = st.integers(0, 2**32 - 1)
LENGTHS = {1: {148}, 2: {92, 104}, 3: {64}}


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def of_kind(kind: int, length: int) -> bytes:
    return (struct.pack("<I", kind) + bytes(max(0, length - 4)))[:length]


def reason(data: bytes) -> str:
    with pytest.raises(BadMessage) as caught:
        parse_handshake_untrusted(data)
    return caught.value.reason


@given(U32, exactly(32), exactly(48), exactly(28), exactly(16), exactly(16))
def test_initiation(sender: int, e: bytes, s: bytes, t: bytes, mac1: bytes, mac2: bytes) -> None:
    packed = messages.pack_initiation(sender, e, s, t) + mac1 + mac2
    assert len(packed) == c.INITIATION_LENGTH
    assert parse_handshake_untrusted(packed) == Initiation(sender, e, s, t, mac1, mac2)


@given(U32, U32, exactly(32), exactly(16) | exactly(28), exactly(16), exactly(16))
def test_response(sender: int, receiver: int, e: bytes, payload: bytes, mac1: bytes, mac2: bytes) -> None:
    packed = messages.pack_response(sender, receiver, e, payload) + mac1 + mac2
    assert len(packed) == (c.RESPONSE_LENGTH if len(payload) == 16 else c.STAMPED_RESPONSE_LENGTH)
    assert parse_handshake_untrusted(packed) == Response(sender, receiver, e, payload, mac1, mac2)


@given(U32, exactly(24), exactly(32))
def test_cookie_reply(receiver: int, nonce: bytes, encrypted: bytes) -> None:
    packed = messages.pack_cookie_reply(receiver, nonce, encrypted)
    assert len(packed) == c.COOKIE_REPLY_LENGTH
    assert parse_handshake_untrusted(packed) == CookieReply(receiver, nonce, encrypted)


def test_bytes_on_the_wire() -> None:
    start = messages.pack_initiation(0x04030201, b"e" * 32, b"s" * 48, b"t" * 28)
    assert start == bytes([1, 0, 0, 0, 1, 2, 3, 4]) + b"e" * 32 + b"s" * 48 + b"t" * 28
    answer = messages.pack_response(0x04030201, 0x08070605, b"e" * 32, b"n" * 16)
    assert answer == bytes([2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]) + b"e" * 32 + b"n" * 16
    reply = messages.pack_cookie_reply(0x04030201, b"n" * 24, b"c" * 32)
    assert reply == bytes([3, 0, 0, 0, 1, 2, 3, 4]) + b"n" * 24 + b"c" * 32


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_every_length(kind: int) -> None:
    for length in range(401):
        data = of_kind(kind, length)
        if length in LENGTHS[kind]:
            assert parse_handshake_untrusted(data)
        else:
            assert reason(data) == ("too_short" if length < 4 else "bad_length"), length


@pytest.mark.parametrize("kind", [0, 4, 5, 255, 2**32 - 1])
def test_other_types(kind: int) -> None:
    for length in range(4, 401):
        assert reason(of_kind(kind, length)) == "bad_type"


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_reserved_bytes_are_zero(kind: int, at: int) -> None:
    for length in LENGTHS[kind]:
        for value in (1, 0x80, 0xFF):
            data = bytearray(of_kind(kind, length))
            data[at] = value
            assert reason(bytes(data)) == "bad_type"


@given(st.binary(max_size=200) | st.builds(of_kind, st.integers(0, 5), st.integers(0, 400)))
def test_nothing_but_bad_message_is_raised(data: bytes) -> None:
    outcome: object
    try:
        outcome = type(parse_handshake_untrusted(data))
    except BadMessage as bad:
        outcome = bad.reason
    assert outcome in {Initiation, Response, CookieReply, "too_short", "bad_length", "bad_type"}
