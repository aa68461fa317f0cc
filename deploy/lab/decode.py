"""Decodes captured datagrams by scapy's WireGuard layer, which shares no code with Stagewire."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from scapy.contrib.wireguard import Wireguard

from lab.capture import Datagram


class Decoded(NamedTuple):
    """Holds a decoded message. `fields` have scapy's names; `trailing` are the bytes beyond scapy's layout."""

    type: int
    fields: dict[str, Any]
    trailing: bytes


def decode(payload: bytes) -> Decoded:
    """Decodes one message. A type that scapy does not know has no fields, and all its bytes trail."""
    message = Wireguard(payload)
    body = message.payload
    if not type(body).__name__.startswith("Wireguard"):
        return Decoded(message.message_type, {}, bytes(body))
    fields = {name: body.getfieldval(name) for name in body.fields}
    fields["reserved_zero"] = message.reserved_zero
    return Decoded(message.message_type, fields, bytes(body.payload))


def decode_all(datagrams: Iterable[Datagram]) -> list[Decoded]:
    return [decode(datagram.payload) for datagram in datagrams]
