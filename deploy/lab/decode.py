"""Captured datagrams as somebody else reads them: scapy's WireGuard layer, which shares nothing with ours."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from scapy.contrib.wireguard import Wireguard

from lab.capture import Datagram


class Decoded(NamedTuple):
    """`fields` are scapy's, by scapy's names; `trailing` is what its layout has no place for."""

    type: int
    fields: dict[str, Any]
    trailing: bytes


def decode(payload: bytes) -> Decoded:
    """One message. A type that scapy doesn't know has no fields, and all of its bytes trail."""
    message = Wireguard(payload)
    body = message.payload
    if not type(body).__name__.startswith("Wireguard"):
        return Decoded(message.message_type, {}, bytes(body))
    fields = {name: body.getfieldval(name) for name in body.fields}
    fields["reserved_zero"] = message.reserved_zero
    return Decoded(message.message_type, fields, bytes(body.payload))


def decode_all(datagrams: Iterable[Datagram]) -> list[Decoded]:
    """In the same order."""
    return [decode(datagram.payload) for datagram in datagrams]
