"""Seals a backup with a passphrase, and opens it: scrypt for the key, ChaCha20-Poly1305 for the content (RFC 7914, 8439).

{"stagewire backup": 1, "salt": …, "nonce": …}\\n<ciphertext>    the first line is authenticated as well
"""

import base64
import hashlib
import json
import os
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from stagewire_cli.failures import Failed

VERSION: Final = 1
LEAST: Final = 8
"""Letters of a passphrase."""
_N, _R, _P = 1 << 16, 8, 1
"""scrypt's parameters: 64 MiB, and 0.2 s of a core where it was measured."""
_MEMORY: Final = 128 * _R * (_N + _P) + (1 << 20)
_SALT, _NONCE, _KEY = 16, 12, 32
_NAME: Final = "stagewire backup"
_MAX_HEAD: Final = 512


def seal(content: bytes, passphrase: str) -> bytes:
    """Returns a backup file. The salt is new each time, so no key ever seals twice. Raises Failed."""
    if len(passphrase) < LEAST:
        raise Failed(f"a passphrase has at least {LEAST} letters")
    salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
    head = json.dumps({_NAME: VERSION, "salt": _text(salt), "nonce": _text(nonce)}).encode() + b"\n"
    return head + ChaCha20Poly1305(_key(passphrase, salt)).encrypt(nonce, content, head)


def unseal(data: bytes, passphrase: str) -> bytes:
    """Returns the content of a backup file. Raises Failed for any other file, a wrong passphrase, and a changed file."""
    head, newline, sealed = data.partition(b"\n")
    said = _head(head) if newline and len(head) < _MAX_HEAD else None
    if said is None:
        raise Failed("is no backup of stagewire, or its beginning is missing")
    if said[_NAME] != VERSION:
        raise Failed(f"is of version {said[_NAME]}, and this command knows version {VERSION}: use a newer stagewire")
    try:
        salt, nonce = (base64.b64decode(said[name], validate=True) for name in ("salt", "nonce"))
    except (ValueError, KeyError, TypeError):
        salt = nonce = b""
    if (len(salt), len(nonce)) != (_SALT, _NONCE):
        raise Failed("is damaged in its first line")
    try:
        return ChaCha20Poly1305(_key(passphrase, salt)).decrypt(nonce, sealed, head + newline)
    except InvalidTag:
        raise Failed("does not open: the passphrase is wrong, or the file is cut short or changed") from None


def _head(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and type(said.get(_NAME)) is int else None


def _key(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        passphrase.encode("utf-8", "surrogateescape"), salt=salt, n=_N, r=_R, p=_P, maxmem=_MEMORY, dklen=_KEY
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
