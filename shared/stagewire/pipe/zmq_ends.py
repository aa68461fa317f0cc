"""Opens one end of a pipe by ZeroMQ, with the limits that `names` lists. A command connects by this alone."""

import errno
import os
from pathlib import Path
from typing import Final

import zmq

from stagewire.pipe.names import Limits, Pipe

RECONNECT_MS: Final = 1
RECONNECT_MAX_MS: Final = 8
"""Each further attempt comes twice as late as the one before, and may be late by as much."""
WELCOME_MS: Final = 1000
"""A spare holds the listening socket but welcomes nobody, which must not be for ever; ZeroMQ's own limit is 30 s."""
_MAX_PATH: Final = 107


def path(run: Path, pipe: Pipe, number: int | None = None) -> Path:
    """Returns a pipe's socket; `number` is the worker's, for a pipe that each worker has."""
    if pipe.per_worker != (number is not None):
        raise ValueError(f"{pipe}: {'needs' if pipe.per_worker else 'has no'} worker's number")
    found = run / (pipe.path if number is None else f"{pipe}.{number}")
    if len(os.fsencode(found)) > _MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"{found}: longer than a Unix socket's name may be; set STAGEWIRE_RUN_DIR")
    return found


def limits(pipe: Pipe) -> Limits:
    """Returns how much a pipe holds."""
    if pipe.limits is None:
        raise ValueError(f"{pipe}: not a pipe of ZeroMQ's")
    return pipe.limits


def opened(context: "zmq.Context[zmq.Socket[bytes]]", pipe: Pipe, kind: int | None) -> "zmq.Socket[bytes]":
    """Makes a socket that is not yet bound or connected."""
    bounds = limits(pipe)
    if kind is None:
        raise ValueError(f"{pipe}: not a pipe of ZeroMQ's")
    socket = context.socket(kind)
    socket.set(zmq.LINGER, 0)
    binds = kind == pipe.kind.binds
    socket.set(zmq.SNDHWM, bounds.high_water)
    socket.set(zmq.RCVHWM, (bounds.inward_high_water if binds else 0) or bounds.high_water)
    socket.set(zmq.MAXMSGSIZE, (bounds.inward if binds else 0) or bounds.message)
    if kind == zmq.ROUTER:
        socket.set(zmq.ROUTER_MANDATORY, 1)
    return socket


def connect(
    context: "zmq.Context[zmq.Socket[bytes]]",
    run: Path,
    pipe: Pipe,
    number: int | None = None,
    *,
    announced: bool = False,
) -> "zmq.Socket[bytes]":
    """Opens the end that connects. The binder needn't be there yet, and may come and go.

    `announced`: each new binder gets an empty message at once (zmq_setsockopt(3), ZMQ_PROBE_ROUTER).
    """
    socket = opened(context, pipe, pipe.kind.connects)
    # Otherwise libzmq queues for a reader that isn't there, and delivers late when it is.
    socket.set(zmq.IMMEDIATE, 1)
    socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
    socket.set(zmq.HANDSHAKE_IVL, WELCOME_MS)
    if announced:
        socket.set(zmq.PROBE_ROUTER, 1)
    socket.connect(f"ipc://{path(run, pipe, number)}")
    return socket
