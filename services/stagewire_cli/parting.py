"""Undoes an interface's changes when its supervisord was told to end and no command of ours undoes them.

A plain `supervisord -c supervisord.conf` removes everything, and so does that of a bare interface without its keeper. That
of `stagewire up` undoes the changes to the host. It leaves hooks and DNS to `down`: their list stays in the run folder.
"""

import atexit
import os
import sys
from contextlib import suppress

from stagewire import files, logs
from stagewire.environment import Environment
from stagewire.linux import uids
from stagewire_cli import processes, turn
from stagewire_cli.done import FOLDER
from stagewire_cli.failures import Failed
from stagewire_cli.host_undo import undo_host
from stagewire_cli.wg_file import WgFile


def tidy_at_end(environment: Environment) -> None:
    """Makes this supervisord tidy up after its programs' end. A killed one doesn't, and its programs work on."""
    atexit.unregister(_tidy)  # SIGHUP makes supervisord start anew in the same process
    atexit.register(_tidy, environment)


def _tidy(environment: Environment) -> None:
    if _others(environment):  # a start may have the turn and wait for our end
        return
    with suppress(Failed), turn.take(environment):  # without the turn, a start could lose its new folder
        if _others(environment):
            return
        WgFile(environment).remove()
        left = undo_host(environment)
        if left:
            sys.stderr.write(f"stagewire: {environment.interface}: not undone: {logs.cleaned_lines(left)}\n")
        if not (environment.run / FOLDER).exists():
            files.wipe(environment.run)
            uids.give_up(environment)
        elif not left:
            files.wipe(environment.run / "host")


def _others(environment: Environment) -> frozenset[int]:
    found = processes.find(environment)
    return (found.supervisords - {os.getpid()}) | found.services | found.keepers
