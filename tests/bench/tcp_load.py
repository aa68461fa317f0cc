"""Sends TCP to many addresses at once, one connection each, which iperf3 cannot: each end is a process of its own.

python -m tests.bench.tcp_load sink PORT                           reads until SIGTERM, then prints JSON
python -m tests.bench.tcp_load source PORT SECONDS DESTINATION…    fills every connection
"""

import json
import selectors
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from typing import Final

BLOCK: Final = 1 << 17


def sink(port: int) -> dict[str, list[float]]:
    """Counts the bytes received in each second, all connections together, and the bytes of each connection."""
    stopped = [False]
    signal.signal(signal.SIGTERM, lambda *_: stopped.__setitem__(0, True))
    watch, buffer = selectors.DefaultSelector(), bytearray(BLOCK)
    listener = socket.create_server(("", port), backlog=256)
    watch.register(listener, selectors.EVENT_READ)
    print("ready", flush=True)
    seconds: dict[int, float] = {}
    by_connection: dict[socket.socket, float] = {}
    while not stopped[0]:
        for key, _ in watch.select(0.1):
            if key.fileobj is listener:
                accepted, _ = listener.accept()
                watch.register(accepted, selectors.EVENT_READ)
                by_connection[accepted] = 0.0
                continue
            assert isinstance(key.fileobj, socket.socket)
            size = _receive(key.fileobj, buffer)
            if not size:
                watch.unregister(key.fileobj)
                continue
            by_connection[key.fileobj] += size
            second = int(time.monotonic())
            seconds[second] = seconds.get(second, 0.0) + size
    for opened in (listener, *by_connection):
        opened.close()
    counted = [seconds[second] for second in sorted(seconds)]
    return {"seconds": counted, "connections": list(by_connection.values())}


def _receive(opened: socket.socket, buffer: bytearray) -> int:
    try:
        return opened.recv_into(buffer)
    except OSError:  # a sender that ended has reset the connection
        return 0


def source(port: int, seconds: float, destinations: list[str]) -> None:
    """Keeps every connection full."""
    block, end = bytes(BLOCK), time.monotonic() + seconds
    with ExitStack() as stack:
        watch = stack.enter_context(selectors.DefaultSelector())
        for destination in destinations:
            opened = stack.enter_context(socket.create_connection((destination, port), timeout=10))
            opened.setblocking(False)
            watch.register(opened, selectors.EVENT_WRITE)
        while time.monotonic() < end:
            for key, _ in watch.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                with suppress(BlockingIOError):
                    key.fileobj.send(block)


def main(arguments: list[str]) -> None:
    role, port, *rest = arguments
    if role == "sink":
        print(json.dumps(sink(int(port))), flush=True)
    else:
        source(int(port), float(rest[0]), rest[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
