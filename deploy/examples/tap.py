#!/usr/bin/env python3
"""Prints each train that goes through a pipe of a running gateway; docs/PIPES.md explains trains.

    python3 tap.py /run/stagewire/wg0/device/plain-out.0        as root; Ctrl-C ends it
    stagewire restart tun wg0                                   makes the sender connect anew, now to the tap

The tap moves the reader's socket aside, listens in its place, and forwards all. At the end it moves the socket back.
"""

import os
import signal
import struct
import sys
import time
from pathlib import Path

import zmq

HEADER = struct.Struct("<BBBxId")  # version, kind, offloads, count, birth in s of CLOCK_BOOTTIME
KINDS = {1: "packets", 2: "runs of datagrams", 3: "handshake message"}


def main(path: Path) -> None:
    """Taps one pipe until a signal comes, or its reader goes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    behind = path.rename(path.with_name(f"{path.name}.behind"))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    pull.hwm = push.hwm = 4  # a long queue would only add delay
    push.immediate = True  # no train waits for an absent reader
    push.sndtimeo = 1000
    push.connect(f"ipc://{behind}")
    pull.bind(f"ipc://{path}")
    mine = path.stat().st_ino
    os.chown(path, behind.stat().st_uid, behind.stat().st_gid)
    path.chmod(0o660)
    try:
        while True:
            push.send(train := pull.recv())
            _, kind, _, count, born = HEADER.unpack_from(train)
            age = time.clock_gettime(time.CLOCK_BOOTTIME) - born
            print(f"{path.name}: {count} {KINDS.get(kind)}, {len(train)} bytes, {age * 1e3:.1f} ms old", flush=True)
    except KeyboardInterrupt:
        pass
    except zmq.Again:
        print(f"{path}: its reader took no train for 1 s, so the tap ends", file=sys.stderr)
    finally:
        context.destroy(linger=0)
        if path.exists() and path.stat().st_ino != mine:
            behind.unlink()  # a new reader listens at the path itself
        else:
            behind.rename(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
