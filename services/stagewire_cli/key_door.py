"""Hands key-service a new configuration, through a socket in its folder that root alone may use."""

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from stagewire import logs
from stagewire.config.operations import Operation
from stagewire.control import requests
from stagewire.environment import Environment
from stagewire.limits import MAX_ACCEPTED, MAX_TRIAL
from stagewire.linux import descriptors
from stagewire.pipe.names import RELOAD
from stagewire_cli.failures import Failed

TIMEOUT: Final = 60.0
"""s that key-service gets to answer: it reads many thousands of prefixes for seconds."""
_MOST: Final = 64 << 20
"""Bytes of an answer: key-service may be hostile."""


class Applied(NamedTuple):
    """Says what an applied file changed. `trial` is the number of the trial that waits for its confirmation, if one does."""

    difference: list[str]
    warning: str
    trial: str


class Trial(NamedTuple):
    """Says how a trial stands: the seconds left, 0 once it is over, and how it ended (`kept`, `back`), if that is known."""

    left: float
    ended: str


def apply(environment: Environment, text: str, trial: str = "", *, dry_run: bool = False, confirm: int = 0) -> Applied:
    """Puts a file's text in force as a whole, unless `dry_run`.

    With `confirm`, key-service goes back after so many seconds without a confirmation, if anything differs. `trial` is the
    number by which the command asks how that ended. Raises Failed if nothing is changed, NotAsked if key-service was not
    there, and Unanswered if the outcome is unknown.
    """
    try:
        answer = _ask(environment, requests.Apply(dry_run, confirm, trial), text)
    except (NotAsked, Unanswered):
        raise
    except Failed as failed:
        raise Failed(f"nothing is changed: {failed}") from None
    return Applied(
        _lines(answer), logs.cleaned(str(answer.get("warning", ""))), logs.cleaned(str(answer.get("trial", "")))
    )


def confirm(environment: Environment) -> None:
    """Keeps what was applied. Raises Failed, and Unanswered if key-service was asked and no answer came."""
    _ask(environment, requests.Confirm(), "")


def trial(environment: Environment, number: str = "") -> Trial:
    """Tells how the trial of that number stands; `left` is of any. Raises Failed."""
    answer = _ask(environment, requests.Unconfirmed(number), "")
    left = answer.get("left")
    seconds = float(left) if isinstance(left, (int, float)) and 0 <= left <= MAX_TRIAL else 0.0
    return Trial(seconds, str(answer.get("ended", "")))


def backed_up(environment: Environment, output: str) -> None:
    """Has a backup noted in the audit. Raises Failed."""
    _ask(environment, requests.BackedUp(output), "")


def adopt(environment: Environment, text: str) -> tuple[list[str], str]:
    """Does as `apply` for a text that differs in peers alone; peers that only `wg` knows stay. Raises as `apply`."""
    answer = _ask(environment, requests.Adopt(), text)
    return _lines(answer), logs.cleaned(str(answer.get("warning", "")))


def operate(
    environment: Environment, operation: Operation, text: str, write: Callable[[str], None]
) -> tuple[list[str], str]:
    """Has key-service carry an operation out on a file's text; returns as `apply`. `write` gets the file's new text.

    Raises Failed if nothing is changed, NotAsked if key-service left before it said what to write, and Unanswered once
    `write` was called and no answer came.
    """
    question = requests.Operate(operation)
    written = False
    try:
        with _connected(environment, question, text) as line:
            answer = _answer(line)
            if "write" not in answer:
                return _lines(answer), ""
            new = _exactly(line, answer["write"])
            try:
                write(new)
                written = True
            except Failed as failed:
                line.sendall(json.dumps({"error": str(failed)}).encode() + b"\n")
                raise
            line.sendall(b'{"error": ""}\n')
            answer = _answer(line)
            return _lines(answer), logs.cleaned(str(answer.get("warning", "")))
    except (OSError, ValueError, RecursionError):
        raise (Unanswered if written else NotAsked)(_SILENT) from None


class NotAsked(Failed):
    """Says that key-service has made no change, as it never got to one."""


class Unanswered(Failed):
    """Says that key-service may or may not have made a change."""


_SILENT: Final = "key-service doesn't answer"


def by() -> str:
    """Names the user behind this command, as far as sudo or the terminal tells."""
    return logs.cleaned(os.environ.get("SUDO_USER") or os.environ.get("LOGNAME") or "")


def _ask(environment: Environment, question: requests.Request, text: str) -> dict[str, Any]:
    """Raises Failed, and Unanswered once key-service has the whole question."""
    try:
        line = _connected(environment, question, text)
    except OSError:  # half a question changes nothing
        raise NotAsked(_SILENT) from None
    try:
        with line:
            line.shutdown(socket.SHUT_WR)
            return _answer(line)
    except (OSError, ValueError, RecursionError):
        raise Unanswered(_SILENT) from None


def _connected(environment: Environment, question: requests.Request, text: str) -> socket.socket:
    """Connects and asks. Raises OSError."""
    line = socket.socket(socket.AF_UNIX)
    descriptors.allow(line, allowed=False)
    try:
        line.settimeout(TIMEOUT)
        line.connect(str(environment.run / RELOAD.path))
        data = text.encode("utf-8", "surrogateescape")
        line.sendall(json.dumps(requests.to_json(question, by(), len(data))).encode() + b"\n" + data)
    except OSError:
        line.close()
        raise
    return line


def _answer(line: socket.socket) -> dict[str, Any]:
    """Reads a line of JSON, and nothing behind it. Raises Failed for an error, and OSError or ValueError."""
    until, data = time.monotonic() + TIMEOUT, bytearray()
    while not data.endswith(b"\n"):
        ahead = line.recv(1 << 16, socket.MSG_PEEK)
        piece = line.recv(ahead.find(b"\n") + 1 or len(ahead))
        if not piece or len(data) > _MOST or time.monotonic() > until:
            raise ValueError
        data += piece
    answer = json.loads(data)
    if not isinstance(answer, dict) or not isinstance(answer.get("difference", []), list):
        raise Failed("key-service doesn't answer in the words of this version")
    if answer.get("error"):
        raise Failed(logs.cleaned(str(answer["error"])))
    return answer


def _exactly(line: socket.socket, size: object) -> str:
    if not isinstance(size, int) or not 0 <= size <= MAX_ACCEPTED:
        raise ValueError
    until, data = time.monotonic() + TIMEOUT, bytearray()
    while len(data) < size:
        piece = line.recv(min(1 << 20, size - len(data)))
        if not piece or time.monotonic() > until:
            raise ValueError
        data += piece
    return data.decode("utf-8", "surrogateescape")


def _lines(answer: dict[str, Any]) -> list[str]:
    return [logs.cleaned(str(line)) for line in answer.get("difference", [])]
