"""Ends the supervisord of a bare interface with its keeper, without which no stage gets the device again."""

import signal
from typing import Any

from stagewire.environment import Environment
from stagewire.process import holders


class KeeperWatch:
    """Waits in supervisord's loop for the end of the process that holds the keeper's lock."""

    def __init__(self, supervisord: Any, environment: Environment) -> None:
        self._options = supervisord.options
        self._run = environment.run
        self._process = -1

    def watch(self) -> None:
        """Begins to wait; ends supervisord if the keeper has gone already."""
        sources = self._options.get_socket_map()
        for stale in [number for number, source in sources.items() if isinstance(source, KeeperWatch)]:
            del sources[stale]  # left from before a SIGHUP, after which supervisord starts anew
        process = holders.open_keeper(self._run)
        if process is None:
            self._end()
        else:
            sources[process], self._process = self, process

    # supervisord calls these methods of each source in its loop.

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        self._options.get_socket_map().pop(self._process, None)
        self._end()

    def _end(self) -> None:
        self._options.logger.warn("the keeper has died; ending all services")
        signal.raise_signal(signal.SIGTERM)

    def handle_error(self) -> None:
        """Does nothing: a process descriptor has no errors."""
