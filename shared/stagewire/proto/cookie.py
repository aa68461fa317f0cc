"""Makes and checks mac1, mac2 and cookies: a handshake message earns its answer's work (paper, section 5.4.7).

mac1 shows that the sender knows our public key. Under load, a message must also carry mac2, keyed with a cookie that we
sent to its source address. A cookie is encrypted: only the sender of the answered message can read it, and only at that
address. The receiver of handshakes stores nothing for this but one secret.
"""

import struct
from collections.abc import Callable
from hashlib import blake2s
from hmac import compare_digest
from typing import Final, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from stagewire.proto import constants as c
from stagewire.proto import messages

_WORDS = struct.Struct("<4I")
_CHACHA_CONSTANTS: Final = _WORDS.unpack(b"expand 32-byte k")
_NO_MAC: Final = bytes(c.MAC_LENGTH)
_SECRET_LENGTH: Final = 32


def _minus(words: bytes, initial: tuple[int, ...]) -> bytes:
    return _WORDS.pack(*((a - b) & 0xFFFFFFFF for a, b in zip(_WORDS.unpack(words), initial, strict=True)))


def _hchacha20(key: bytes, nonce: bytes) -> bytes:
    """Computes HChaCha20 of a 32-byte key and a 16-byte nonce (draft-irtf-cfrg-xchacha-03, section 2.2): 32 bytes."""
    # `cryptography` has no XChaCha20, and a cipher of our own would be neither reviewed nor constant-time. A
    # ChaCha20 keystream block is rounds(state) + state, word by word modulo 2**32. HChaCha20 is words 0-3 and
    # 12-15 of rounds(state). There the state is public: the constants, and the nonce in the place of ChaCha20's
    # counter and nonce. So HChaCha20 is one block of the library's keystream minus those words.
    block = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    return _minus(block[:16], _CHACHA_CONSTANTS) + _minus(block[48:], _WORDS.unpack(nonce))


def _xchacha20poly1305(key: bytes, nonce24: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    if len(nonce24) != c.COOKIE_NONCE_LENGTH:
        raise ValueError(f"a nonce has {c.COOKIE_NONCE_LENGTH} bytes, not {len(nonce24)}")
    return ChaCha20Poly1305(_hchacha20(key, nonce24[:16])), bytes(4) + nonce24[16:]


def xchacha20poly1305_seal(key: bytes, nonce24: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
    """Encrypts by AEAD_XChaCha20_Poly1305 (draft-irtf-cfrg-xchacha-03, section 2.3); appends the 16-byte tag.

    The key has 32 bytes, the nonce 24. No nonce may serve twice under a key; 24 random bytes never do. Raises
    ValueError for other lengths.
    """
    aead, nonce = _xchacha20poly1305(key, nonce24)
    return aead.encrypt(nonce, plaintext, associated_data)


def xchacha20poly1305_open(key: bytes, nonce24: bytes, ciphertext: bytes, associated_data: bytes) -> bytes:
    """Decrypts a ciphertext of `xchacha20poly1305_seal`.

    Raises cryptography.exceptions.InvalidTag when it isn't authentic, ValueError for a wrong length of key or nonce.
    """
    aead, nonce = _xchacha20poly1305(key, nonce24)
    return aead.decrypt(nonce, ciphertext, associated_data)


def mac1_key(public_key: bytes) -> bytes:
    """Returns the mac1 key (32 bytes) of messages to the holder of `public_key`."""
    return blake2s(c.LABEL_MAC1 + public_key).digest()


def cookie_key(public_key: bytes) -> bytes:
    """Returns the key (32 bytes) of cookies from the holder of `public_key`."""
    return blake2s(c.LABEL_COOKIE + public_key).digest()


def mac1(key: bytes, message_before_mac1: bytes) -> bytes:
    """Computes mac1 (16 bytes) of a message from all bytes before it. `key` comes from `mac1_key`."""
    return _mac(key, message_before_mac1)


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, digest_size=c.MAC_LENGTH, key=key).digest()


class Mac:
    """Computes macs under one key. `kernel.macs` has a compiled one."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        """Takes a key of 1 to 32 bytes."""
        self._key = key

    def of(self, data: bytes) -> bytes:
        """Computes the mac (16 bytes) of all of `data`. hot"""
        return _mac(self._key, data)

    def fits(self, message: bytes, end: int) -> bool:
        """Tells whether the 16 bytes at `end` are the mac of those before. There must be as many. hot"""
        return compare_digest(_mac(self._key, message[:end]), message[end : end + c.MAC_LENGTH])


class Cookies:
    """Makes cookies under one secret, and seals them in replies. `kernel.macs` has compiled ones."""

    __slots__ = ("_aead", "_count", "_secret", "_start")

    def __init__(self, secret: bytes, key: bytes, start: bytes) -> None:
        """Takes a secret and a key of 32 bytes, and the 16 bytes of all nonces' start."""
        self._secret = secret
        self._aead = ChaCha20Poly1305(key)
        self._start, self._count = start, 0

    def of(self, source: bytes) -> bytes:
        """Returns the cookie (16 bytes) of a source."""
        return _mac(self._secret, source)

    def reply(self, message: bytes, source: bytes) -> bytes:
        """Seals the cookie of `source` in a reply (64 bytes) to a handshake message. hot"""
        # Safe under the one key: the count never repeats, and another start of nonces comes with another object.
        count = self._count.to_bytes(8, "little")
        self._count += 1
        sealed = self._aead.encrypt(bytes(4) + count, self.of(source), message[-32:-16])
        return messages.pack_cookie_reply(int.from_bytes(message[4:8], "little"), self._start + count, sealed)


class Macs(Protocol):
    """Has what computes macs and cookies: `PLAIN`, or the module `kernel.macs`."""

    @property
    def Mac(self) -> type[Mac]: ...  # noqa: N802

    @property
    def Cookies(self) -> type[Cookies]: ...  # noqa: N802


class _Plain(NamedTuple):
    Mac: type[Mac] = Mac
    Cookies: type[Cookies] = Cookies


PLAIN: Final = _Plain()


class CookieChecker:
    """Checks macs and makes cookie replies, with no key of ours but the public one, so it can stand at the gate.

    A `message` is a handshake message of full length, whose last 32 bytes are mac1 and mac2. A `source` is the sender's
    packed address and its port, two bytes big endian. `random_bytes` returns that many random bytes.
    """

    def __init__(self, public_key: bytes, random_bytes: Callable[[int], bytes], macs: Macs = PLAIN) -> None:
        self._macs = macs
        self._mac1 = macs.Mac(mac1_key(public_key))
        self._cookie_key = cookie_key(public_key)
        self._random_bytes = random_bytes
        self._secrets: list[tuple[float, Cookies]] = []
        """What makes cookies, and when each secret was made, the newest first: two while one takes over from the other."""

    def mac1_valid(self, message: bytes) -> bool:
        """Tells whether the sender knows our public key. False also for a message too short for macs. hot"""
        return len(message) >= 2 * c.MAC_LENGTH and self._mac1.fits(message, len(message) - 2 * c.MAC_LENGTH)

    def mac2_valid(self, message: bytes, source: bytes, now: float) -> bool:
        """Tells whether the sender has a cookie that we gave to `source`.

        False before the first cookie reply, and when the secret is COOKIE_SECRET_MAX_AGE old: cookies end with their
        secret.
        """
        if len(message) < 2 * c.MAC_LENGTH:
            return False
        head, mac2 = message[:-16], message[-16:]
        return any(
            compare_digest(_mac(cookies.of(source), head), mac2)
            for made, cookies in self._secrets
            if now - made < c.COOKIE_SECRET_MAX_AGE
        )

    def cookie_reply(self, message: bytes, source: bytes, now: float) -> bytes:
        """Makes the cookie reply (64 bytes) to a message whose mac1 is valid. hot"""
        if not self._secrets or now - self._secrets[0][0] >= c.COOKIE_SECRET_GIVEN_AGE:
            self._renew(now)
        return self._secrets[0][1].reply(message, source)

    def _renew(self, now: float) -> None:
        """Draws a secret. Also computes once what the first 16 bytes of a nonce decide, the costliest part of a reply."""
        secret, start = self._random_bytes(_SECRET_LENGTH), self._random_bytes(16)
        cookies = self._macs.Cookies(secret, _hchacha20(self._cookie_key, start), start)
        self._secrets = [(now, cookies), *self._secrets[:1]]


class MacSealer:
    """Completes our handshake messages to one peer, and keeps the peer's cookie."""

    def __init__(self, remote_public_key: bytes) -> None:
        self._mac1_key = mac1_key(remote_public_key)
        self._cookie_key = cookie_key(remote_public_key)
        self._outstanding_mac1: bytes | None = None
        self._cookie: bytes | None = None
        self._cookie_received = 0.0

    def seal(self, message: bytes, now: float) -> bytes:
        """Appends mac1 and mac2 to `message`; mac2 is zeros without a fresh cookie."""
        first = mac1(self._mac1_key, message)
        self._outstanding_mac1 = first
        message += first
        if self._cookie is None or now - self._cookie_received >= c.COOKIE_USE_AGE:
            return message + _NO_MAC
        return message + _mac(self._cookie, message)

    def accept_cookie_reply(self, reply: messages.CookieReply, now: float) -> None:
        """Takes the cookie out of the reply to the message sealed last, once.

        Raises BadMessage('bad_cookie_reply'), and nothing else, when no message waits for a reply or the reply isn't
        authentic.
        """
        if self._outstanding_mac1 is None:
            raise messages.BadMessage("bad_cookie_reply")
        try:
            cookie = xchacha20poly1305_open(
                self._cookie_key, reply.nonce, reply.encrypted_cookie, self._outstanding_mac1
            )
        except InvalidTag:
            # The message still waits: a forger must not use up its one reply.
            raise messages.BadMessage("bad_cookie_reply") from None
        self._outstanding_mac1 = None
        self._cookie = cookie
        self._cookie_received = now
