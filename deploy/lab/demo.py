"""Runs `make demo`: two gateways on one machine show what they do, step by step, and each claim is checked.

python -m lab.demo           the show; removes everything at its end
python -m lab.demo --keep    leaves the gateways running
python -m lab.demo --stop    removes what was kept
"""

import argparse
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from rich.markup import escape

from lab.demo_network import ENDING_SIGNALS, INTERFACE, PORT, Network, entering, remove_kept
from lab.demo_screen import Screen
from lab.demo_steps import FILE_SEED, FILE_SIZE, MARKERS, PAIRED, Show
from lab.demo_watch import Slices, Watch
from lab.stagewire import executable
from lab.wait import NeverHappened

LIMIT = 100
"""s; then the show ends, and removes all that it made."""
EXPECTED = (AssertionError, RuntimeError, OSError, subprocess.SubprocessError)
"""Errors by which the lab reports that a step failed. Any other error is a bug of the demo's."""
LAST_WORDS = 6


class Ended(BaseException):
    """Says that a signal asked the demo to end. No handler of errors may catch it on the way out."""


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise Ended(number)


def _too_long(_number: int, _frame: FrameType | None) -> NoReturn:
    raise NeverHappened(f"the show took more than {LIMIT} s")


def play(keep: bool) -> int:
    """Runs the show. Returns the exit status."""
    screen = Screen()
    for number in ENDING_SIGNALS:
        signal.signal(number, _end)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        with Network(screen.removing) as network:
            _show(screen, network)
            if keep:
                network.keep()
                _explain(screen, network)
    except Ended as ended:
        screen.say("ended early")
        return 128 + int(ended.args[0])
    return 1 if screen.failures else 0


def _show(screen: Screen, network: Network) -> None:
    screen.title("Stagewire", "a WireGuard-compatible VPN gateway of small processes")
    try:
        network.build()
        slices = Slices(FILE_SIZE, FILE_SEED)
        wire = network.link.a_interface
        with Watch(network.a.namespace, wire, port=PORT, slices=slices, markers=MARKERS, paired=PAIRED) as watch:
            Show(screen, network, watch, len(slices.pieces)).run()
    except EXPECTED as error:
        screen.fail(escape(f"{type(error).__name__}: {error}"))
        _last_words(screen, network)
    screen.summary()


def _last_words(screen: Screen, network: Network) -> None:
    """Prints the gateways' last complaints before their logs are removed."""
    for side in network.sides:
        for name, text in side.gateway.logs().items():
            lines = [line for line in text.splitlines() if "level=error" in line or "level=warning" in line]
            for line in lines[-LAST_WORDS:]:
                screen.say_exactly(f"gateway {side.label}, {name}: {line}")


def _explain(screen: Screen, network: Network) -> None:
    """Prints how to look around in the kept gateways, and how to remove them."""
    a, b = network.sides
    script = a.directory / "in"
    supervisorctl = f"{script} supervisorctl -c {a.gateway.run_directory / INTERFACE / 'supervisord.conf'}"
    screen.heading("[bold]Kept running[/]")
    screen.say("Each gateway has a script that runs a command in its namespace, with its variables:", "dim")
    for what, command in {
        "status": f"{script} stagewire status",
        "the same from the other end": f"{b.directory / 'in'} stagewire status",
        "the script spelled out": f"{entering(a)} {executable('stagewire')} status",
        "through the tunnel": f"{script} ping {b.inner4}",
        "the processes": f"{supervisorctl} status",
        "replace a stage's processes": f"{script} stagewire restart tun",
        "more workers": f"{script} stagewire scale 3",
        "the logs": f"tail -f {a.gateway.log_directory / INTERFACE}/*.log",
        "remove everything": f"{executable('stagewire')} demo --stop",
    }.items():
        screen.gap()
        screen.say(what, "dim")
        screen.say_exactly(command)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description="Two Stagewire gateways, shown at work.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep", action="store_true", help="leave the gateways running after the show")
    choice.add_argument("--stop", action="store_true", help="remove what --keep left running")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("demo: this needs root, for network namespaces and TUN devices", file=sys.stderr)
        return 1
    if arguments.stop:
        removed = remove_kept()
        print("\n".join(f"removed {each}" for each in removed) or "demo: nothing was left running")
        return 0
    return play(arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
