"""Has a peer's home worker copy packets, for `stagewire capture`, and passes them on to a file, a pipe or standard output.

The worker gets the writing end of a pipe and never waits, so a slow or full disk costs captured packets alone. If the peer
moves to another worker, or its worker dies, the capture goes on there, in another section of the file.
"""

import errno
import fcntl
import math
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Final

from stagewire.config import decode_key
from stagewire.config.peer_names import NotFoundError, find, label
from stagewire.control import capture, query
from stagewire.control.capture import Order, Progress
from stagewire.control.codec import BadControl
from stagewire.environment import Environment
from stagewire.linux import descriptors, uids
from stagewire.linux.peer_credentials import peer_uid
from stagewire.pipe.names import CAPTURE
from stagewire.proto.packets import fields
from stagewire_cli.failures import Failed, NotUp

PROTOCOLS: Final = {"tcp": (fields.TCP,), "udp": (fields.UDP,), "icmp": (fields.ICMP, fields.ICMPV6)}
_PIPE: Final = 1 << 20
"""Bytes that may wait between the worker and this command."""
_READ: Final = 1 << 16
_AWAY: Final = 15.0
"""s in which a peer must be at home in a worker again."""
_RETRY: Final = 0.2
_BY_OPERATOR: Final = "you ended it"
_SILENT: Final = 5.0
"""s without a word from the worker after which it counts as gone."""
_LENGTH: Final = slice(4, 8)
"""Where a block's length stands (`device_service.pcapng`)."""
_PACKET: Final = b"\x06\x00\x00\x00"
"""How the block of a packet begins."""
_LEAST_BLOCK: Final = 12
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_BLOCK: Final = 1 << 17
"""Bytes; a packet has half as many."""


@dataclass(slots=True)
class Sum:
    """Adds up what all workers have captured."""

    packets: int = 0
    size: int = 0
    missed: int = 0
    away: float = 0.0
    """s in which the peer had no worker that captures."""
    why: str = ""
    """Why the capture ended."""

    def told(self) -> str:
        """Tells what was captured, and what was not."""
        gap = f", and what passed in {self.away:.1f} s while the peer had no worker" if self.away else ""
        return f"captured {self.packets:,} packets, missed {self.missed:,}{gap}; ended as {self.why}"


class _Ended(Exception):  # noqa: N818 - it is how a capture ends
    """Ends a capture at the operator's second signal, wherever it hangs."""


class _Stop:
    """Notes the operator's first signal, which `descriptor` tells of: a block that is being written is still finished."""

    def __init__(self) -> None:
        self.asked = False
        self.descriptor, self._bell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise _Ended
        self.asked = True
        os.write(self._bell, b"!")

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {each: signal.signal(each, self) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
            os.close(self.descriptor)
            os.close(self._bell)


def filtered(hosts: tuple[str, ...], ports: tuple[int, ...], protocols: tuple[str, ...]) -> Order:
    """Returns an order with a filter alone. Raises Failed for a value that makes no sense."""
    numbers: list[int] = []
    for each in protocols:
        if each.lower() not in PROTOCOLS and not (each.isdecimal() and int(each) < 256):
            raise Failed(f"--protocol {each}: give tcp, udp, icmp, or a number up to 255")
        numbers += PROTOCOLS.get(each.lower()) or (int(each),)
    if ports and numbers and not {fields.TCP, fields.UDP} & {*numbers}:
        raise Failed("--port is about tcp and udp alone, which --protocol leaves out")
    try:
        packed = tuple(ip_address(each).packed for each in hosts)
    except ValueError as error:
        raise Failed(f"--host {error}") from None
    if max(len(packed), len(ports), len(numbers)) > capture.MAX_VALUES:
        raise Failed(f"a filter has {capture.MAX_VALUES} values of a kind at most")
    return Order(b"", False, packed, ports, tuple(numbers), 0, 0.0, _by())


def _by() -> str:
    return os.environ.get("SUDO_USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}"


# --- the output ---------------------------------------------------------------------------------------------


@contextmanager
def opened(output: str, tell: Callable[[str], None]) -> Iterator[int]:
    """Opens a new file for root alone, an existing pipe, or with `-` standard output. Raises Failed.

    A new file goes again if the capture fails before it begins: a second try finds no file in its place. `tell` hears that
    a pipe has no reader yet.
    """
    if output == "-":
        if sys.stdout.isatty():
            raise Failed("standard output is a terminal: name a file, or put `| wireshark -k -i -` behind the command")
        yield 1
        return
    path = Path(output)
    try:
        special = path.exists() and not path.is_file()
        descriptor = _special(path, tell) if special else os.open(path, _NEW, 0o600)
    except FileExistsError:
        raise Failed(f"{output} exists already, and stays as it is; nothing is captured") from None
    except OSError as error:
        raise Failed(f"{output}: {error.strerror}; nothing is captured") from None
    try:
        yield descriptor
    except Failed:
        if not special and not os.fstat(descriptor).st_size:
            with suppress(OSError):
                path.unlink()
        raise
    finally:
        os.close(descriptor)


def _special(path: Path, tell: Callable[[str], None]) -> int:
    """Opens what is no file. A named pipe may have to wait for its reader. Raises Failed and OSError."""
    mode = path.stat().st_mode
    for is_kind, kind in ((stat.S_ISBLK, "a block device"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder")):
        if is_kind(mode):
            raise Failed(f"{path} is {kind}: name a file or a pipe; nothing is captured")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO or not stat.S_ISFIFO(mode):
            raise
        tell(f"{path} has no reader yet; waits for one")
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    return descriptor


class Output:
    """Passes whole blocks on, so that a file never ends in the middle of one."""

    def __init__(self, descriptor: int, name: str, most: int) -> None:
        """Takes `most` bytes and a little more: each section has some blocks without packets."""
        self._descriptor, self._name, self._most = descriptor, name, most + _MOST_BLOCK
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._pending = bytearray()
        self._written = 0
        self.packets = 0
        """Packets that were passed on."""

    def take(self, data: bytes) -> None:
        """Takes what the worker wrote. Raises Failed if the output takes no more, BrokenPipeError if nobody reads it."""
        self._pending += data
        end, packets = 0, 0
        while len(self._pending) - end >= _LEAST_BLOCK:
            length = int.from_bytes(self._pending[end + _LENGTH.start : end + _LENGTH.stop], "little")
            if not _LEAST_BLOCK <= length <= _MOST_BLOCK:
                raise Failed("the worker has written what is no pcapng")
            if end + length > len(self._pending):
                break
            packets += self._pending[end : end + _LENGTH.start] == _PACKET
            end += length
        whole = bytes(self._pending[:end])
        del self._pending[:end]
        if self._written + end > self._most:
            raise Failed("the worker writes more than was ordered")
        self._write(whole)
        self.packets += packets

    def begin_anew(self) -> None:
        """Forgets the rest of a block that a worker has left unfinished."""
        self._pending.clear()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._is_file:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._written)
            raise Failed(f"{self._name}: {error.strerror}; what was captured before is whole") from None
        self._written += len(data)


# --- the capture --------------------------------------------------------------------------------------------


def run(environment: Environment, text: str, order: Order, output: Output, ends: int) -> tuple[str, Sum]:
    """Captures until a limit is reached, the reader is gone or the operator ends it. Returns the peer's label and the sum.

    `ends` is the output's descriptor, whose reader may go away. Raises Failed.
    """
    uids.look(environment)
    public_key, shown = peer(environment, text)
    total, until = Sum(), time.monotonic() + order.seconds
    order = replace(order, public_key=decode_key(public_key), of=shown)
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with suppress(OSError):  # more than this user may have
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE)
    stop, silent_since = _Stop(), math.inf
    try:
        with stop.listening():
            while not total.why and time.monotonic() < until + _SILENT:
                left = replace(order, seconds=max(0.1, until - time.monotonic()), most=max(1, order.most - total.size))
                with _ordered(environment, public_key, left, writing, stop) as line:
                    total.away += max(0.0, time.monotonic() - silent_since)
                    silent_since = math.inf
                    silent_since = _follow(line, reading, output, ends, total, stop, until)
            total.why = total.why or "its time is over"
    except _Ended:
        total.why = _BY_OPERATOR
        total.away += max(0.0, time.monotonic() - silent_since)
    except BrokenPipeError:
        total.why = "its reader is gone"
    finally:
        os.close(reading)
        os.close(writing)
    total.packets = output.packets
    return shown, total


def peer(environment: Environment, text: str) -> tuple[str, str]:
    """Returns the peer's public key and its label. Raises Failed."""
    status = query.key_service(environment)
    if status is None:
        raise NotUp(environment.interface) if not environment.run.exists() else Failed("key-service does not answer")
    names = {peer.public_key: peer.name for peer in status.peers}
    try:
        public_key = find(text, names)
    except NotFoundError as error:
        raise Failed(str(error)) from None
    return public_key, label(public_key, names[public_key])


def _ordered(environment: Environment, public_key: str, order: Order, pipe: int, stop: _Stop) -> socket.socket:
    """Orders the capture from the peer's home worker, once there is one, and returns the connection. Raises Failed."""
    deadline, why = time.monotonic() + _AWAY, "key-service does not answer"
    while time.monotonic() < deadline:
        if stop.asked:
            raise _Ended
        status = query.key_service(environment)
        if status is None:
            time.sleep(_RETRY)
            continue
        home = next((peer.worker for peer in status.peers if peer.public_key == public_key), None)
        if home is None:
            raise Failed("the peer was removed")
        try:
            line = _connected(environment, home)
            socket.send_fds(line, [capture.TO_WORKER.pack(order)], [pipe])
            if (first := _said(line, _SILENT)) is not None and first.ended != capture.NOT_HERE:
                if first.ended:
                    raise Failed(f"nothing is captured: {first.ended}")
                return line
            line.close()
            why = f"worker {home} does not have the peer yet"
        except OSError as error:
            why = f"worker {home}: {error.strerror}"
        time.sleep(_RETRY)
    raise Failed(why)


def _connected(environment: Environment, worker: int) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptors.allow(line, allowed=False)
    try:
        line.connect(str(environment.run / f"{CAPTURE.path}.{worker}"))
        if peer_uid(line) not in (0, uids.uid_of("device", worker)):
            raise PermissionError(0, "another process listens in its place")
    except OSError:
        line.close()
        raise
    return line


def _said(line: socket.socket, patience: float) -> Progress | None:
    """Returns what the worker says next; None if it is gone, or says nothing that makes sense in time."""
    if not select.select([line], [], [], patience)[0]:
        return None
    try:
        return capture.FROM_WORKER.unpack_untrusted(line.recv(capture.MAX_MESSAGE))
    except (OSError, BadControl):
        return None


def _follow(
    line: socket.socket, reading: int, output: Output, ends: int, total: Sum, stop: _Stop, until: float
) -> float:
    """Passes on what one worker captures, until that ends. Returns since when (s) it may have captured nothing."""
    before = Sum(size=total.size, missed=total.missed)
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(reading, select.POLLIN)
    poll.register(ends, 0)  # tells of a reader that is gone
    poll.register(stop.descriptor, select.POLLIN)
    heard = time.monotonic()
    while time.monotonic() < min(heard, until) + _SILENT:
        ready = dict(poll.poll(1000))
        if reading in ready:
            _pass_on(reading, output)
        if ready.get(ends, 0) & select.POLLERR:
            raise BrokenPipeError
        if stop.descriptor in ready:
            poll.unregister(stop.descriptor)
            line.shutdown(socket.SHUT_WR)  # the worker then writes its last words
        if line.fileno() in ready:
            said = _said(line, 0)
            if said is None:
                heard = time.monotonic()  # it captured until it died
                break
            moved = said.ended == capture.NOT_HERE  # the peer went before the worker looked
            heard = heard if moved else time.monotonic()
            total.size, total.missed = before.size + said.size, before.missed + said.missed
            if said.ended:
                total.why = "" if moved else said.ended
                break
    if stop.asked:
        total.why = _BY_OPERATOR
    while _pass_on(reading, output):
        pass
    output.begin_anew()
    return heard


def _pass_on(reading: int, output: Output) -> bool:
    """Passes on what the pipe has; tells whether it had anything."""
    try:
        data = os.read(reading, _READ)
    except BlockingIOError:
        return False
    output.take(data)
    return bool(data)
