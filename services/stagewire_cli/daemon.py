"""Makes a bare interface, for `stagewire INTERFACE`, which stands in for `wireguard-go INTERFACE`.

Makes the TUN device, runs the services without a configuration file, and returns when the `wg` socket answers. The keeper
stays behind. It holds a second descriptor of the device for the next tun-service, also after a move to another network
namespace. It ends everything when the device or the socket is deleted.
"""

import fcntl
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from stagewire.environment import Environment
from stagewire.limits import DEFAULT_MTU
from stagewire.linux import privileges, tun, uids
from stagewire.linux.uids import UidsRefused
from stagewire.process import holders, signals, slots
from stagewire.process.holders import Presence
from stagewire_cli import bring_up, ending, kernels, predecessors, turn, wg_file
from stagewire_cli.failures import Failed
from stagewire_cli.supervision import Supervision
from stagewire_cli.wg_file import WgFile

_LOOK: Final = 0.2
"""s between two looks for a wiped run folder."""
_LOOK_AT_MOVED: Final = 0.1
"""s between two looks at a device in another network namespace, whose end no netlink message tells us."""
_SOCKET_GONE_AFTER: Final = 3.0
"""s without the `wg` socket while key-service is away: its restart, which makes the socket anew, is shorter."""
_SURELY_GONE_AFTER: Final = 0.03
"""s without the socket while the key-service that made it is at work: the operator must have deleted it."""
_LINKS: Final = 1
"""RTMGRP_LINK, of rtnetlink(7)."""
_HEARD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGIO)
"""Signals that wake the keeper."""


class _ToldToEnd(Failed):
    """Says that a signal ended the interface before it was ready."""


def run(environment: Environment, warn: Callable[[str], None], *, foreground: bool) -> None:
    """Starts an interface without a configuration. Raises Failed and leaves nothing behind."""
    kernels.refuse_unloadable(environment)
    environment = bring_up.on_this_host(replace(environment, managed=False), warn)
    if foreground:
        with suppress(_ToldToEnd):  # as wireguard-go ends, whenever the signal comes
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
        raise Failed(said or "its keeper died before all services were ready; start it again")


def _become_daemon() -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.chdir("/")


def _report(environment: Environment, writer: int) -> None:
    """Keeps the interface, in the child process; tells the parent through a pipe when all is ready, or what failed."""
    try:
        _keep(environment, writer)
    except Failed as failed:
        os.write(writer, str(failed).encode())
    except BaseException as error:  # noqa: BLE001 - the parent waits for an answer, also after a bug
        with suppress(OSError):
            os.write(writer, f"the keeper failed: {error}".encode())
    os._exit(0)


def _keep(environment: Environment, ready: int | None) -> None:
    with ExitStack() as stack:
        # First, so that a signal during the start is heard.
        wakeup = stack.enter_context(_signals())
        with predecessors.start(environment, bring_up.stop):
            device = _open_device(environment)
            stack.callback(_close, device)
            try:
                keeper = _start(environment, device, wakeup, stack)
            except BaseException:
                bring_up.stop(environment)
                raise
        if ready is not None:
            os.write(ready, b"ready")
            os.close(ready)
        keeper.watch()
        keeper.end()


def _open_device(environment: Environment) -> int:
    device = -1
    try:
        uids.claim(environment, afresh=True)
        device = tun.open_clone()
        uid = privileges.uid_of("tun")
        tun.attach(device, environment.interface, uid, persistent=False, offload=environment.offload)
    except (tun.TunUnavailable, UidsRefused) as refused:
        _close(device)
        uids.give_up(environment)
        raise Failed(str(refused)) from None
    subprocess.run(
        ["ip", "link", "set", "dev", environment.interface, "mtu", str(DEFAULT_MTU)], capture_output=True, check=False
    )
    return device


def _close(device: int) -> None:
    with suppress(OSError):  # the keeper's `end` has closed it
        os.close(device)


def _start(environment: Environment, device: int, wakeup: socket.socket, stack: ExitStack) -> "_Keeper":
    bring_up.prepare(environment)
    presence = Presence(environment.run, holders.KEEPER)
    lender = stack.enter_context(_Lender(environment.run, device))

    def meanwhile() -> None:
        lender.look()
        if select.select([wakeup], [], [], 0)[0]:
            raise _ToldToEnd("a signal ended it before it was ready")
        if not tun.is_attached(device):
            raise Failed("its device was deleted before it was ready")

    bring_up.start_and_wait(environment, meanwhile)
    return _Keeper(environment, device, lender, wakeup, presence)


@contextmanager
def _signals() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        for number in _HEARD:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(-1)
            # Python's own end would restore the default action, and a late signal would kill us.
            for number in _HEARD:
                signal.signal(number, signal.SIG_IGN)


class _Lender:
    """Lends the device's descriptor to a tun-service that is still root, through a socket in the run folder."""

    def __init__(self, run: Path, device: int) -> None:
        self._path = run / tun.LENDER
        self._device = device
        self._listener = self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def look(self) -> None:
        """Lends the device to a process that asks, and listens anew in a wiped run folder."""
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
        self._inode = self._path.stat().st_ino
        return listener

    def fileno(self) -> int:
        """Returns the listener's descriptor, which changes when the folder was wiped."""
        return self._listener.fileno()

    def is_anothers(self) -> bool:
        """Says whether another keeper has taken our place."""
        try:
            return self._path.stat().st_ino != self._inode
        except OSError:
            return False


class _Keeper:
    """Waits for the interface's end, and then ends all its processes."""

    def __init__(
        self, environment: Environment, device: int, lender: _Lender, wakeup: socket.socket, presence: Presence
    ) -> None:
        """Begins when all stages are at work. Raises Failed."""
        self._environment = environment
        self._device = device
        self._lender = lender
        self._wakeup = wakeup
        self._presence = presence
        self._socket = _SocketWatch(environment)
        self._links = _listen_for_links()
        self._supervisord = Supervision(environment).pid() or 0
        try:
            self._process = os.pidfd_open(self._supervisord)
        except OSError:
            raise Failed("supervisord has ended; its log says why") from None

    def watch(self) -> None:
        """Returns when the device, the socket or supervisord is gone, or when told to end; goes first from then on."""
        # No command waits for us when the device is deleted, and the next program may want the UDP port at once.
        privileges.go_first()
        poll = select.poll()
        for source in (self._wakeup, self._links, self._process):
            poll.register(source, select.POLLIN)
        listener = -1
        while tun.is_attached(self._device):
            if listener != self._lender.fileno():
                if listener >= 0:
                    poll.unregister(listener)
                listener = self._lender.fileno()
                poll.register(listener, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(self._patience() * 1000)}
            if self._process in ready or (self._wakeup.fileno() in ready and _is_told(self._wakeup)):
                return
            _drain(self._links)
            if self._socket.is_gone(time.monotonic()):
                return
            with suppress(OSError):
                self._lender.look()
                if not self._presence.in_place():
                    self._presence.renew()

    def _patience(self) -> float:
        if self._socket.is_missing:
            return _SURELY_GONE_AFTER
        try:
            socket.if_nametoindex(self._environment.interface)
        except OSError:
            return _LOOK_AT_MOVED
        return _LOOK

    def end(self) -> None:
        """Ends our supervisord at once, and in our turn all that is left. Raises Failed."""
        with suppress(OSError):
            Presence(self._environment.run, holders.GOING)
        if self._socket.file is not None:
            self._socket.file.remove()
        if not self._has_ended():
            ending.let_write(self._environment)
            ending.kill_with_children(self._supervisord, self._process)
        privileges.stop_going_first()
        os.close(self._device)
        with turn.take(self._environment, unless=self._is_over) as ours:
            if ours:
                bring_up.stop(self._environment)

    def _has_ended(self) -> bool:
        return signals.wait([self._process], 0)

    def _is_over(self) -> bool:
        """Says whether a command has ended our interface already, and may have started a new one."""
        return self._has_ended() and (not self._environment.run.exists() or self._lender.is_anothers())


class _SocketWatch:
    """Notices when an operator deletes the `wg` socket, but not when a restarted key-service makes it anew."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._path = wg_file.path_of(environment)
        self.file: WgFile | None = None
        """The socket that was seen last."""
        self._seen: os.stat_result | None = None
        self._missing_since: float | None = None
        _tell_of_changes(self._path.parent)
        self.is_gone(time.monotonic())

    @property
    def is_missing(self) -> bool:
        """Says whether the last look found no socket."""
        return self._missing_since is not None

    def is_gone(self, now: float) -> bool:
        """Looks for the socket; says whether it is deleted for good. Hot."""
        try:
            found = self._path.stat()
        except OSError:
            self._missing_since = self._missing_since or now
            missing = now - self._missing_since
            return missing > _SOCKET_GONE_AFTER or (missing >= _SURELY_GONE_AFTER and self._maker_is_at_work())
        self._missing_since = None
        if self._seen is None or not os.path.samestat(found, self._seen):
            self._seen, self.file = found, WgFile(self._environment)
        return False

    def _maker_is_at_work(self) -> bool:
        at_work = slots.held(self._environment.run).get(("key", 0))
        return self.file is not None and self.file.is_ours and self.file.server == at_work


def _tell_of_changes(folder: Path) -> None:
    """Asks for SIGIO, which wakes us, when a name appears in a folder or goes (fcntl(2), F_NOTIFY)."""
    with suppress(OSError):  # a kernel may lack this; the keeper looks regularly anyway
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.fcntl(
            descriptor, fcntl.F_NOTIFY, fcntl.DN_DELETE | fcntl.DN_RENAME | fcntl.DN_CREATE | fcntl.DN_MULTISHOT
        )


def _is_told(wakeup: socket.socket) -> bool:
    """Says whether one of the signals that woke us tells us to end."""
    return any(number != signal.SIGIO for number in wakeup.recv(64))


def _listen_for_links() -> socket.socket:
    links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    links.bind((0, _LINKS))
    return links


def _drain(links: socket.socket) -> None:
    with suppress(OSError):  # the socket is empty, or its buffer overflowed
        while links.recv(65536):
            pass
