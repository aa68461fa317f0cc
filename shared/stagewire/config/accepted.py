"""Keeps the configuration text that an interface accepted, in key-service's folder, where it outlives the process.

A key-service that starts beside a running gateway goes on with this text, whatever happened to the file. `stagewire
reload` replaces it. The text holds the private key, so its mode is 0600, and only key-service and root read it.

    <generation>[ <read>]\\n<text>    `generation` also names the journal of the live changes upon the text

A key that is no longer in force leaves the text: a random key stands there instead, and the journal tells the true one.
`read` is then the digest of the text as it was read, by which the operator's file is recognised.
"""

import os
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from hashlib import blake2s
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.config.keys import decode_key, encode_key
from stagewire.limits import MAX_ACCEPTED
from stagewire.proto.constants import KEY_LENGTH

_NAME: Final = "accepted"
_HEAD: Final = re.compile(rb"([0-9A-Za-z]{16})(?: ([0-9a-f]{16}))?")
_KEY: Final = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{43}=")


@dataclass(frozen=True, slots=True)
class Accepted:
    """Holds a text and the number of its acceptance."""

    generation: str
    text: str = field(repr=False)
    read: str = ""
    """The digest of the text as it was read, if keys have left it since."""

    @classmethod
    def first(cls, text: str) -> "Accepted":
        """Accepts a text at a start. The same text has the same generation, so a plain restart finds its journal."""
        return cls(_digest(text), text)

    @classmethod
    def anew(cls, text: str) -> "Accepted":
        """Accepts a text at a reload, under a generation without a journal."""
        return cls(os.urandom(8).hex(), text)

    def packed(self) -> bytes:
        """Returns the file's content."""
        head = f"{self.generation} {self.read}" if self.read else self.generation
        return head.encode() + b"\n" + _encoded(self.text)

    def was(self, text: str) -> bool:
        """Tells whether this is the text that was read."""
        return _digest(text) == self.read if self.read else text == self.text

    def without(self, secrets: AbstractSet[bytes]) -> "Accepted":
        """Returns the text with a random key in place of each of these, wherever it stands, also in a comment."""
        from stagewire.proto.noise import clamp  # a command that only reads the text does without curves

        def instead(found: re.Match[str]) -> str:
            try:
                key = decode_key(found[0])
            except ValueError:
                return found[0]
            return encode_key(os.urandom(KEY_LENGTH)) if {key, clamp(key)} & secrets else found[0]

        text = _KEY.sub(instead, self.text)
        return self if text == self.text else replace(self, text=text, read=self.read or _digest(self.text))

    def prepare(self, run: Path, uid: int, gid: int) -> Path:
        """Writes the file beside the one in force. `Path.replace` with `path(run)` puts it in force. Raises OSError."""
        fresh = path(run).with_suffix(".new")
        files.clear(fresh)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            data = memoryview(self.packed())
            while data:
                data = data[os.write(descriptor, data) :]
            if os.geteuid() == 0:
                os.fchown(descriptor, uid, gid)
        finally:
            os.close(descriptor)
        return fresh


def path(run: Path) -> Path:
    return run / "key" / _NAME


def read(run: Path) -> Accepted | None:
    """Reads the accepted text; None if there is none. Raises OSError."""
    try:
        return unpack(files.read(path(run), MAX_ACCEPTED))
    except (FileNotFoundError, files.Suspicious):
        return None


def unpack(data: bytes) -> Accepted | None:
    """Reads a content that `packed` made; None for any other."""
    head, newline, text = data.partition(b"\n")
    found = _HEAD.fullmatch(head)
    if not newline or found is None:
        return None
    return Accepted(found[1].decode(), text.decode("utf-8", "surrogateescape"), (found[2] or b"").decode())


def _digest(text: str) -> str:
    return blake2s(_encoded(text), digest_size=8).hexdigest()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
