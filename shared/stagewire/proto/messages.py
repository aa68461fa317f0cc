"""Lays out the four WireGuard messages, and turns foreign bytes into one of them.

Layouts (paper, section 5.4; all integers little endian; the three bytes after the type are zero, so the first four
bytes read as one integer equal the type):

    initiation    148   type 4 | sender 4 | ephemeral 32 | encrypted static 48 | encrypted timestamp 28 | mac1 16 | mac2 16
    response       92   type 4 | sender 4 | receiver 4 | ephemeral 32 | encrypted nothing 16 | mac1 16 | mac2 16
    cookie_reply   64   type 4 | receiver 4 | nonce 24 | encrypted cookie 32
    transport    >=32   type 4 | receiver 4 | counter 8 | encrypted packet

A response between two Stagewire gateways may carry an encrypted TAI64N (28 bytes for 16, see `handshake`). Its length,
104, tells the two forms apart.

`tunnel` handles transport messages in trains, without the dataclasses here. Most dataclasses of handshakes, here and in
`handshake` and `events`, aren't frozen: a frozen instance takes three times as long to make.
"""

import struct
from dataclasses import dataclass
from typing import Final

from stagewire.proto import constants as c

HEADER: Final = struct.Struct("<II")
"""(type, sender) of types 1 and 2, (type, receiver) of types 3 and 4."""
TRANSPORT_HEADER: Final = struct.Struct("<IIQ")
"""(type, receiver, counter)."""

_INITIATION = struct.Struct("<II32s48s28s16s16s")
_RESPONSE = struct.Struct("<III32s16s16s16s")
_STAMPED_RESPONSE = struct.Struct("<III32s28s16s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")


class BadMessage(Exception):  # noqa: N818 - it is the peer's error, not ours
    """Refuses foreign bytes. `reason` names the counter that the refusal adds to.

    `public_key` is the key that the sender claims or that the answer was awaited from; empty while unknown.
    """

    def __init__(self, reason: str, public_key: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.public_key = public_key


class OldStamp(BadMessage):
    """Refuses an authentic message older than an earlier one: a replay, or its sender's clock went back."""

    def __init__(self, reason: str, public_key: bytes, stamp: bytes, latest: bytes) -> None:
        super().__init__(reason, public_key)
        self.stamp = stamp
        self.latest = latest


@dataclass(slots=True)
class Initiation:
    """Holds message 1."""

    sender: int
    ephemeral: bytes
    encrypted_static: bytes
    encrypted_timestamp: bytes
    mac1: bytes
    mac2: bytes


@dataclass(slots=True)
class Response:
    """Holds message 2. `encrypted_payload` has 16 bytes, or 28 with a timestamp."""

    sender: int
    receiver: int
    ephemeral: bytes
    encrypted_payload: bytes
    mac1: bytes
    mac2: bytes


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Holds message 3."""

    receiver: int
    nonce: bytes
    encrypted_cookie: bytes


HandshakeMessage = Initiation | Response | CookieReply


def parse_handshake_untrusted(data: bytes) -> HandshakeMessage:
    """Reads a message of type 1 to 3 and exact length. Raises BadMessage, and nothing else, for other bytes."""
    if len(data) < 4:
        raise BadMessage("too_short")
    kind = int.from_bytes(data[:4], "little")
    match kind, len(data):
        case c.TYPE_INITIATION, c.INITIATION_LENGTH:
            _, sender, ephemeral, static, timestamp, mac1, mac2 = _INITIATION.unpack(data)
            return Initiation(sender, ephemeral, static, timestamp, mac1, mac2)
        case c.TYPE_RESPONSE, c.RESPONSE_LENGTH:
            _, sender, receiver, ephemeral, payload, mac1, mac2 = _RESPONSE.unpack(data)
            return Response(sender, receiver, ephemeral, payload, mac1, mac2)
        case c.TYPE_RESPONSE, c.STAMPED_RESPONSE_LENGTH:
            _, sender, receiver, ephemeral, payload, mac1, mac2 = _STAMPED_RESPONSE.unpack(data)
            return Response(sender, receiver, ephemeral, payload, mac1, mac2)
        case c.TYPE_COOKIE_REPLY, c.COOKIE_REPLY_LENGTH:
            _, receiver, nonce, cookie = _COOKIE_REPLY.unpack(data)
            return CookieReply(receiver, nonce, cookie)
        case ((c.TYPE_INITIATION | c.TYPE_RESPONSE | c.TYPE_COOKIE_REPLY), _):
            raise BadMessage("bad_length")
        case _:
            raise BadMessage("bad_type")


def pack_initiation(sender: int, ephemeral: bytes, encrypted_static: bytes, encrypted_timestamp: bytes) -> bytes:
    """Packs an initiation without its macs (116 bytes), which `cookie.MacSealer` appends."""
    return HEADER.pack(c.TYPE_INITIATION, sender) + ephemeral + encrypted_static + encrypted_timestamp


def pack_response(sender: int, receiver: int, ephemeral: bytes, encrypted_payload: bytes) -> bytes:
    """Packs a response without its macs, which `cookie.MacSealer` appends."""
    return HEADER.pack(c.TYPE_RESPONSE, sender) + receiver.to_bytes(4, "little") + ephemeral + encrypted_payload


def pack_cookie_reply(receiver: int, nonce: bytes, encrypted_cookie: bytes) -> bytes:
    """Packs a whole cookie reply (64 bytes)."""
    return _COOKIE_REPLY.pack(c.TYPE_COOKIE_REPLY, receiver, nonce, encrypted_cookie)
