"""Curve25519 keys as they stand in configuration files: 32 bytes, 44 characters of base64."""

import base64
import binascii
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from stagewire.proto.constants import KEY_LENGTH

# Any scalar will do: X25519 makes each a multiple of 8, which takes every point of low order to zero.
_PROBE: Final = X25519PrivateKey.from_private_bytes(bytes(KEY_LENGTH))


def decode_key(text: str) -> bytes:
    """The 32 bytes of a key in base64. Raises ValueError, which says what is wrong but not the text.

    Strict: only the one text that `encode_key` would write is accepted.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None
    if len(key) != KEY_LENGTH:
        raise ValueError(f"is {len(key)} bytes long, a key has {KEY_LENGTH}")
    if encode_key(key) != text:
        raise ValueError("is not base64 as it is written for a key: bits are set after its end")
    return key


def encode_key(key: bytes) -> str:
    """The base64 of a key: 44 characters for 32 bytes."""
    return base64.b64encode(key).decode("ascii")


def generate_private_key(random_bytes: bytes) -> bytes:
    """A private key of 32 fresh random bytes, clamped. Raises ValueError for another number of them."""
    if len(random_bytes) != KEY_LENGTH:
        raise ValueError(f"a private key is made of {KEY_LENGTH} random bytes, not {len(random_bytes)}")
    key = bytearray(random_bytes)
    key[0] &= 0b1111_1000
    key[31] = (key[31] & 0b0111_1111) | 0b0100_0000
    return bytes(key)


def public_key(private: bytes) -> bytes:
    """The public key of a private key (clamped or not). Raises ValueError when it isn't 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_low_order(public: bytes) -> bool:
    """Whether every exchange with this public key (32 bytes) gives zeros, so that no handshake works."""
    try:
        _PROBE.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return True
    return False
