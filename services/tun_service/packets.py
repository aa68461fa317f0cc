"""Carries packets from the TUN device to the workers, and back.

With offloads the device reads and takes items: a virtio_net_hdr, then a packet or a super-packet. An item stays whole here;
this module reads only its destination. Without offloads, this module adds and removes empty headers. A worker may merge
packets before it learns that the device takes none; this module cuts such super-packets.

With offloads, `linux.tun_trains` does the same for whole visits, compiled. What it finds out of order comes back to here.
"""

import errno
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from stagewire.linux import tun
from stagewire.linux.uids import Place
from stagewire.pipe import trains
from stagewire.pipe.contract import Frame, Handler
from stagewire.pipe.to_workers import ToWorkers
from stagewire.pipe.train_builder import PlainBuilder
from stagewire.proto import carriers
from stagewire.proto import constants as c
from stagewire.proto.allowed_ips import AllowedIps
from stagewire.proto.packets import fields, icmp, ip, split, virtio
from stagewire.proto.packets.split import SuperPacket
from stagewire.proto.packets.virtio import BadSuperPacket
from stagewire.reasons import Reasons
from stagewire.stages import WORKER

if TYPE_CHECKING:  # it may not be built
    from stagewire.linux.tun_trains import TunReader, TunWriter

_FRONT: Final = fields.VNET_HEADER
ANY: Final = -1
"""Stands for a speaker whose packets may have any source."""


class Packets:
    """Reads and writes the TUN device. Shares `workers` and `owners` (workers by prefix) with the service."""

    def __init__(
        self,
        device: int,
        workers: ToWorkers[PlainBuilder],
        owners: AllowedIps[int],
        counters: Reasons,
        drop: Callable[[trains.BadTrain], None],
        lost: Callable[[OSError], None],
        compiled: Any = None,
    ) -> None:
        """Takes `linux.tun_trains` as `compiled`; None leaves all work to Python. `owners` holds what `carriers` packs."""
        self._tun = device
        self._compiled = compiled
        self._reader: TunReader | None = None
        self._writer: TunWriter | None = None
        self._workers = workers
        self._owners = owners
        self.counters = counters
        self._drop = drop
        self._lost = lost
        self._header = False
        self.cleared: Callable[[int, int], object] = lambda _worker, _number: None
        """Hears of each worker's mark: (worker, number)."""

    def attached(self) -> None:
        """Asks the device for its offloads; to be called once it is attached."""
        self.begin(tun.switch_offloads(self._tun), header=tun.has_header(self._tun))

    def begin(self, takes: int, *, header: bool) -> None:
        """Begins to work with a device that takes such super-packets. `header`: each packet has a virtio_net_hdr."""
        self._header, compiled = header, self._compiled
        if compiled is None or not header:
            self._workers.make = partial(PlainBuilder, takes)
            return
        self._workers.make = partial(compiled.PlainRoom, takes)
        self._reader = compiled.TunReader(self._tun, self._owners.lookup, self._owners.answers)
        self._writer = compiled.TunWriter(self._tun, self._write_apart, self._owners.lookup, self._owners.answers)

    # --- out -----------------------------------------------------------------------------------------------

    def on_tun(self, now: float) -> None:
        """Reads one visit's packets into trains, and sends them. hot: bench traffic"""
        taken = self._read(now) if self._reader is None else self._visit(self._reader, now)
        if taken is not None:
            self.counters["tun_packets_in"] += taken
            self._workers.send(now)

    def _visit(self, reader: "TunReader", now: float) -> int | None:
        """Does what `_read` does, compiled."""
        workers = self._workers
        rested = workers.visit(now)
        taken, workers.last, odd, error = reader.visit(workers.builder, workers.last, rested)
        for item, packets in odd:
            self._worker_of(memoryview(item), packets)
        workers.alone = rested and taken == 1 and not odd
        if error:
            self._lost(OSError(error, os.strerror(error)))
            return None
        return taken

    def _read(self, now: float) -> int | None:
        """Reads one visit's packets into trains. Returns how many; None if the device is lost."""
        readv, device, taken = os.readv, self._tun, 0
        skip = 0 if self._header else _FRONT
        workers = self._workers
        rested, last = workers.visit(now), workers.last
        train = workers.builder(last)
        for _ in range(trains.MAX_PACKETS):
            room = train.room()
            try:
                length = readv(device, [room[skip:]]) + skip
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(error)
                return None
            if skip:
                room[:skip] = virtio.NONE
            item = room[:length]
            packets = virtio.count(item[:_FRONT], length - _FRONT)
            taken += packets
            worker = self._worker_of(item, packets)
            if worker is None:
                continue
            if worker != last:
                copy, train, last = bytes(item), workers.builder(worker), worker
                train.room()[:length] = copy
            train.add(length, packets)
            if rested and taken == 1:
                workers.alone = True
                break
            if train.full:
                break
        workers.last = last
        return taken

    def _worker_of(self, item: memoryview, packets: int) -> int | None:
        """Returns the worker that seals an item; None if it must be dropped, and then counts why."""
        size, destination = len(item) - _FRONT, ip.destination(item[_FRONT:])
        if packets == 1 and size > c.MAX_INNER:
            self.counters.note("outbound_too_large", place=destination or b"", size=size)
            return None
        if destination is None:
            self.counters.note("outbound_malformed", size=size)
            return None
        carrier = self._owners.lookup(destination)
        if carrier is None:
            self._refuse(item, packets, destination)
            return None
        return carriers.worker_of(carrier)

    def _refuse(self, item: memoryview, packets: int, destination: bytes) -> None:
        if ip.is_for_many(destination):
            self.counters["for_many_unrouted"] += packets
            return
        self.counters.note("no_peer", packets, place=destination, size=len(item) - _FRONT)
        try:
            packet = split.open_untrusted(bytes(item[:_FRONT]), item[_FRONT:])
        except BadSuperPacket:
            return
        # A super-packet gets one answer, which quotes its first packet.
        unreachable = icmp.unreachable(packet.first() if isinstance(packet, SuperPacket) else packet)
        if unreachable is not None:
            self._write(virtio.NONE + unreachable, 1)

    # --- in ------------------------------------------------------------------------------------------------

    def from_place(self, place: Place | None) -> Handler:
        """Returns what takes the trains of a speaker. A worker's own peers alone are the sources of its packets.

        None stands for root, and for all where all share a uid.
        """
        if place is None or place.stage != WORKER:
            return self.on_plain_in
        return partial(self.on_plain_in, worker=place.number)

    def on_plain_in(self, frames: Sequence[Frame], now: float, worker: int = ANY) -> None:
        """Writes the packets of a worker's trains to the device. Hot."""
        writer, counters = self._writer, self.counters
        for data, begin, end in frames:
            if writer is not None and (done := writer.write(data, begin, end, now, trains.MAX_AGE, worker)) is not None:
                counters["tun_packets_out"] += done[0]
                for strange, packet, size, packets in writer.odd:
                    (self._strange if strange else self._failed)(packet, size, packets)
                continue
            try:
                spans = trains.spans_untrusted(data, now, begin, end)
            except trains.BadTrain as bad:
                mark = trains.mark_untrusted(data, begin, end)
                if mark is not None and worker in (ANY, mark[0]):  # no worker speaks for another
                    self.cleared(*mark)
                elif bad.reason == "train_too_old":
                    self._drop_old(data, begin, end)
                else:
                    self._drop(bad)
                continue
            for start, over, packets in spans:
                # A copy: the sender might change it once it is judged.
                self._deliver(bytes(memoryview(data)[start:over]), packets, worker)

    def _deliver(self, item: bytes, packets: int, worker: int) -> None:
        """Writes an item that comes from a worker."""
        if worker != ANY:
            source = ip.source(item[_FRONT:])
            carrier = None if source is None else self._owners.lookup(source)
            if carrier is None or not carriers.may_deliver(carrier, worker):
                self._strange(item[_FRONT:], len(item) - _FRONT, packets)
                return
        self._write(item, packets)

    def _drop_old(self, data: trains.Data, begin: int, end: int) -> None:
        frame = bytes(data[begin:end])  # a copy: its sender might change it meanwhile
        try:
            spans = trains.spans_untrusted(frame, -math.inf)
        except trains.BadTrain as bad:
            self._drop(bad)
            return
        for start, over, packets in spans:
            place, size = ip.source(frame[start + _FRONT : over]) or b"", over - start - _FRONT
            self.counters.note("train_too_old", packets, place=place, size=size)

    def _strange(self, packet: bytes, size: int, packets: int) -> None:
        place = ip.source(packet) or b""
        self.counters.note("inner_source_of_another_worker", packets, place=place, size=size)

    def _failed(self, packet: bytes | memoryview, size: int, packets: int) -> None:
        self.counters.note("tun_write_failed", packets, place=ip.destination(packet) or b"", size=size)

    def _write(self, item: bytes | memoryview, packets: int) -> None:
        counters = self.counters
        try:
            if self._header:
                os.write(self._tun, item)
            elif packets == 1:
                os.write(self._tun, item[_FRONT:])
            else:
                self._write_apart(item)
                return
        except OSError as error:
            if error.errno == errno.EINVAL and packets > 1:
                self._write_apart(item)  # this kernel takes no super-packet of this kind
            else:
                self._failed(item[_FRONT:], len(item) - _FRONT, packets)
        else:
            counters["tun_packets_out"] += packets

    def _write_apart(self, item: bytes | memoryview) -> None:
        """Writes a super-packet's packets one by one. `item` is nobody else's to change."""
        try:
            whole = split.open_untrusted(bytes(item[:_FRONT]), item[_FRONT:])
        except BadSuperPacket:
            self._failed(item[_FRONT:], len(item) - _FRONT, 1)
            return
        for packet in split.split(whole) if isinstance(whole, SuperPacket) else [whole]:
            self._write(virtio.NONE + packet, 1)
