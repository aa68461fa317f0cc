"""Computes the symmetric half of the handshake: hash, HMAC, HKDF and the running (chaining key, hash) pair.

WireGuard paper, section 5.4, and the Noise Protocol Framework, revision 34, section 5.2. HASH is BLAKE2s-256, HMAC is
HMAC-BLAKE2s (not keyed BLAKE2s), KDFn is HKDF over HMAC without info. The cipher is ChaCha20-Poly1305 (RFC 8439) under
nonce 0, with the running hash as associated data.
"""

from dataclasses import dataclass, field
from hashlib import blake2s
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from stagewire.proto import constants as c
from stagewire.proto.messages import BadMessage

_ZERO_NONCE: Final = bytes(12)


_BLOCK: Final = 64
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))
"""Tables for `bytes.translate`: HMAC's XOR of each byte of a block-long key."""


def hash_(*parts: bytes) -> bytes:
    """Hashes the parts, one after another, by BLAKE2s-256."""
    return blake2s(b"".join(parts)).digest()


def hmac_(key: bytes, data: bytes) -> bytes:
    """Computes HMAC-BLAKE2s (RFC 2104), 32 bytes. Faster than `hmac.digest`. hot"""
    block = (key if len(key) <= _BLOCK else blake2s(key).digest()).ljust(_BLOCK, b"\0")
    return blake2s(block.translate(_OUTER_PAD) + blake2s(block.translate(_INNER_PAD) + data).digest()).digest()


def kdf(chaining_key: bytes, material: bytes, count: int) -> tuple[bytes, ...]:
    """Returns the first `count` outputs (1 to 3, 32 bytes each) of HKDF (RFC 5869), as the paper defines KDFn.

    All outputs share the blocks of the extracted secret. hot
    """
    secret = hmac_(chaining_key, material).ljust(_BLOCK, b"\0")
    inner, outer = secret.translate(_INNER_PAD), secret.translate(_OUTER_PAD)
    first = blake2s(outer + blake2s(inner + b"\1").digest()).digest()
    if count == 1:
        return (first,)
    second = blake2s(outer + blake2s(inner + first + b"\2").digest()).digest()
    if count == 2:
        return first, second
    return first, second, blake2s(outer + blake2s(inner + second + b"\3").digest()).digest()


def clamp(private_key: bytes) -> bytes:
    """Fixes the bits of a Curve25519 private key that RFC 7748, section 5, fixes."""
    key = bytearray(private_key)
    key[0] &= 248
    key[31] = (key[31] & 127) | 64
    return bytes(key)


def public_key_of(private_key: X25519PrivateKey) -> bytes:
    return private_key.public_key().public_bytes_raw()


def point_of(public_key: bytes) -> X25519PublicKey:
    """Turns a public key into the form that `dh` takes. Raises BadMessage for other than 32 bytes."""
    try:
        return X25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        raise BadMessage("low_order_key") from None


def dh(private_key: X25519PrivateKey, point: X25519PublicKey) -> bytes:
    """Computes X25519. Raises BadMessage for a public key of low order: everybody would know its result, zeros.

    hot
    """
    try:
        return private_key.exchange(point)
    except ValueError:
        raise BadMessage("low_order_key") from None


@dataclass(slots=True)
class SymmetricState:
    """Holds the running pair of one handshake, and the key of its next message.

    Each `mix_*` and each cipher call moves it on; `copy` forks it. `proto.kernel.symmetric` has a compiled one.
    """

    chaining_key: bytes = field(repr=False)
    hash: bytes = field(repr=False)
    _key: bytes = field(default=b"", repr=False)

    def copy(self) -> "SymmetricState":
        """Forks the state: a bad message must not move the state that waits for the good one."""
        return SymmetricState(self.chaining_key, self.hash, self._key)

    def mix_hash(self, data: bytes) -> None:
        """Sets h = HASH(h || data)."""
        self.hash = hash_(self.hash, data)

    def mix_chain(self, material: bytes) -> None:
        """Sets ck = KDF1(ck, material)."""
        (self.chaining_key,) = kdf(self.chaining_key, material, 1)

    def mix_key(self, material: bytes) -> None:
        """Sets (ck, k) = KDF2(ck, material)."""
        self.chaining_key, self._key = kdf(self.chaining_key, material, 2)

    def mix_preshared_key(self, preshared_key: bytes) -> None:
        """Sets (ck, t, k) = KDF3(ck, psk) and h = HASH(h || t). Without a pre-shared key, psk is 32 zeros."""
        self.chaining_key, mixed, self._key = kdf(self.chaining_key, preshared_key, 3)
        self.mix_hash(mixed)

    def seal(self, plaintext: bytes) -> bytes:
        """Encrypts under the key and nonce 0, and mixes the ciphertext in. The key is gone then."""
        # Safe with a constant nonce because each key comes fresh from a KDF and seals one message.
        ciphertext = self._aead().encrypt(_ZERO_NONCE, plaintext, self.hash)
        self.mix_hash(ciphertext)
        self._key = b""
        return ciphertext

    def open_untrusted(self, ciphertext: bytes, reason: str) -> bytes:
        """Decrypts a ciphertext of `seal` and mixes it in. Raises BadMessage(reason) if it isn't authentic."""
        try:
            plaintext = self._aead().decrypt(_ZERO_NONCE, ciphertext, self.hash)
        except InvalidTag:
            raise BadMessage(reason) from None
        self.mix_hash(ciphertext)
        self._key = b""
        return plaintext

    def _aead(self) -> ChaCha20Poly1305:
        if not self._key:
            raise RuntimeError("the key is used up")
        return ChaCha20Poly1305(self._key)

    def split(self) -> tuple[bytes, bytes]:
        """Returns (T1, T2) = KDF2(ck, ""): the initiator sends with T1 and receives with T2."""
        first, second = kdf(self.chaining_key, b"", 2)
        return first, second


_INITIAL_CHAINING_KEY: Final = hash_(c.CONSTRUCTION)
_INITIAL_HASH: Final = hash_(_INITIAL_CHAINING_KEY, c.IDENTIFIER)
_kind: type[SymmetricState] = SymmetricState


def use(kind: type[SymmetricState]) -> None:
    """Has each handshake from now on begin with a state of this kind: the one here, or the compiled one."""
    global _kind  # noqa: PLW0603 - a process chooses once, as it starts
    _kind = kind


def initial_state(responder_public_key: bytes) -> SymmetricState:
    """Starts both sides alike: from the construction, the identifier and the responder's static public key."""
    return _kind(_INITIAL_CHAINING_KEY, hash_(_INITIAL_HASH, responder_public_key))
