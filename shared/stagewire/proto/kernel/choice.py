"""Chooses the kernel of a process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from stagewire.proto.kernel import rule
from stagewire.proto.kernel.rule import COMPILED, PLAIN
from stagewire.proto.session import Session

try:
    from stagewire.proto.kernel.cipher import Cipher, Window, library, quickest, use
    from stagewire.proto.kernel.opening import Opening
    from stagewire.proto.kernel.sealing import Sealing
    from stagewire.proto.kernel.steady import seal, settle

    _LACKING = rule.why_not(None)
except ImportError as error:
    _LACKING = rule.why_not(error)

Key = bytes | bytearray | memoryview
SessionMaker = Callable[..., Session]
"""(index, remote index, sending key, receiving key, *, initiator, created) -> session. The caller may wipe the keys then."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Describes a kernel. `why` tells the operator how it came to be chosen."""

    name: str
    why: str
    session: SessionMaker
    sealing: "type[Sealing] | None" = None
    """None: each packet goes through `Worker.outbound`."""
    opening: "type[Opening] | None" = None
    seal: Callable[..., list[int]] | None = None
    """`steady.seal`, where there is `sealing`."""
    settle: Callable[..., None] | None = None
    """`steady.settle`, where there is `opening`."""
    library: str = ""
    """The library whose cipher the compiled kernel calls."""

    def __str__(self) -> str:
        return f"{self.name}, {self.why}"


def _plain_session(index: int, remote_index: int, send: Key, receive: Key, **facts: Any) -> Session:
    return Session(index, remote_index, ChaCha20Poly1305(send), ChaCha20Poly1305(receive), **facts)


def _compiled_session(index: int, remote_index: int, send: Key, receive: Key, **facts: Any) -> Session:
    sender, receiver = Cipher(send, encrypts=True), Cipher(receive, encrypts=False)
    return Session(index, remote_index, sender, receiver, window=Window(), **facts)


def plain(why: str) -> Kernel:
    """Returns the plain kernel."""
    return Kernel(PLAIN, why, _plain_session)


def choose(wanted: str) -> Kernel:
    """Returns the kernel of that name; for an empty one, the compiled kernel where it can be loaded. Raises ImportError.

    The compiled kernel's sessions use the cipher that is the quickest here.
    """
    name, why = rule.decide(wanted, _LACKING)
    if name == PLAIN:
        return plain(why)
    use(quickest())
    return Kernel(COMPILED, why, _compiled_session, Sealing, Opening, seal, settle, library())
