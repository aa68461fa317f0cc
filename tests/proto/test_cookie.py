"""mac1, mac2, cookies, and XChaCha20-Poly1305 below them: what must work, and all that must not."""

import random
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2s

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as nacl_seal

from stagewire.proto import constants as c
from stagewire.proto import cookie, messages
from stagewire.proto.cookie import CookieChecker, MacSealer
from stagewire.proto.messages import BadMessage, CookieReply

OUR_KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
SOURCE = b"\xc0\x00\x02\x01" + (51820).to_bytes(2)
SENDER = 0xA1B2C3D4
T = 1000.0


def seeded(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def initiation(fill: int = 7) -> bytes:
    return messages.pack_initiation(SENDER, bytes([fill]) * 32, bytes([fill]) * 48, bytes([fill]) * 28)


def response() -> bytes:
    return messages.pack_response(SENDER, 99, bytes([5]) * 32, bytes([6]) * 16)


def parse(reply: bytes) -> CookieReply:
    parsed = messages.parse_handshake_untrusted(reply)
    assert isinstance(parsed, CookieReply)
    return parsed


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


class Pair:
    """One who receives handshakes and one who sends them, past the first cookie."""

    def __init__(self, source: bytes = SOURCE) -> None:
        self.checker = CookieChecker(OUR_KEY, seeded(1))
        self.sealer = MacSealer(OUR_KEY)
        first = self.sealer.seal(initiation(), T)
        self.reply = self.checker.cookie_reply(first, source, T)
        self.sealer.accept_cookie_reply(parse(self.reply), T)


# --- XChaCha20-Poly1305 ------------------------------------------------------------------------------------


def test_hchacha20_vector() -> None:
    """draft-irtf-cfrg-xchacha-03, section 2.2.1."""
    subkey = cookie._hchacha20(bytes(range(32)), bytes.fromhex("000000090000004a0000000031415927"))
    assert subkey.hex() == "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"


AEAD_KEY = bytes(range(0x80, 0xA0))
AEAD_NONCE = bytes(range(0x40, 0x58))
AEAD_DATA = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
AEAD_PLAINTEXT = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)
AEAD_CIPHERTEXT = bytes.fromhex(
    "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
    "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
    "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
    "21f9664c97637da9768812f615c68b13b52e"
    "c0875924c1c7987947deafd8780acf49"
)


def test_aead_vector() -> None:
    """draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
    assert cookie.xchacha20poly1305_seal(AEAD_KEY, AEAD_NONCE, AEAD_PLAINTEXT, AEAD_DATA) == AEAD_CIPHERTEXT
    assert cookie.xchacha20poly1305_open(AEAD_KEY, AEAD_NONCE, AEAD_CIPHERTEXT, AEAD_DATA) == AEAD_PLAINTEXT


@pytest.mark.parametrize("at", range(len(AEAD_CIPHERTEXT)))
def test_a_changed_ciphertext_does_not_open(at: int) -> None:
    with pytest.raises(InvalidTag):
        cookie.xchacha20poly1305_open(AEAD_KEY, AEAD_NONCE, flipped(AEAD_CIPHERTEXT, at), AEAD_DATA)


def test_another_key_nonce_or_associated_data_does_not_open() -> None:
    wrong = [(flipped(AEAD_KEY, at), AEAD_NONCE, AEAD_DATA) for at in range(32)]
    wrong += [(AEAD_KEY, flipped(AEAD_NONCE, at), AEAD_DATA) for at in range(24)]
    wrong += [(AEAD_KEY, AEAD_NONCE, flipped(AEAD_DATA, at)) for at in range(12)]
    for key, nonce, data in wrong:
        with pytest.raises(InvalidTag):
            cookie.xchacha20poly1305_open(key, nonce, AEAD_CIPHERTEXT, data)
    for short in (b"", AEAD_CIPHERTEXT[:15], AEAD_CIPHERTEXT[:-1]):
        with pytest.raises(InvalidTag):
            cookie.xchacha20poly1305_open(AEAD_KEY, AEAD_NONCE, short, AEAD_DATA)


@pytest.mark.parametrize(("key", "nonce"), [(31, 24), (33, 24), (0, 24), (32, 0), (32, 12), (32, 23), (32, 25)])
def test_wrong_lengths(key: int, nonce: int) -> None:
    with pytest.raises(ValueError, match=r"nonce|key"):
        cookie.xchacha20poly1305_seal(bytes(key), bytes(nonce), b"", b"")
    with pytest.raises(ValueError, match=r"nonce|key"):
        cookie.xchacha20poly1305_open(bytes(key), bytes(nonce), bytes(32), b"")


@settings(max_examples=200)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=24, max_size=24),
    st.binary(max_size=300),
    st.binary(max_size=80),
)
def test_against_libsodium(key: bytes, nonce: bytes, plaintext: bytes, data: bytes) -> None:
    sealed = cookie.xchacha20poly1305_seal(key, nonce, plaintext, data)
    assert sealed == nacl_seal(plaintext, data, nonce, key)
    assert cookie.xchacha20poly1305_open(key, nonce, sealed, data) == plaintext


# --- keys and mac1 -----------------------------------------------------------------------------------------


def test_keys() -> None:
    assert cookie.mac1_key(OUR_KEY) == blake2s(b"mac1----" + OUR_KEY).digest()
    assert cookie.cookie_key(OUR_KEY) == blake2s(b"cookie--" + OUR_KEY).digest()
    key = cookie.mac1_key(OUR_KEY)
    assert cookie.mac1(key, b"abc") == blake2s(b"abc", key=key, digest_size=16).digest()


@pytest.mark.parametrize("message", [initiation(), response()], ids=["initiation", "response"])
def test_mac1(message: bytes) -> None:
    checker = CookieChecker(OUR_KEY, seeded(1))
    sealed = MacSealer(OUR_KEY).seal(message, T)
    assert sealed[:-32] == message
    assert sealed[-16:] == bytes(16)
    assert checker.mac1_valid(sealed)
    assert checker.mac1_valid(sealed[:-16] + b"\xff" * 16)  # mac2 is none of its concern
    for at in range(len(sealed) - 16):
        assert not checker.mac1_valid(flipped(sealed, at, at % 8)), at
    assert not checker.mac1_valid(sealed[:-32] + bytes(32))
    assert not CookieChecker(OTHER_KEY, seeded(1)).mac1_valid(sealed)


def test_too_short_for_macs() -> None:
    pair = Pair()
    for length in range(40):
        assert not pair.checker.mac1_valid(bytes(length))
        assert not pair.checker.mac2_valid(bytes(length), SOURCE, T)


# --- mac2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [SOURCE, bytes(range(16)) + b"\xca\x6c"], ids=["IPv4", "IPv6"])
def test_with_a_cookie_mac2_is_valid(source: bytes) -> None:
    pair = Pair(source)
    for message in (initiation(), response(), initiation(8)):
        sealed = pair.sealer.seal(message, T + 1)
        assert pair.checker.mac1_valid(sealed)
        assert pair.checker.mac2_valid(sealed, source, T + 1)


def test_the_cookie_is_what_the_paper_says() -> None:
    """Cookie and mac2 computed by hand from the secret, which is the first thing drawn."""
    pair = Pair()
    made = blake2s(SOURCE, key=seeded(1)(32), digest_size=16).digest()
    sealed = pair.sealer.seal(initiation(), T)
    assert sealed[-16:] == blake2s(sealed[:-16], key=made, digest_size=16).digest()


def test_mac2_of_zeros() -> None:
    pair = Pair()
    sealed = pair.sealer.seal(initiation(), T)
    assert not pair.checker.mac2_valid(sealed[:-16] + bytes(16), SOURCE, T)
    assert not CookieChecker(OUR_KEY, seeded(1)).mac2_valid(sealed, SOURCE, T)  # it has no secret yet


def test_mac2_without_any_secret_cannot_be_computed() -> None:
    """A checker without a secret must not accept what an empty secret would make."""
    checker = CookieChecker(OUR_KEY, seeded(1))
    sealed = MacSealer(OUR_KEY).seal(initiation(), T)
    for key in (b"", bytes(32)):
        guess = blake2s(SOURCE, key=key, digest_size=16).digest()
        forged = sealed[:-16] + blake2s(sealed[:-16], key=guess, digest_size=16).digest()
        for now in (0.0, 5.0, T):  # also just after boot
            assert not checker.mac2_valid(forged, SOURCE, now)


def test_mac2_of_another_place() -> None:
    pair = Pair()
    sealed = pair.sealer.seal(initiation(), T)
    assert pair.checker.mac2_valid(sealed, SOURCE, T)
    for at in range(len(SOURCE)):
        assert not pair.checker.mac2_valid(sealed, flipped(SOURCE, at), T)
    other_port = SOURCE[:4] + (51821).to_bytes(2)
    assert not pair.checker.mac2_valid(sealed, other_port, T)
    assert not pair.checker.mac2_valid(sealed, bytes(10) + b"\xff\xff" + SOURCE, T)


def test_mac2_of_another_message() -> None:
    pair = Pair()
    one, two = pair.sealer.seal(initiation(1), T), pair.sealer.seal(initiation(2), T)
    assert not pair.checker.mac2_valid(one[:-16] + two[-16:], SOURCE, T)
    for at in range(len(one)):
        assert not pair.checker.mac2_valid(flipped(one, at, at % 8), SOURCE, T), at


def test_mac2_ends_with_its_secret() -> None:
    pair = Pair()
    sealed = pair.sealer.seal(initiation(), T)
    assert pair.checker.mac2_valid(sealed, SOURCE, T + 119.99)
    assert not pair.checker.mac2_valid(sealed, SOURCE, T + 120.0)
    assert not pair.checker.mac2_valid(sealed, SOURCE, T + 500.0)


def test_mac2_of_the_previous_secret() -> None:
    pair = Pair()
    sealed = pair.sealer.seal(initiation(), T)
    pair.checker.cookie_reply(MacSealer(OUR_KEY).seal(response(), T), b"elsewhere", T + 119.0)
    assert pair.checker.mac2_valid(sealed, SOURCE, T + 119.0)  # still the same secret
    assert pair.checker.mac2_valid(sealed, SOURCE, T + 119.99)
    assert not pair.checker.mac2_valid(sealed, SOURCE, T + 120.0)
    assert not pair.checker.mac2_valid(sealed, SOURCE, T + 121.0)


@pytest.mark.parametrize("pause", [c.REKEY_TIMEOUT, c.REKEY_TIMEOUT + c.REKEY_TIMEOUT_JITTER_MAX])
@pytest.mark.parametrize("given_at", [*range(0, 251, 25), *range(107, 122), 119.99, 239.99])
def test_any_cookie_serves_the_next_try_and_the_one_after(given_at: float, pause: float) -> None:
    """A peer once had to come a third time, if its cookie's secret ended between its first two tries."""
    checker, sealer, others = (
        CookieChecker(OUR_KEY, seeded(1)),
        MacSealer(OUR_KEY),
        MacSealer(OUR_KEY).seal(response(), T),
    )
    for ago in range(0, int(given_at) + 1, 10):
        checker.cookie_reply(others, b"elsewhere", T + ago)
    now = T + given_at
    sealer.accept_cookie_reply(parse(checker.cookie_reply(sealer.seal(initiation(), now), SOURCE, now)), now)
    for tries in (1, 2):
        now += pause
        checker.cookie_reply(others, b"elsewhere", now)
        assert checker.mac2_valid(sealer.seal(initiation(tries), now), SOURCE, now)


# --- the cookie reply --------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [initiation(), response()], ids=["initiation", "response"])
def test_cookie_reply(message: bytes) -> None:
    checker = CookieChecker(OUR_KEY, seeded(2))
    sealed = MacSealer(OUR_KEY).seal(message, T)
    replies = [checker.cookie_reply(sealed, SOURCE, T) for _ in range(50)]
    assert {len(reply) for reply in replies} == {64}
    assert {parse(reply).receiver for reply in replies} == {SENDER}
    assert len({parse(reply).nonce for reply in replies}) == 50
    key = cookie.cookie_key(OUR_KEY)
    cookies = {
        cookie.xchacha20poly1305_open(key, reply.nonce, reply.encrypted_cookie, sealed[-32:-16])
        for reply in map(parse, replies)
    }
    assert len(cookies) == 1
    assert {len(made) for made in cookies} == {16}


class Waiting:
    """A sender that has sent one message, and the reply to it."""

    def __init__(self) -> None:
        self.checker = CookieChecker(OUR_KEY, seeded(3))
        self.sealer = MacSealer(OUR_KEY)
        self.sent = self.sealer.seal(initiation(), T)
        self.reply = parse(self.checker.cookie_reply(self.sent, SOURCE, T))

    def refuses(self, reply: CookieReply) -> None:
        with pytest.raises(BadMessage) as caught:
            self.sealer.accept_cookie_reply(reply, T)
        assert caught.value.reason == "bad_cookie_reply"

    def has_no_cookie(self) -> bool:
        return self.sealer.seal(initiation(), T)[-16:] == bytes(16)


def test_a_reply_with_another_nonce() -> None:
    waiting = Waiting()
    for at in range(24):
        waiting.refuses(replace(waiting.reply, nonce=flipped(waiting.reply.nonce, at)))
    assert waiting.has_no_cookie()


def test_a_reply_with_another_cookie() -> None:
    waiting = Waiting()
    for at in range(32):
        waiting.refuses(replace(waiting.reply, encrypted_cookie=flipped(waiting.reply.encrypted_cookie, at)))
    assert waiting.has_no_cookie()


def test_a_reply_under_another_key() -> None:
    waiting = Waiting()
    waiting.refuses(parse(CookieChecker(OTHER_KEY, seeded(3)).cookie_reply(waiting.sent, SOURCE, T)))
    assert waiting.has_no_cookie()


def test_a_reply_to_an_older_message() -> None:
    waiting = Waiting()
    waiting.sealer.seal(initiation(9), T)
    waiting.refuses(waiting.reply)
    assert waiting.has_no_cookie()


def test_a_reply_nobody_asked_for() -> None:
    waiting = Waiting()
    waiting.sealer = MacSealer(OUR_KEY)
    waiting.refuses(waiting.reply)
    assert waiting.has_no_cookie()


def test_a_reply_again() -> None:
    waiting = Waiting()
    waiting.sealer.accept_cookie_reply(waiting.reply, T)
    waiting.refuses(waiting.reply)
    another = parse(waiting.checker.cookie_reply(waiting.sent, SOURCE, T))
    waiting.refuses(another)
    assert not waiting.has_no_cookie()


def test_forged_replies_do_not_use_up_the_one_that_is_awaited() -> None:
    waiting = Waiting()
    for at in range(24):
        waiting.refuses(replace(waiting.reply, nonce=flipped(waiting.reply.nonce, at)))
    waiting.sealer.accept_cookie_reply(waiting.reply, T)
    assert waiting.checker.mac2_valid(waiting.sealer.seal(initiation(), T), SOURCE, T)


def test_each_message_may_get_a_cookie() -> None:
    pair = Pair()
    sealed = pair.sealer.seal(initiation(), T + 200)
    elsewhere = b"\x01\x02\x03\x04\x05\x06"
    pair.sealer.accept_cookie_reply(parse(pair.checker.cookie_reply(sealed, elsewhere, T + 200)), T + 200)
    assert pair.checker.mac2_valid(pair.sealer.seal(initiation(), T + 201), elsewhere, T + 201)


def test_the_sender_uses_a_cookie_for_115_seconds() -> None:
    pair = Pair()
    assert pair.sealer.seal(initiation(), T + 114.99)[-16:] != bytes(16)
    assert pair.sealer.seal(initiation(), T + 115.0)[-16:] == bytes(16)
    assert pair.sealer.seal(initiation(), T + 1e6)[-16:] == bytes(16)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.binary(min_size=24, max_size=24), st.binary(min_size=32, max_size=32))
def test_no_reply_raises_anything_else(receiver: int, nonce: bytes, encrypted: bytes) -> None:
    Waiting().refuses(CookieReply(receiver, nonce, encrypted))
