"""The compiled macs: what `proto.cookie.Mac` computes, byte for byte."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto import cookie, messages
from stagewire.proto.cookie import CookieChecker, MacSealer

macs = pytest.importorskip("stagewire.proto.kernel.macs")
OURS = bytes(range(32))
KEYS = st.binary(min_size=1, max_size=32)


@given(KEYS, st.lists(st.binary(max_size=300), max_size=5))
def test_each_mac_has_the_same_bytes(key: bytes, texts: list[bytes]) -> None:
    plain, built = cookie.Mac(key), macs.Mac(key)
    for data in texts:
        assert built.of(data) == plain.of(data)


@given(KEYS, st.binary(max_size=200), st.binary(max_size=20), st.integers(0, 10**6), st.integers(0, 7))
def test_a_mac_fits_its_bytes_alone(key: bytes, data: bytes, behind: bytes, at: int, bit: int) -> None:
    plain, built = cookie.Mac(key), macs.Mac(key)
    whole = data + plain.of(data) + behind
    forged = bytearray(whole)
    forged[at % len(whole)] ^= 1 << bit
    for message in (whole, bytes(forged)):
        assert built.fits(message, len(data)) == plain.fits(message, len(data))
    assert built.fits(whole, len(data))
    assert built.fits(bytes(forged), len(data)) == (at % len(whole) >= len(data) + 16)


@given(st.lists(st.tuples(st.binary(min_size=148, max_size=148), st.binary(min_size=6, max_size=18)), max_size=4))
def test_a_checker_gives_the_same_cookies(senders: list[tuple[bytes, bytes]]) -> None:
    checkers = [CookieChecker(OURS, random.Random(1).randbytes, kind) for kind in (cookie.PLAIN, macs)]
    for number, (message, source) in enumerate(senders):
        sealer, now = MacSealer(OURS), 1000.0 + 50 * number
        sealed = sealer.seal(message[:116], now)
        replies = [checker.cookie_reply(sealed, source, now) for checker in checkers]
        assert replies[0] == replies[1]
        reply = messages.parse_handshake_untrusted(replies[0])
        assert isinstance(reply, messages.CookieReply)
        sealer.accept_cookie_reply(reply, now)
        proven = sealer.seal(message[:116], now)
        for each in (message, sealed, proven):
            first, second = (
                (checker.mac1_valid(each), checker.mac2_valid(each, source, now), checker.mac2_valid(each, source, 1e6))
                for checker in checkers
            )
            assert first == second
        assert first == (True, True, False)


@pytest.mark.parametrize("key", [b"", bytes(33)])
def test_a_key_has_1_to_32_bytes(key: bytes) -> None:
    with pytest.raises(ValueError, match="32"):
        macs.Mac(key)


@pytest.mark.parametrize(("length", "end"), [(15, 0), (16, 1), (100, 85), (100, -1)])
def test_a_message_without_a_mac_is_not_read(length: int, end: int) -> None:
    with pytest.raises(ValueError, match="mac"):
        macs.Mac(OURS).fits(bytes(length), end)


def test_nothing_but_bytes_is_taken() -> None:
    for act in (macs.Mac(OURS).of, lambda data: macs.Mac(OURS).fits(data, 0)):
        for wrong in (None, bytearray(40), "text"):
            with pytest.raises(TypeError):
                act(wrong)
