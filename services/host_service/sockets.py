"""Keeps the tunnel's UDP sockets: opens them as key-service wants, and hands them to conn-service through the socket door.

conn-service has copies, which work on without us. So the newer process takes the other's sockets:

- A new conn-service gets ours when it connects.
- A new host-service takes the sockets that its predecessor left to the spares, or else conn-service's offer. It waits
  for that offer before it opens sockets: the port would be taken, or a port of the kernel's choice would change.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from host_service import udp
from stagewire import files
from stagewire.control.messages import Listening, SocketSettings
from stagewire.control.socket_door import LINES, TUNNEL, Door
from stagewire.loop import boot_time
from stagewire.pipe.names import SOCKETS
from stagewire.process.stage import Stage

RETRY: Final = 1.0
RETRY_SOON: Final = 0.05
"""s between two tries to open the port. RETRY_SOON holds for the first SOON: a predecessor may still be closing the port."""
SOON: Final = 1.0
CLOSED_WITHIN: Final = 0.3
"""s that the kernel may take to close an earlier life's sockets; until then, a taken port is no fault."""
OFFER_WITHIN: Final = 3.0
"""s to wait for conn-service's offer; its spare kills a hanging conn-service within half of that."""
_PORT_FILE: Final = "port"
_PORT_SIZE: Final = 8
"""Bytes."""


class TunnelSockets:
    """Keeps one interface's UDP sockets. `on_fault` gets the reason why the port is not open, or nothing."""

    def __init__(self, stage: Stage, say: Callable[[Listening], object], on_fault: Callable[[str], None]) -> None:
        """Opens the socket door. `say` tells key-service. Raises OSError."""
        self._stage = stage
        self._say = say
        self._on_fault = on_fault
        self._began = boot_time()
        self._wanted: SocketSettings | None = None
        self._in_force: SocketSettings | None = None
        self._managed = stage.environment.managed
        self._mark: int | None = None
        """The mark that host-service has chosen; with None, key-service's holds."""
        self._offered = False
        self._retry: float | None = None
        self._taken_since: float | None = None
        inherited: dict[str, int] = {name: stage.inherited.pop(name) for name in TUNNEL if name in stage.inherited}
        self._pair = udp.Pair.adopt(inherited)
        self._file = stage.environment.run / stage.name / _PORT_FILE
        self._door = Door(
            stage.loop, stage.pipes.path(SOCKETS), self._on_offer, self._on_ask, stage.pipes.admission(SOCKETS, LINES)
        )
        stage.loop.add_timed(self)
        if self._pair is not None:
            self._hand_over(self._pair)

    @property
    def port(self) -> int:
        """Returns the open port; 0 for none."""
        return self._pair.port if self._pair else 0

    def want(self, settings: SocketSettings, now: float) -> None:
        """Opens the port that key-service wants, and tells key-service the result.

        A `request` that fails leaves the sockets as they were; without a request, host-service tries again. The answer to a
        request waits until conn-service uses the new sockets and mark.
        """
        if not settings.request:
            self._wanted = settings
            self.act(now)
            return
        code = self._try(settings)
        if not code:
            self._wanted = settings
            self._settle("")
        answer = Listening(self.port, code, settings.request)
        self.when_taken(lambda: self._say(answer))

    def when_taken(self, then: Callable[[], object]) -> None:
        """Calls `then` once conn-service uses the sockets and the mark that it was given, or is away."""
        self._door.when_taken(then)

    def set_mark(self, mark: int) -> None:
        """Marks the tunnel's sockets and look-ups' sockets, whatever key-service says. Raises OSError."""
        self._mark = mark
        if self._pair is not None:
            self._put_mark_on(self._pair, mark)

    def next_deadline(self) -> float | None:
        """Returns when to try again."""
        return self._retry

    def act(self, now: float) -> None:
        """Tries to open the wanted port."""
        self._retry = None
        if self._wanted is None:
            return
        if self._pair is None and not self._offered and now < self._began + OFFER_WITHIN:
            self._retry = self._began + OFFER_WITHIN
            return
        code = self._try(self._wanted)
        if self._may_be_ours_still(code, now):
            self._retry = now + RETRY_SOON
            return
        self._settle(_explain(code, self._wanted.listen_port) if code else "")
        if code:
            self._retry = now + (RETRY_SOON if now < self._began + SOON else RETRY)
        self._say(Listening(self.port, code, 0))

    def _may_be_ours_still(self, code: int, now: float) -> bool:
        if code != errno.EADDRINUSE:
            self._taken_since = None
            return False
        self._taken_since = self._taken_since or now
        return now < self._taken_since + CLOSED_WITHIN

    def _settle(self, fault: str) -> None:
        if not fault:
            self._retry = None
        self._on_fault(fault)

    def _on_offer(self, descriptors: dict[str, int], now: float) -> None:
        self._offered = True
        offered = udp.Pair.adopt(descriptors)
        wanted = self._wanted.listen_port if self._wanted else 0
        if self._pair is None and offered is not None and wanted in {0, offered.port}:
            self._pair, offered = offered, None
            self._stage.log.info("sockets taken back", port=self.port)
            self._hand_over(self._pair)
        if offered is not None:
            offered.close()
        if self._in_force is None:
            self.act(now)

    def _on_ask(self, kinds: Iterable[str]) -> dict[str, socket.socket]:
        if self._wanted is None or not self._mark_is_known:
            return {}  # the mark that keeps their packets outside the tunnel is still unknown
        return udp.fresh(kinds, self._mark_of(self._wanted))

    @property
    def _mark_is_known(self) -> bool:
        return self._mark is not None or not self._managed

    def _put_mark_on(self, pair: udp.Pair, mark: int) -> None:
        if pair.mark != mark:
            pair.set_mark(mark)
            self._hand_over(pair)

    def _mark_of(self, settings: SocketSettings | None) -> int:
        if self._mark is not None:
            return self._mark
        return settings.fwmark if settings else 0

    def _try(self, wanted: SocketSettings) -> int:
        """Applies settings, whole or not at all. Returns 0 or the errno."""
        standing, pair = self._in_force, self._pair
        keeps = pair is not None and (
            wanted.listen_port == pair.port
            or (wanted.listen_port == 0 and (standing is None or standing.listen_port == 0))
        )
        mark = self._mark_of(wanted)
        try:
            if pair is not None and keeps:
                if self._mark_is_known:  # else its mark is right still, or will be soon
                    self._put_mark_on(pair, mark)
            else:
                self._open(wanted.listen_port, mark, anew=standing is None)
        except OSError as error:
            return error.errno or errno.EIO
        _remember(self._file, None if wanted.listen_port else self.port)
        self._in_force = wanted
        return 0

    def _open(self, port: int, mark: int, *, anew: bool) -> None:
        """Opens a new pair. `anew`: none was open in this life, so port 0 means the former life's port."""
        fresh = None
        if port == 0 and anew and (before := _remembered(self._file)):
            with suppress(OSError):
                fresh = udp.Pair.open(before, mark)
        if fresh is None:
            fresh = udp.Pair.open(port, mark)
        standing, self._pair = self._pair, fresh
        self._hand_over(fresh)
        if standing is not None:
            standing.close()
        families = 1 if fresh.six is None else 2
        self._stage.log.info("port opened", port=fresh.port, families=families, handshake_queues=len(fresh.queues))

    def _hand_over(self, pair: udp.Pair) -> None:
        self._stage.bequest.leave(pair.descriptors, "sockets")
        self._door.give(pair.descriptors)


def _explain(code: int, port: int) -> str:
    if code == errno.EADDRINUSE and port:
        return f"UDP port {port} is taken by another program; choose another ListenPort or stop it"
    return f"UDP port {port or '(any)'} cannot be opened: {os.strerror(code)}"


def _remembered(file: Path) -> int:
    """Returns the port that an earlier life picked; 0 for none."""
    try:
        port = int(files.read(file, _PORT_SIZE))
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 1 << 16 else 0


def _remember(file: Path, port: int | None) -> None:
    if port == (_remembered(file) or None):
        return
    with suppress(OSError):  # a full disk: once all copies of the sockets are gone, the port changes
        if port is None:
            file.unlink(missing_ok=True)
        else:
            files.write(file, f"{port}\n".encode())
