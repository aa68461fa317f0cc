"""`stagewire INTERFACE`: stands in for `wireguard-go INTERFACE`, for wg-quick and whatever else starts one.

Makes the TUN device, runs the services without a configuration file, returns once the `wg` socket answers. The process
that stays behind is the keeper: it holds a second descriptor of the device, so that a tun-service that is restarted finds
it again even when it was moved to another network namespace; and it ends everything when the device or the socket is
deleted.
"""

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from stagewire import privileges, tun
from stagewire.environment import Environment
from stagewire_cli import bring_up
from stagewire_cli.bring_up import Failed
from stagewire_cli.supervision import Supervision

_LOOK_MS = 200
_MTU = 1420
"""As wireguard-go makes it; wg-quick and others set their own."""
_SOCKET_GONE_AFTER = 3.0
"""s without the `wg` socket: a restart of key-service, which makes it anew, takes two at most."""


def run(environment: Environment, *, foreground: bool) -> None:
    """Starts an interface without a configuration. Raises Failed, having left nothing behind."""
    environment = replace(environment, managed=False)
    if Supervision(environment).pid() is not None:
        raise Failed(f"{environment.interface} is up already")
    if foreground:
        _keep(environment, ready=None)
        return
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_daemon()
        _report(environment, writer)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    if said != "ready":
        raise Failed(said or "the keeper died")


def _become_daemon() -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.chdir("/")


def _report(environment: Environment, writer: int) -> None:
    """In the child: tells the parent how it went, and stays."""
    try:
        _keep(environment, writer)
    except Failed as failed:
        os.write(writer, str(failed).encode())
    except BaseException as error:  # noqa: BLE001 - the parent is waiting for a word, whatever it is
        with suppress(OSError):
            os.write(writer, f"the keeper failed: {error}".encode())
    os._exit(0)


def _keep(environment: Environment, ready: int | None) -> None:
    try:
        device = tun.open_clone()
        uid = privileges.uid_of("tun")
        tun.attach(device, environment.interface, uid, persistent=False, offload=environment.offload)
    except tun.TunUnavailable as unavailable:
        raise Failed(str(unavailable)) from None
    subprocess.run(
        ["ip", "link", "set", "dev", environment.interface, "mtu", str(_MTU)], capture_output=True, check=False
    )
    bring_up.prepare(environment)
    with _signals() as wakeup, _Lender(environment.run, device) as lender:
        bring_up.start_and_wait(environment, lender.look)
        if ready is not None:
            os.write(ready, b"ready")
            os.close(ready)
        try:
            _watch(environment, device, lender, wakeup)
        finally:
            os.close(device)
            bring_up.stop(environment)


@contextmanager
def _signals() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(-1)


class _Lender:
    """Where tun-service, while it is still root, gets a copy of the device's descriptor."""

    def __init__(self, run: Path, device: int) -> None:
        """Raises OSError."""
        self._path = run / tun.LENDER
        self._device = device
        self._listener = self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def look(self) -> None:
        """Lends to who has asked, and listens anew when the run folder was wiped."""
        with suppress(OSError):
            if not self._path.exists():
                privileges.make_folder(self._path.parent, None, 0o710)
                standing, self._listener = self._listener, self._listen()
                standing.close()
            connection, _ = self._listener.accept()
            with connection:
                socket.send_fds(connection, [b"\0"], [self._device])

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(before)
        listener.listen(8)
        return listener

    def fileno(self) -> int:
        """To be polled; another after the folder was wiped."""
        return self._listener.fileno()


def _watch(environment: Environment, device: int, lender: _Lender, wakeup: socket.socket) -> None:
    """Returns when the device, the socket or supervisord is gone, or when told to end."""
    path = environment.wg / f"{environment.interface}.sock"
    seen = time.monotonic()
    while True:
        poll = select.poll()
        poll.register(device, 0)  # only its end: its packets are tun-service's
        poll.register(lender, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        ready = dict(poll.poll(_LOOK_MS))
        if device in ready or wakeup.fileno() in ready:
            return
        lender.look()
        if Supervision(environment).pid() is None:
            return
        if path.exists():
            seen = time.monotonic()
        elif time.monotonic() - seen > _SOCKET_GONE_AFTER:
            return
