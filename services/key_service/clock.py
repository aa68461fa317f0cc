"""Remembers how the wall clock stood at `up`, so that our time stamps do not follow it when it jumps.

Peers remember our greatest stamp. After ten minutes with a clock ten years ahead, they would not answer us for ten years.
The file lies in the run folder: the next `up` takes the clock as it is then. `proto.tai64n` decides.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.tai64n import END_NS, Anchor

NAME: Final = "clock"
MEND: Final = (
    "time stamps go on as before, all else by the new time; if the clock is right now, `stagewire down` and `up` make them"
    " follow it"
)
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST: Final = 256
"""Bytes of the file."""
_DAY_NS: Final = 86_400 * 10**9


class Clock:
    """Keeps the anchor in a file, and logs each jump of the wall clock once."""

    def __init__(self, folder: Path, log: Log) -> None:
        """Reads the file, if this boot made it."""
        self._path = folder / NAME
        self._log = log
        self._boot = _boot()
        self._jumped = False
        self.anchor = self._read()

    def _read(self) -> Anchor | None:
        try:
            boot, unix_ns, boot_s = files.read(self._path, _MOST).decode("ascii").split()
            anchor = Anchor(int(unix_ns), float(boot_s))
            if boot == self._boot and 0 <= anchor.boot_s <= boot_time() and 0 <= anchor.unix_ns < END_NS:
                return anchor
        except files.Suspicious:
            with suppress(OSError):
                files.clear(self._path)
        except (OSError, ValueError):
            pass
        return None

    def look(self, handshaker: Handshaker, now: float, unix_ns: int) -> None:
        """Stores a new anchor, and logs a jump or its end."""
        jump, anchor = handshaker.look_at_clock(now, unix_ns)
        if anchor is not None and anchor != self.anchor:
            self.anchor = anchor
            with suppress(OSError):  # a full disk: the next life takes the clock as it is then
                files.write(self._path, f"{self._boot} {anchor.unix_ns} {anchor.boot_s!r}\n".encode())
        if bool(jump) != self._jumped:
            self._jumped = bool(jump)
            if jump:
                self._log.warning("the wall clock jumped", days=round(jump / _DAY_NS, 1), mend=MEND)
            else:
                self._log.info("the wall clock is back")


def _boot() -> str:
    with suppress(OSError):
        return _BOOT.read_text("ascii").strip()
    return "unknown"
