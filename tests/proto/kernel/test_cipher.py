"""A compiled session's half: the same bytes as another implementation, the plain replay window's judgement, no key left.

With each library that this machine has.
"""

from collections.abc import Iterator

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt

from stagewire.proto.constants import REJECT_AFTER_MESSAGES
from stagewire.proto.replay import ReplayWindow

cipher = pytest.importorskip("stagewire.proto.kernel.cipher")
KEY = bytes(range(32))


@pytest.fixture(params=["OpenSSL", "libgcrypt"], autouse=True, scope="module")
def _library(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param not in cipher.LIBRARIES:
        pytest.skip(f"this machine has no {request.param}")
    standing = cipher.library()
    cipher.use(request.param)
    assert cipher.library() == request.param
    yield
    cipher.use(standing)


def nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


@given(st.binary(max_size=3000), st.integers(0, 2**64 - 1))
def test_it_seals_as_others_do_and_opens_what_they_seal(packet: bytes, counter: int) -> None:
    sealed = cipher.Cipher(KEY, encrypts=True).encrypt(nonce(counter), packet, None)
    assert sealed == ChaCha20Poly1305(KEY).encrypt(nonce(counter), packet, None)
    assert sealed == crypto_aead_chacha20poly1305_ietf_encrypt(packet, None, nonce(counter), KEY)
    assert cipher.Cipher(KEY, encrypts=False).decrypt(nonce(counter), sealed, None) == packet


@pytest.mark.parametrize(
    "length", [0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513, 1023, 1024, 1424, 65475]
)
def test_each_length_at_which_a_cipher_changes_its_way(length: int) -> None:
    packet = bytes(at * 7 & 0xFF for at in range(length))
    sender, receiver = cipher.Cipher(KEY, encrypts=True), cipher.Cipher(KEY, encrypts=False)
    for counter in (0, 1, 2**32, 2**64 - 1):
        sealed = sender.encrypt(nonce(counter), packet, None)
        assert sealed == ChaCha20Poly1305(KEY).encrypt(nonce(counter), packet, None)
        forged = bytearray(sealed)
        forged[len(sealed) // 2] ^= 1
        with pytest.raises(InvalidTag):
            receiver.decrypt(nonce(counter), bytes(forged), None)
        assert receiver.decrypt(nonce(counter), sealed, None) == packet, "also after a forged one"


def test_a_key_stays_with_the_library_that_it_began_with() -> None:
    standing = cipher.library()
    sender = cipher.Cipher(KEY, encrypts=True)
    for name in cipher.LIBRARIES:
        cipher.use(name)
        sealed = sender.encrypt(nonce(5), b"packet", None)
        assert cipher.Cipher(KEY, encrypts=False).decrypt(nonce(5), sealed, None) == b"packet"
    cipher.use(standing)


def test_the_quickest_library_is_one_of_them_and_is_not_yet_used() -> None:
    standing = cipher.library()
    assert cipher.quickest() in cipher.LIBRARIES
    assert cipher.library() == standing
    with pytest.raises(ValueError, match="another"):
        cipher.use("another")


@given(st.binary(min_size=16, max_size=100), st.integers(0, 10**6), st.integers(0, 7))
def test_one_changed_bit_and_it_opens_nothing(packet: bytes, at: int, bit: int) -> None:
    one = cipher.Cipher(KEY, encrypts=False)
    sealed = bytearray(ChaCha20Poly1305(KEY).encrypt(nonce(1), packet, None))
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(InvalidTag):
        one.decrypt(nonce(1), bytes(sealed), None)
    with pytest.raises(InvalidTag):
        one.decrypt(nonce(1), bytes(sealed[:15]), None)


def test_a_key_does_one_thing_and_nothing_after_it_was_forgotten() -> None:
    sender, receiver = cipher.Cipher(KEY, encrypts=True), cipher.Cipher(KEY, encrypts=False)
    sealed = sender.encrypt(nonce(0), b"packet", None)
    with pytest.raises(RuntimeError):
        receiver.encrypt(nonce(0), b"packet", None)
    with pytest.raises(InvalidTag):
        sender.decrypt(nonce(0), sealed, None)
    for each in (sender, receiver):
        each.forget()
        each.forget()
    with pytest.raises(RuntimeError):
        sender.encrypt(nonce(1), b"packet", None)
    with pytest.raises(InvalidTag):
        receiver.decrypt(nonce(0), sealed, None)


@pytest.mark.parametrize("bad", [b"", bytes(11), bytes(13), b"\1" + bytes(11)])
def test_a_nonce_is_a_counters(bad: bytes) -> None:
    for act in (cipher.Cipher(KEY, encrypts=True).encrypt, cipher.Cipher(KEY, encrypts=False).decrypt):
        with pytest.raises(ValueError, match="counter"):
            act(bad, bytes(40), None)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_has_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="32"):
        cipher.Cipher(bytes(length), encrypts=True)


NEAR = st.integers(0, 300)
COUNTERS = st.one_of(
    NEAR, st.integers(8000, 8400), st.integers(2**40, 2**40 + 20000), NEAR.map(lambda at: REJECT_AFTER_MESSAGES - 150 + at),
    st.integers(0, 2**64 - 1),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(COUNTERS | st.tuples(COUNTERS, st.integers(1, 300)), max_size=60))
def test_the_window_judges_as_the_plain_one(counters: list[int | tuple[int, int]]) -> None:
    """Also in stretches, across the places where a block begins."""
    plain, compiled = ReplayWindow(), cipher.Window()
    for each in counters:
        first, count = each if isinstance(each, tuple) else (each, 1)
        for counter in range(first, min(first + count, 2**64)):
            assert compiled.accept(counter) == plain.accept(counter), counter
