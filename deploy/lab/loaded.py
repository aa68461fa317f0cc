"""Runs `stagewire` commands as forks of one process that has loaded them: most of a short command's CPU is Python's start.

A command has a process of its own, with its own arguments, variables, descriptors and namespace. It lacks only the start
of the interpreter and the imports, so each command needs a test that starts the program as well.
"""

import atexit
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Final

import stagewire_cli
from stagewire_cli import afresh, program

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE, MNT_DETACH = 0x1000, 0x4000, 0x80000, 2
MAX_REQUEST: Final = 1 << 17
"""Bytes of a request with all its variables."""
_AT_START: Final = ("PYTHON", "LC_", "LANG", "LD_")
"""Beginnings of the variables that a program heeds only while it starts."""
_NEVER_LOADED: Final = ("stagewire_cli.deploy", "stagewire_cli.root", "stagewire_cli.top_widgets")

_libc = ctypes.CDLL(None, use_errno=True)


# --- the side that asks -------------------------------------------------------------------------------------


class _Loader:
    """Holds the process that has loaded all commands, from the first command to the end of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._door: socket.socket | None = None

    def ask(self, request: bytes, descriptors: Sequence[int]) -> None:
        with self._lock:
            if self._door is None:
                self._door = self._start()
            socket.send_fds(self._door, [request], descriptors)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_REQUEST)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # ^C is meant for this process, which then ends that one
            )

        def end() -> None:
            ours.close()
            process.wait()

        atexit.register(end)
        return ours


_loader = _Loader()


def suits(variables: Mapping[str, str]) -> bool:
    """Tells whether a fork does with these variables what a program would that starts with them."""

    def heeded(these: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in these.items() if name.startswith(_AT_START)}

    return heeded(variables) == heeded(os.environ)


def run(
    words: Sequence[str | Path],
    variables: Mapping[str, str],
    timeout: float,
    *,
    namespace: str = "",
    given: str = "",
) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end, with `given` at its stdin. `words` begin with the program. Raises TimeoutExpired."""
    argv = [str(word) for word in words]
    request = json.dumps([argv, dict(variables), str(Path.cwd()), namespace]).encode()
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with ours:
            with theirs:
                os.pwrite(files[0], given.encode(errors="surrogateescape"), 0)
                _loader.ask(request, [*files, theirs.fileno()])
            pid = int(ours.recv(64))
            ours.settimeout(timeout)
            try:
                status = int(ours.recv(64))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(argv, timeout) from None
        out, err = (os.pread(each, os.fstat(each).st_size, 0).decode() for each in files[1:])
        return subprocess.CompletedProcess(argv, status, out, err)
    finally:
        for each in files:
            os.close(each)


# --- the process that has loaded all commands ---------------------------------------------------------------


def _load() -> None:
    for module in walk_packages(stagewire_cli.__path__, "stagewire_cli."):
        if not module.name.startswith(_NEVER_LOADED):
            import_module(module.name)
    gc.freeze()


def _serve(door: socket.socket) -> None:
    """Forks for each request, and tells pid and status of the fork. Ends with the process that asks."""
    going = selectors.DefaultSelector()
    going.register(door, selectors.EVENT_READ)
    while True:
        for key, _ in going.select():
            if key.fileobj is not door:
                pid, asker = key.data
                going.unregister(key.fileobj)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                _tell(asker, os.waitstatus_to_exitcode(status))
                asker.close()
                continue
            request, descriptors, _, _ = socket.recv_fds(door, MAX_REQUEST, 4)
            if not request:
                return
            pid = os.fork()
            if pid == 0:
                _become(descriptors[:3], *json.loads(request))
            for each in descriptors[:3]:
                os.close(each)
            asker = socket.socket(fileno=descriptors[3])
            _tell(asker, pid)
            going.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, asker))


def _tell(asker: socket.socket, number: int) -> None:
    try:
        asker.send(str(number).encode())
    except OSError:  # it waits no longer
        return


def _become(streams: Sequence[int], argv: list[str], variables: dict[str, str], folder: str, namespace: str) -> None:
    """Makes a fork the command. Does not return."""
    for wanted, stream in enumerate(streams):
        os.dup2(stream, wanted)
    os.chdir(folder)
    if namespace:
        _enter(namespace)
    afresh.become([sys.executable, *argv], variables)

    def main() -> int:
        program.main()
        return 0

    afresh.run(main)


def _enter(namespace: str) -> None:
    """Does what `ip netns exec` does: enters the network, and shows its /sys and its files of /etc."""
    descriptor = os.open(Path("/run/netns", namespace), os.O_RDONLY)
    _checked(_libc.setns(descriptor, CLONE_NEWNET))
    _checked(_libc.unshare(CLONE_NEWNS))
    _checked(_libc.mount(b"", b"/", b"none", MS_SLAVE | MS_REC, None))
    _checked(_libc.umount2(b"/sys", MNT_DETACH))
    _checked(_libc.mount(namespace.encode(), b"/sys", b"sysfs", 0, None))
    folder = Path("/etc/netns", namespace)
    for file in folder.iterdir() if folder.exists() else ():
        _checked(_libc.mount(bytes(file), bytes(Path("/etc", file.name)), b"none", MS_BIND, None))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as door:
        _load()
        _serve(door)
