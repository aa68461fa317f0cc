"""Runs one end of a `Pulse` as a process of its own. Run by path, it needs only the standard library.

    pulse_ends.py send RATE SIZE PROGRESS SOCKET ADDRESS PORT [SOCKET ADDRESS PORT ...]
    pulse_ends.py receive PROGRESS SOCKET [SOCKET ...]
    pulse_ends.py witness

SOCKET and PROGRESS are inherited descriptors. PROGRESS is eight bytes of shared memory with the number of packets so far.
Each end runs until its standard input ends. Then it prints its measurements as one JSON object.
"""

import contextlib
import gc
import json
import mmap
import os
import select
import socket
import struct
import sys
import time

HEADER = struct.Struct("!QQ")
"""Number within its flow, time of sending (ns since 1970)."""
TIMESPEC = struct.Struct("@ll")
COUNT = struct.Struct("@Q")
SO_TIMESTAMPNS = 35
RECEIVING_FOR = 0.5
"""s without a packet after which the receiver has seen the last one."""


def go_first() -> None:
    """Precedes all other processes of the machine, if the kernel allows it: the ends' own delays must not count."""
    gc.disable()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except OSError:
        with contextlib.suppress(OSError):
            os.nice(-10)


def over() -> bool:
    """Tells whether standard input has ended."""
    return bool(select.select([0], [], [], 0)[0])


def send(rate: float, size: int, progress: mmap.mmap, flows: list[tuple[socket.socket, tuple[str, int]]]) -> object:
    """Sends one packet of each flow in turn, `rate` a second in all."""
    padding, sent, refused, interval = bytes(size - HEADER.size), 0, 0, 1 / rate
    numbers = [0] * len(flows)
    longest, last = 0.0, time.monotonic()
    due = last + interval
    while not over():
        time.sleep(max(0.0, due - time.monotonic()))
        now = time.monotonic()
        # A late sender skips the packets it owes: a burst would measure the queues.
        due = max(due + interval, now)
        which = sent % len(flows)
        opened, destination = flows[which]
        try:
            opened.sendto(HEADER.pack(numbers[which], time.time_ns()) + padding, destination)
        except OSError:
            refused += 1
            continue
        longest, last = max(longest, now - last), now
        numbers[which] += 1
        sent += 1
        progress[:] = COUNT.pack(sent)
    return {"sent": numbers, "refused": refused, "longest_gap": longest}


def receive(progress: mmap.mmap, flows: list[socket.socket]) -> object:
    """Receives until no packet has come for a while after the end of standard input."""
    arrived: list[list[tuple[int, int, int]]] = [[] for _ in flows]
    poll = select.poll()
    poll.register(0, select.POLLIN)
    which = {opened.fileno(): number for number, opened in enumerate(flows)}
    for opened in flows:
        opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        opened.setblocking(False)
        poll.register(opened, select.POLLIN)
    ending, count = False, 0
    while ready := poll.poll(RECEIVING_FOR * 1000 if ending else None):
        for descriptor, _ in ready:
            if descriptor == 0:
                poll.unregister(0)
                ending = True
                continue
            number = which[descriptor]
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet, notes, _, _ = flows[number].recvmsg(2048, 64)
                    seconds, nanoseconds = TIMESPEC.unpack(notes[0][2])
                    arrived[number].append((*HEADER.unpack_from(packet), seconds * 10**9 + nanoseconds))
                    count += 1
        progress[:] = COUNT.pack(count)
    return {"arrived": arrived}


def witness() -> object:
    """Measures how much longer than asked an idle process sleeps: the machine itself adds that to any gap."""
    longest = 0.0
    while not over():
        begun = time.monotonic()
        time.sleep(0.002)
        longest = max(longest, time.monotonic() - begun - 0.002)
    return {"longest_oversleep": longest}


def main() -> None:
    role, *arguments = sys.argv[1:]
    if role == "witness":
        json.dump(witness(), sys.stdout)
        return
    go_first()
    if role == "send":
        rate, size, shared, *rest = arguments
        flows = [
            (socket.socket(fileno=int(rest[at])), (rest[at + 1], int(rest[at + 2]))) for at in range(0, len(rest), 3)
        ]
        seen = send(float(rate), int(size), mmap.mmap(int(shared), COUNT.size), flows)
    else:
        shared, *rest = arguments
        seen = receive(mmap.mmap(int(shared), COUNT.size), [socket.socket(fileno=int(each)) for each in rest])
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
