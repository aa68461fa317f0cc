"""Sends the datagrams of the workers and of key-service through the UDP sockets.

cipher-out    ──▶ UDP     read only while the sockets have room
handshake-out ──▶ UDP
"""

import errno
import math
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from conn_service import udp
from conn_service.nesting import Undecided
from stagewire.control.confirm import Cleared
from stagewire.linux.uids import Place
from stagewire.loop import Source, boot_time
from stagewire.pipe import trains
from stagewire.pipe.contract import Frame, Handler
from stagewire.pipe.names import CIPHER_OUT, HANDSHAKE_OUT
from stagewire.pipe.speakers import speaks_for
from stagewire.process.stage import Stage
from stagewire.proto import endpoint as places
from stagewire.proto.packets.block import Block

if TYPE_CHECKING:  # it may not be built
    from stagewire.linux.udp_trains import UdpWriter, Unsent

NoteSent = Callable[[bytes, bytes, float], None]
Wait = Callable[[bytes, Sequence[bytes], float], list[tuple[bytes, Sequence[bytes]]]]


class Outbound:
    """Reads the pipes while there are sockets to send through, and keeps what a full socket has no room for."""

    def __init__(self, stage: Stage, compiled: Any) -> None:
        """Takes `linux.udp_trains`; with None, Python does all work."""
        self._stage, self._compiled = stage, compiled
        self._udp: udp.Sockets
        """The sockets in use."""
        self._writer: UdpWriter | None = None
        self._blocked: deque[tuple[bytes, Sequence[bytes], float]] = deque()
        """What a full socket has no room for, each with its birth (s)."""
        self._born = math.inf
        """When the datagrams that are being sent were born (s); infinite for those that are never too old."""
        self._marks: list[Cleared] = []
        """Marks behind `_blocked`."""
        self._pipes: tuple[Source, ...] = ()

    def set_up(self, note_sent: NoteSent, tell: Callable[[Cleared], object], wait: Wait) -> None:
        """Opens the pipes, which wait for sockets.

        `note_sent` hears of each handshake message, `tell` tells key-service of marks. `wait` keeps datagrams whose endpoint
        may lie behind itself, and returns older ones that it drops.
        """
        self._note_sent, self._tell, self._wait = note_sent, tell, wait
        stage, pipes = self._stage, self._stage.pipes
        handshakes = pipes.receiver(stage.loop, HANDSHAKE_OUT, self._on_handshake_out, stage.drop)
        cipher = pipes.receiver(stage.loop, CIPHER_OUT, self._on_cipher_out, stage.drop, of_place=self._from_place)
        self._pipes = handshakes.source, cipher.source
        self._pause()

    def listen(self, sockets: udp.Sockets) -> None:
        """Sends through these sockets from now on."""
        self._udp = sockets
        if self._compiled is not None:
            self._writer = self._compiled.UdpWriter(sockets.ready)
        self._resume()

    def stop(self) -> None:
        """Sends nothing more, and drops what waits for room."""
        self._pause()
        if self._blocked:
            self._blocked.clear()
            self._resume()
            self._tell_marks()

    def send_decided(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        """Sends datagrams that have waited for their endpoint's chain."""
        self._born = boot_time()
        self._send(endpoint, datagrams)

    def _on_handshake_out(self, frames: Sequence[Frame], now: float) -> None:
        self._born = math.inf
        for data, start, end in frames:
            try:
                endpoint, message = trains.unpack_handshake_untrusted(data, now, start, end)
            except trains.BadTrain as bad:
                self._stage.drop(bad)
                continue
            self._note_sent(message, endpoint, now)
            self._send(endpoint, [message])

    def _from_place(self, place: Place | None) -> Handler:
        return partial(self._on_cipher_out, speaker=place)

    def _on_cipher_out(self, frames: Sequence[Frame], now: float, speaker: Place | None = None) -> None:
        writer, taken = self._writer, False
        for data, start, end in frames:
            if writer is not None and not self._blocked and writer.take(data, start, end, now, trains.MAX_AGE):
                taken = True
                continue
            if writer is not None and taken:
                self._send_trains(writer)
                taken = False
            try:
                lone = trains.lone_run_untrusted(data, now, start, end)
                runs: Sequence[tuple[bytes, Sequence[bytes]]] = (
                    [(lone[0], [lone[1]])]
                    if lone is not None
                    else trains.unpack_cipher_untrusted(data, now, start, end)
                )
            except trains.BadTrain as bad:
                mark = trains.mark_untrusted(data, start, end)
                if mark is not None and speaks_for(speaker, mark[0]):
                    self._marks.append(Cleared(*mark))
                    self._tell_marks()
                elif bad.reason == "train_too_old":
                    self._drop_train(data, start, end)
                else:
                    self._stage.drop(bad)
                continue
            self._born = trains.born_of(data, start)
            for endpoint, datagrams in runs:
                self._send(endpoint, datagrams)
        if writer is not None and taken:
            self._send_trains(writer)

    def _send_trains(self, writer: "UdpWriter") -> None:
        """Sends all runs that a writer took; those that it can't send go one by one."""
        whole, in_pieces = self._udp.whole, self._udp.in_pieces
        while True:
            sent, odd = writer.send(whole, in_pieces)
            self._stage.counters["datagrams_out"] += sent
            if odd is None:
                return
            self._send_odd(odd)
            if self._blocked:
                for each in writer.rest():
                    self._send_odd(each)
                return

    def _send_odd(self, odd: "Unsent") -> None:
        endpoint, data, size, self._born = odd
        self._send(endpoint, Block(data, size))

    def _send(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        if self._blocked:
            self._keep(endpoint, datagrams)
            return
        if isinstance(datagrams, Block) and len(datagrams) > 1 and self._udp.goes_whole(datagrams.size, endpoint):
            try:
                self._udp.send_run(datagrams, endpoint)
            except BlockingIOError:
                self._hold(endpoint, datagrams)
            except Undecided:
                self._await_chain(endpoint, datagrams)
            except OSError:
                # The kernel may refuse the run or the endpoint; sending one by one shows which.
                if self._send_each(endpoint, datagrams):
                    self._udp.send_in_pieces(datagrams.size, endpoint)
                    self._stage.counters["runs_in_pieces"] += 1
            else:
                self._stage.counters["datagrams_out"] += len(datagrams)
            return
        self._send_each(endpoint, datagrams)

    def _send_each(self, endpoint: bytes, datagrams: Sequence[bytes]) -> bool:
        """Sends datagrams one by one. Returns False if the kernel refused any."""
        send, sent, refused = self._udp.send, 0, False
        for position, datagram in enumerate(datagrams):
            try:
                send(datagram, endpoint)
                sent += 1
            except BlockingIOError:
                self._hold(endpoint, datagrams[position:])
                break
            except Undecided:
                self._await_chain(endpoint, datagrams[position:])
                break
            except OSError as error:
                endpoint, refused = self._after_error(error, datagram, endpoint), True
        self._stage.counters["datagrams_out"] += sent
        return not refused

    def _after_error(self, error: OSError, datagram: bytes, endpoint: bytes) -> bytes:
        """Sends again from an address that the routing table chooses, if ours is gone; otherwise counts a loss.

        Returns the endpoint for the datagrams after it.
        """
        if error.errno in udp.STALE_SOURCE and endpoint != places.without_source(endpoint):
            named, endpoint = endpoint, places.without_source(endpoint)
            with suppress(OSError):
                self._udp.send(datagram, endpoint)
                self._udp.forget_source(named)
                self._stage.counters["datagrams_out"] += 1
                return endpoint
        self._stage.counters.note(
            "endpoint_in_own_tunnel" if error.errno == errno.ELOOP else "send_failed",
            place=places.place_of(endpoint),
            size=len(datagram),
        )
        return endpoint

    def _await_chain(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        for lost, dropped in self._wait(endpoint, _kept(datagrams), boot_time()):
            place, size = places.place_of(lost), len(dropped[0])
            self._stage.counters.note("send_failed", len(dropped), place=place, size=size)

    def _hold(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        self._keep(endpoint, datagrams)
        self._pause()
        opened = self._udp.socket_of(endpoint)
        self._stage.loop.when_writable(opened.fileno(), partial(self._on_room, opened))

    def _keep(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        self._blocked.append((endpoint, _kept(datagrams), self._born))

    def _on_room(self, opened: socket.socket, now: float) -> None:
        waiting, self._blocked = self._blocked, deque()
        self._stage.loop.when_writable(opened.fileno(), None)
        self._resume()
        for endpoint, datagrams, self._born in waiting:
            if now - self._born <= trains.MAX_AGE:
                self._send(endpoint, datagrams)
            else:
                self._drop_old(endpoint, datagrams)
        self._tell_marks()

    def _drop_train(self, data: trains.Data, start: int, end: int) -> None:
        try:
            for endpoint, datagrams in trains.unpack_cipher_untrusted(bytes(data[start:end]), -math.inf):
                self._drop_old(endpoint, datagrams)
        except trains.BadTrain as bad:  # its sender changes it meanwhile
            self._stage.drop(bad)

    def _drop_old(self, endpoint: bytes, datagrams: Sequence[bytes]) -> None:
        place, size = places.place_of(endpoint), len(datagrams[0])
        self._stage.counters.note("train_too_old", len(datagrams), place=place, size=size)

    def _tell_marks(self) -> None:
        """Tells key-service of the marks, once all before them has left."""
        while self._marks and not self._blocked:
            self._tell(self._marks.pop(0))

    def _pause(self) -> None:
        for pipe in self._pipes:
            self._stage.loop.pause(pipe)

    def _resume(self) -> None:
        for pipe in self._pipes:
            self._stage.loop.resume(pipe)


def _kept(datagrams: Sequence[bytes]) -> Sequence[bytes]:
    """Copies a run out of its train: the sender reuses the train's memory after this visit."""
    return Block(bytes(datagrams.data), datagrams.size) if isinstance(datagrams, Block) else datagrams
