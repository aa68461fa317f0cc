"""Has an audit line written: by key-service while the interface is up, otherwise by this command."""

import os
from collections.abc import Iterable

from stagewire.audit import Asker, Audit
from stagewire.environment import Environment
from stagewire.history import STATE_MODE
from stagewire.linux import privileges
from stagewire_cli import bring_up, key_door
from stagewire_cli.failures import Failed


def write(environment: Environment, what: str, changes: Iterable[str]) -> None:
    """Writes a line while the interface is down. Raises OSError, and then leaves no part of it."""
    if not environment.state.is_dir():  # else the folder keeps its owner, whose earlier files lie there
        privileges.make_folder(environment.state, "key", STATE_MODE)
    asker = Asker(os.getuid(), os.getpid(), key_door.by())
    Audit(environment.state, environment.interface).write(asker, what, changes)


def unwritten(environment: Environment, error: OSError) -> str:
    """Says why the state can't be written to."""
    return f"{error.filename or environment.state}: {error.strerror}" if error.strerror else str(error)


def backed_up(environment: Environment, output: str) -> str:
    """Notes a backup. Returns why that has failed, or nothing."""
    try:
        if bring_up.is_up(environment):
            key_door.backed_up(environment, output)
        else:
            write(environment, "backup", [f"to {output}"])
    except (OSError, Failed) as error:
        why = unwritten(environment, error) if isinstance(error, OSError) else error
        return f"the audit has no line about this backup: {why}"
    return ""
