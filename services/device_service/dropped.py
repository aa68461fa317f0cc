"""Counts the packets of a train that is dropped whole, each for its peer as far as the train tells it."""

import math
from collections.abc import Iterator

from stagewire.pipe import trains
from stagewire.proto import endpoint as places
from stagewire.proto.packets import fields, ip
from stagewire.proto.worker import Worker
from stagewire.reasons import Reasons

HOWEVER_OLD = -math.inf
"""Stands for the time where a train's age doesn't matter."""


class Dropped:
    """Looks into trains that are in order, or were a moment ago: what can't be read is counted without a peer."""

    def __init__(self, worker: Worker, counters: Reasons) -> None:
        self._worker = worker
        self._counters = counters

    def from_os(self, train: trains.Data, begin: int, end: int) -> None:
        """Counts a plain train of tun-service, which is too old, by its destinations."""
        for packet, packets in _packets(train, begin, end):
            place = ip.destination(packet) or b""
            peer = self._worker.owners.key_at(place) or b""
            self._counters.note("train_too_old", packets, peer=peer, place=place, size=len(packet))

    def from_network(self, train: trains.Data, begin: int, end: int) -> None:
        """Counts a cipher train of conn-service, which is too old, by its receivers."""
        for endpoint, datagrams in trains.unpack_cipher_untrusted(train, HOWEVER_OLD, begin, end):
            for datagram in datagrams:
                peer, place = self._worker.peer_of(datagram), places.place_of(endpoint)
                self._counters.note("train_too_old", peer=peer, place=place, size=len(datagram))

    def to_os(self, reason: str, train: bytes, weight: int) -> None:
        """Counts a plain train of ours, which tun-service doesn't take, by its sources. `weight` has its packets."""
        for packet, packets in _packets(train, 0, len(train)):
            place, weight = ip.source(packet) or b"", weight - packets
            peer = self._worker.owners.key_at(place) or b""
            self._counters.note(reason, packets, peer=peer, place=place, size=len(packet))
        self._counters[reason] += weight

    def to_network(self, reason: str, train: bytes, weight: int) -> None:
        """Counts a cipher train of ours, which conn-service doesn't take, by where its runs were to go."""
        for endpoint, datagrams in trains.unpack_cipher_untrusted(train, HOWEVER_OLD):
            count = len(datagrams)
            weight -= count
            self._counters.note(reason, count, place=places.place_of(endpoint), size=len(datagrams[0]))
        self._counters[reason] += weight


def _packets(train: trains.Data, begin: int, end: int) -> Iterator[tuple[bytes, int]]:
    for start, over, packets in trains.spans_untrusted(train, HOWEVER_OLD, begin, end):
        yield train[start + fields.VNET_HEADER : over], packets
