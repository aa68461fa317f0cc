"""Starts the `stagewire` command so that ^C ends it without a traceback, also while its modules load."""

import signal


def main() -> None:
    """Loads the commands and runs the one on the command line."""
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # a parent may have it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stagewire_cli.__main__ import main as command

    signal.signal(signal.SIGINT, on_interrupt)
    command()
