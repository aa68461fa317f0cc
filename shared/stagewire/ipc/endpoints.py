"""Every pipe by name: who binds it, of what kind it is, how much it holds. The only place that says so.

A pipe is bound by the stage that reads it, inside a folder that only that stage can write; all connect who are in the
services' group. `<run>/<binder>/<pipe>`:

    device/plain-out.<n>   PULL     tun -> worker n       trains of packets
    conn/cipher-out        PULL     workers -> conn       trains of datagrams
    device/cipher-in.<n>   PULL     conn -> worker n      trains of datagrams
    tun/plain-in           PULL     workers -> tun        trains of packets
    key/handshake-in       PULL     conn -> key           messages of type 1 to 3, with their source
    conn/handshake-out     PULL     key -> conn           the same, with their destination
    key/control            ROUTER   every stage <-> key   `control`
    key/sessions           (SEQPACKET, see `handover`)    session keys
    status/telemetry       PULL     every stage -> status counters
    status/query           REP      the command line      a snapshot of them

Limits: high-water marks are small, because what waits in a pipe is delay (1,000 messages, the default, held 1.5 s of
packets when a stage stalled). `ZMQ_IMMEDIATE`: nothing is queued for a reader that isn't there, or it would be delivered
late when it is. A restarted reader is found again within milliseconds.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq

from stagewire import privileges

DATA_HIGH_WATER: Final = 4
"""Trains on each side of a data pipe."""
HANDSHAKE_HIGH_WATER: Final = 64
CONTROL_HIGH_WATER: Final = 4096
MAX_TRAIN: Final = 256 * 1024
"""Bytes; `trains.MAX_FRAME` of packets and their headers. ZeroMQ cuts the line of who sends more."""
MAX_CONTROL: Final = 8 * 1024 * 1024
"""Bytes; the longest is a peer with 130,560 prefixes."""
RECONNECT_MS: Final = 1
RECONNECT_MAX_MS: Final = 100
_MAX_PATH: Final = 107

PLAIN_OUT: Final = "device/plain-out"
CIPHER_OUT: Final = "conn/cipher-out"
CIPHER_IN: Final = "device/cipher-in"
PLAIN_IN: Final = "tun/plain-in"
HANDSHAKE_IN: Final = "key/handshake-in"
HANDSHAKE_OUT: Final = "conn/handshake-out"
CONTROL: Final = "key/control"
SESSIONS: Final = "key/sessions"
TELEMETRY: Final = "status/telemetry"
STATUS_QUERY: Final = "status/query"

_HIGH_WATER: Final = {
    HANDSHAKE_IN: HANDSHAKE_HIGH_WATER,
    HANDSHAKE_OUT: HANDSHAKE_HIGH_WATER,
    CONTROL: CONTROL_HIGH_WATER,
    TELEMETRY: 64,
    STATUS_QUERY: 16,
}
_MAX_MESSAGE: Final = {CONTROL: MAX_CONTROL, TELEMETRY: MAX_CONTROL, STATUS_QUERY: MAX_CONTROL}


@dataclass(frozen=True, slots=True)
class Pipes:
    """Opens the pipes of one interface. `run` is its folder."""

    context: "zmq.Context[zmq.Socket[bytes]]"
    run: Path

    def path(self, pipe: str, number: int | None = None) -> Path:
        """Where a pipe is; `number` is the worker's, for pipes that each worker has."""
        path = self.run / (pipe if number is None else f"{pipe}.{number}")
        if len(os.fsencode(path)) > _MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, f"{path}: longer than a Unix socket's name may be; set STAGEWIRE_RUN_DIR")
        return path

    def bind(self, kind: int, pipe: str, number: int | None = None) -> "zmq.Socket[bytes]":
        """The reading end."""
        socket = self._socket(kind, pipe)
        socket.bind(f"ipc://{self.path(pipe, number)}")
        return socket

    def connect(self, kind: int, pipe: str, number: int | None = None, routing_id: bytes = b"") -> "zmq.Socket[bytes]":
        """The other end. It needn't be there yet, and may come and go. A ROUTER knows it by `routing_id`."""
        socket = self._socket(kind, pipe)
        if routing_id:
            socket.set(zmq.ROUTING_ID, routing_id)
        socket.set(zmq.IMMEDIATE, 1)
        socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.connect(f"ipc://{self.path(pipe, number)}")
        return socket

    def _socket(self, kind: int, pipe: str) -> "zmq.Socket[bytes]":
        socket = self.context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, _HIGH_WATER.get(pipe, DATA_HIGH_WATER))
        socket.set(zmq.RCVHWM, _HIGH_WATER.get(pipe, DATA_HIGH_WATER))
        socket.set(zmq.MAXMSGSIZE, _MAX_MESSAGE.get(pipe, MAX_TRAIN))
        if kind == zmq.ROUTER:
            socket.set(zmq.ROUTER_MANDATORY, 1)
            socket.set(zmq.ROUTER_HANDOVER, 1)
        return socket


def prepare_folders(run: Path, stage: str) -> None:
    """Makes the interface's folder and `stage`'s own in it; as root they get their owners and modes."""
    privileges.make_folder(run, None, 0o710)
    privileges.make_folder(run / stage, stage, 0o710)
