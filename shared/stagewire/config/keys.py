"""Reads and makes Curve25519 keys as configuration files have them: 32 bytes, 44 characters of base64.

What needs curves loads them when called: they cost a short command much of its time.
"""

import base64
import binascii
import re
from typing import Final

from stagewire.proto.constants import KEY_LENGTH

NO_KEY: Final = bytes(KEY_LENGTH)
"""Stands for no private or pre-shared key."""
_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")
_PROBE: Final = bytes(KEY_LENGTH)
"""A private key. Any will do: X25519 makes each a multiple of 8, which takes every low-order point to zero."""


def decode_key(text: str) -> bytes:
    """Decodes a key from base64. Raises ValueError, whose message tells the mistake but not the text.

    Strict: accepts only the one text that `encode_key` writes.
    """
    if _HEX.fullmatch(text):
        raise ValueError("is in hexadecimal: write it in base64, which has 44 characters for a key")
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64: a key is 44 characters of it, the last one '='") from None
    if len(key) != KEY_LENGTH:
        raise ValueError(f"is {len(key)} bytes long, a key has {KEY_LENGTH}")
    if encode_key(key) != text:
        raise ValueError("is not base64 as it is written for a key: bits are set after its end")
    return key


def encode_key(key: bytes) -> str:
    """Encodes 32 bytes as 44 characters of base64."""
    return base64.b64encode(key).decode("ascii")


def generate_private_key(random_bytes: bytes) -> bytes:
    """Clamps 32 fresh random bytes into a private key. Raises ValueError for another number of bytes."""
    if len(random_bytes) != KEY_LENGTH:
        raise ValueError(f"a private key is made of {KEY_LENGTH} random bytes, not {len(random_bytes)}")
    from stagewire.proto.noise import clamp

    return clamp(random_bytes)


def public_key(private: bytes) -> bytes:
    """Computes the public key of a private key, clamped or not. Raises ValueError for other than 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_low_order(public: bytes) -> bool:
    """Tells whether every exchange with this public key (32 bytes) gives zeros, so that no handshake works."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        X25519PrivateKey.from_private_bytes(_PROBE).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return True
    return False
