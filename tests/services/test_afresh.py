"""A forked process that goes on as another program: nothing of its parent is left, and it ends as a program does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PARENT = """
import atexit, fcntl, json, os, random, signal, sys
from pathlib import Path
from stagewire import randomness
from stagewire_cli import afresh

def untidy():
    print("the parent has yet to write this", end="")
    atexit.register(print, "the parent ends", file=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(writer)
    kept = open(sys.argv[1], "w")
    fcntl.flock(kept, fcntl.LOCK_EX)
    return kept, [open("/dev/null", "w") for _ in range(9)]

def forked(main):
    pid = os.fork()
    if pid == 0:
        variables = {"PATH": os.environ["PATH"], "NEW": "1", "CHANGED": "now"}
        afresh.become([sys.executable, "/no/where/tun-service", "--one"], variables)
        afresh.run(main)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def facts():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({
        "caught": int(status["SigCgt"], 16), "ignored": int(status["SigIgn"], 16),
        "descriptors": sorted(int(each) for each in os.listdir("/proc/self/fd"))[:-1],
        "variables": dict(os.environ), "words": sys.argv, "shown": Path("/proc/self/cmdline").read_text(),
        "name": Path("/proc/self/comm").read_text(), "random": random.random(), "jitter": randomness.jitter(),
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    }))
    return 0

def exits(code):
    def main():
        atexit.register(print, "its own end")
        sys.exit(code)
    return main

def fails():
    raise ValueError("a bug")

kept = untidy()
MAINS = {"facts": [facts, facts], "returns": [lambda: 7], "none": [exits(None)], "number": [exits(3)],
         "text": [exits("why")], "fails": [fails]}
statuses = [forked(main) for main in MAINS[sys.argv[2]]]
sys.stderr.write(json.dumps(statuses) + chr(10))
"""
SIGINT, SIGPIPE, SIGXFSZ = (1 << number - 1 for number in (2, 13, 25))
SUPERVISORDS = sum(1 << number - 1 for number in (1, 3, 12, 15, 17))
"""Signals that supervisord has handlers for, beside SIGINT."""
GLIBCS = 0b11 << 31
"""Signals of the C library's own threads, which some versions of Python leave ignored."""


def run(tmp_path: Path, main: str) -> tuple[list[str], list[str]]:
    """Lines of standard output and of standard error."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OLD": "1", "CHANGED": "before"}
    variables.pop("PYTHONUNBUFFERED", None)
    command = [sys.executable, "-c", PARENT, str(tmp_path / "lock"), main]
    said = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return said.stdout.splitlines(), said.stderr.splitlines()


def test_nothing_of_the_parent_is_left(tmp_path: Path) -> None:
    out, errors = run(tmp_path, "facts")
    assert errors == ["[0, 0]", "the parent ends"]
    first, second = map(json.loads, out[:2])
    assert out[2:] == ["the parent has yet to write this"]  # once, and not by a child
    inherited = int(re.findall(r"SigIgn:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    assert (first["caught"], first["interrupt"]) == (SIGINT, True)
    assert first["ignored"] & ~GLIBCS == (inherited | SIGPIPE | SIGXFSZ) & ~SUPERVISORDS & ~GLIBCS
    assert first["descriptors"] == [0, 1, 2]
    assert first["variables"] == {"PATH": os.environ["PATH"], "NEW": "1", "CHANGED": "now"}
    assert first["words"] == ["/no/where/tun-service", "--one"]
    assert first["shown"] == f"{sys.executable}\0/no/where/tun-service\0--one\0"
    assert first["name"] == "tun-service\n"
    assert first["random"] != second["random"]
    assert first["jitter"] != second["jitter"]


@pytest.mark.parametrize(
    ("main", "status", "out", "errors"),
    [
        ("returns", 7, [], []),
        ("none", 0, ["its own end"], []),
        ("number", 3, ["its own end"], []),
        ("text", 1, ["its own end"], ["why"]),
    ],
)
def test_it_ends_as_a_program_does(tmp_path: Path, main: str, status: int, out: list[str], errors: list[str]) -> None:
    said = run(tmp_path, main)
    assert said == ([*out, "the parent has yet to write this"], [*errors, f"[{status}]", "the parent ends"])


def test_a_bug_is_shown_and_never_reaches_the_parents_code(tmp_path: Path) -> None:
    _, errors = run(tmp_path, "fails")
    assert errors[0] == "Traceback (most recent call last):"
    assert errors[-3:] == ["ValueError: a bug", "[1]", "the parent ends"]
