"""Runs the load programs of this package in namespaces: the receiver first, then the sender."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lab.namespaces import Namespace, stop

_ROOT: Final = Path(__file__).parents[2]
_ENV: Final = {"PYTHONPATH": f"{_ROOT / 'deploy'}:{_ROOT}"}
PATIENCE: Final = 30


def python(module: str, *arguments: object) -> list[str]:
    """Returns the command that runs a module of this package."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def begin(namespace: Namespace, module: str, *arguments: object) -> "subprocess.Popen[bytes]":
    """Starts a program."""
    return namespace.popen(*python(module, *arguments), env=_ENV, output=subprocess.PIPE)


def start(namespace: Namespace, module: str, *arguments: object) -> "subprocess.Popen[bytes]":
    """Starts a program and waits until it prints `ready`."""
    started = begin(namespace, module, *arguments)
    assert started.stdout is not None
    line = started.stdout.readline()
    if line != b"ready\n":
        stop(started, patience=1)
        raise RuntimeError(f"{module} did not start: {line!r} {started.stdout.read()!r}")
    return started


def finish(started: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Stops a program. Returns its counts."""
    started.terminate()
    answer, _ = started.communicate(timeout=PATIENCE)
    return dict(json.loads(answer))


def run(namespace: Namespace, module: str, *arguments: object, seconds: float = 0.0) -> str:
    """Runs a program to its end, for `seconds` and some patience. Returns its output."""
    return namespace.run(*python(module, *arguments), env=_ENV, timeout=seconds + PATIENCE).stdout


def between(
    receiver: Namespace,
    sender: Namespace,
    module: str,
    sink: Sequence[object],
    source: Sequence[object],
    seconds: float,
) -> tuple[dict[str, Any], str]:
    """Returns what the sink counted and what the source printed."""
    started = start(receiver, module, "sink", *sink)
    try:
        said = run(sender, module, "source", *source, seconds=seconds)
        return finish(started), said
    finally:
        stop(started, patience=1)
