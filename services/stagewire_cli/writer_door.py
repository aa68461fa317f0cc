"""Starts root's writer of the configuration file (`writer.py`) when key-service asks, in supervisord's loop.

supervisord reads nothing of the request. It asks the kernel who connected, and starts one writer after another.
"""

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from stagewire.environment import Environment
from stagewire.linux import privileges, root_socket
from stagewire.linux.peer_credentials import peer_uid
from stagewire.pipe.names import WRITER

REST: Final = 1.0
"""s between two starts: a hostile key-service could ask all the time."""
_COMMAND: Final = (sys.executable, "-P", "-m", "stagewire_cli.writer")
_WAITING: Final = 4


class WriterDoor:
    """Listens in an interface's run folder; supervisord calls its methods as those of each source in its loop."""

    def __init__(self, supervisord: Any, environment: Environment) -> None:
        self._options = supervisord.options
        self._path = environment.run / WRITER
        # No socket object, because a supervisord that starts anew closes all descriptors by their numbers.
        self._listener = -1
        self._at_work: _AtWork | None = None
        self._rests_until = 0.0
        self._complaint = ""

    def open(self) -> None:
        """Begins to listen. A failure costs no more than a file that names an expired peer until the next command."""
        sources = self._options.get_socket_map()
        for stale in [number for number, source in sources.items() if isinstance(source, (WriterDoor, _AtWork))]:
            del sources[stale]  # left from before a SIGHUP, or from before the folder was wiped
        complaint = ""
        try:
            if self._listener >= 0:
                _close(self._options, self._listener)
            self._listener = _listen(self._path)
            sources[self._listener] = self
        except OSError as error:
            self._listener = -1
            complaint = f"expired peers stay in the file until the next command: {self._path}: {error.strerror}"
        if complaint and complaint != self._complaint:
            self._options.logger.warn(complaint)
        self._complaint = complaint

    def look(self, _event: Any) -> None:
        """Listens again after the run folder was wiped."""
        if not self._path.is_socket() and self._options.mood > 0 and self._path.parent.is_dir():
            self.open()

    def readable(self) -> bool:
        return not (self._at_work and self._at_work.lives) and time.monotonic() >= self._rests_until

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        """Starts a writer for a connection of key-service's."""
        if not self.readable():
            return
        listener = socket.socket(fileno=self._listener)
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        finally:
            listener.detach()
        with connection, suppress(OSError):
            if peer_uid(connection) not in {privileges.uid_of("key"), os.geteuid()}:
                return
            self._rests_until = time.monotonic() + REST
            as_input = [(os.POSIX_SPAWN_DUP2, connection.fileno(), 0)]
            pid = os.posix_spawn(sys.executable, _COMMAND, os.environ, file_actions=as_input)
            self._at_work = _AtWork(self._options, pid)

    def handle_error(self) -> None:
        """Does nothing: key-service asks again."""


class _AtWork:
    """Waits for a writer's end; supervisord would log an unknown process."""

    def __init__(self, options: Any, pid: int) -> None:
        self._options = options
        self._pid = pid
        self.lives = True
        self._process = os.pidfd_open(pid)
        options.get_socket_map()[self._process] = self

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        self.lives = False
        self._options.get_socket_map().pop(self._process, None)
        _close(self._options, self._process)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def handle_error(self) -> None:
        """Does nothing: a process descriptor has no errors."""


def _close(options: Any, descriptor: int) -> None:
    with suppress(Exception):  # it was never in the poller
        options.poller.unregister_readable(descriptor)
    with suppress(OSError):
        os.close(descriptor)


def _listen(path: Path) -> int:
    """Opens the socket, for key-service and root alone. Raises OSError."""
    owner = (privileges.uid_of("key"), privileges.group()) if privileges.started_as_root() else None
    return root_socket.listen(path, _WAITING, owner).detach()
