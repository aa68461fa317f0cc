"""Runs a program on a terminal of its own, presses keys, and can write down what the program draws.

A recording is a file in asciicast's second format (docs.asciinema.org, asciicast v2), which asciinema plays.
"""

import codecs
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from lab.wait import NeverHappened, slack


class Terminal:
    """Holds the keyboard and the screen of one program."""

    def __init__(self, argv: Sequence[str | Path], columns: int, lines: int, env: Mapping[str, str]) -> None:
        """Starts the program. `env` adds to the environment."""
        self.size = columns, lines
        self.written: list[tuple[float, str]] = []
        """What the program wrote, and how many s after its start."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end within a character
        self._keyboard, ours = pty.openpty()
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.settings = termios.tcgetattr(ours)
        self._ours = ours
        self._begun = time.monotonic()
        environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **env}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        # A shell's background job ignores SIGINT, and so would its children here.
        self.process = subprocess.Popen(
            ["env", "--default-signal=INT", *map(str, argv)],
            stdin=ours, stdout=ours, stderr=ours, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(ours, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - the lab has no threads here
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keyboard)
        os.close(self._ours)

    @property
    def text(self) -> str:
        """Returns all that was written."""
        return "".join(text for _, text in self.written)

    def press(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def watch(self, seconds: float) -> None:
        """Reads what the program writes for so long, or until it has ended."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._read(min(left, 0.1)):
            pass

    def until(self, text: str, seconds: float) -> None:
        """Reads until `text` was written since the last call. Raises NeverHappened."""
        deadline, seen = time.monotonic() + seconds * slack, len(self.written)
        while time.monotonic() < deadline:
            self._read(0.1)
            if text in "".join(each for _, each in self.written[seen:]):
                return
        raise NeverHappened(f"{text!r} on the terminal; it shows {self.text[-2000:]!r}")

    def end(self, seconds: float = 5) -> int:
        """Waits for the program's end, and returns its status."""
        deadline = time.monotonic() + seconds * slack
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        status, seen = self.process.wait(0), -1
        while len(self.written) > seen:  # the kernel may hold back what was written last
            seen = len(self.written)
            self._read(0.05)
        return status

    def is_restored(self) -> bool:
        """Tells whether the program has left the terminal as it found it."""
        return termios.tcgetattr(self._ours) == self.settings

    def record(self, file: Path, title: str) -> None:
        """Writes all that was drawn as a recording."""
        head = {
            "version": 2,
            "width": self.size[0],
            "height": self.size[1],
            "title": title,
            "env": {"TERM": "xterm-256color"},
        }
        lines = [json.dumps(head)]
        lines += [json.dumps([round(at, 2), "o", text], ensure_ascii=False) for at, text in self.written]
        file.write_text("\n".join(lines) + "\n")

    def _read(self, patience: float) -> bool:
        """Reads once; tells whether the program may write more."""
        if select.select([self._keyboard], [], [], patience)[0]:
            with suppress(OSError):
                data = os.read(self._keyboard, 65536)
                self.written.append((time.monotonic() - self._begun, self._decoder.decode(data)))
        return self.process.poll() is None
