"""The four WireGuard messages: their layouts, and the one door through which foreign bytes become one of them.

Layouts (paper, section 5.4; all integers little endian; the three bytes after the type are zero, so the first four
bytes read as one integer equal the type):

    initiation    148   type 4 | sender 4 | ephemeral 32 | encrypted static 48 | encrypted timestamp 28 | mac1 16 | mac2 16
    response       92   type 4 | sender 4 | receiver 4 | ephemeral 32 | encrypted nothing 16 | mac1 16 | mac2 16
    cookie_reply   64   type 4 | receiver 4 | nonce 24 | encrypted cookie 32
    transport    >=32   type 4 | receiver 4 | counter 8 | encrypted packet

A response between two Stagewire gateways may carry an encrypted TAI64N instead of nothing (28 bytes for 16, see
`handshake`); its length, 104, is what tells the two apart.

Transport messages are handled in trains by `tunnel`, not through the dataclasses here. Those of handshakes, here and in
`handshake` and `effects`, aren't frozen, though nobody changes one: a frozen one takes three times as long to make, and all
of them together 7 us more in an answer.
"""

import struct
from dataclasses import dataclass
from typing import Final

from stagewire.proto import constants as c

HEADER: Final = struct.Struct("<II")
"""type, then sender (types 1 and 2) or receiver (types 3 and 4)."""
TRANSPORT_HEADER: Final = struct.Struct("<IIQ")
"""type, receiver, counter."""

_INITIATION = struct.Struct("<II32s48s28s16s16s")
_RESPONSE = struct.Struct("<III32s16s16s16s")
_STAMPED_RESPONSE = struct.Struct("<III32s28s16s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")


class BadMessage(Exception):  # noqa: N818 - it is the peer's error, not ours
    """Foreign bytes that are not what they should be. `reason` is the name of the counter that they add to."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Initiation:
    """Message 1."""

    sender: int
    ephemeral: bytes
    encrypted_static: bytes
    encrypted_timestamp: bytes
    mac1: bytes
    mac2: bytes


@dataclass(slots=True)
class Response:
    """Message 2. `encrypted_payload` is 16 bytes long, or 28 when it carries a timestamp."""

    sender: int
    receiver: int
    ephemeral: bytes
    encrypted_payload: bytes
    mac1: bytes
    mac2: bytes


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Message 3."""

    receiver: int
    nonce: bytes
    encrypted_cookie: bytes


HandshakeMessage = Initiation | Response | CookieReply


def parse_handshake_untrusted(data: bytes) -> HandshakeMessage:
    """Reads a message of type 1 to 3. Raises BadMessage, and nothing else, for anything but one of exact length."""
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
    """An initiation without its macs (116 bytes), which `cookie.MacSealer` appends."""
    return HEADER.pack(c.TYPE_INITIATION, sender) + ephemeral + encrypted_static + encrypted_timestamp


def pack_response(sender: int, receiver: int, ephemeral: bytes, encrypted_payload: bytes) -> bytes:
    """A response without its macs, which `cookie.MacSealer` appends."""
    return HEADER.pack(c.TYPE_RESPONSE, sender) + receiver.to_bytes(4, "little") + ephemeral + encrypted_payload


def pack_cookie_reply(receiver: int, nonce: bytes, encrypted_cookie: bytes) -> bytes:
    """A whole cookie reply (64 bytes)."""
    return HEADER.pack(c.TYPE_COOKIE_REPLY, receiver) + nonce + encrypted_cookie
