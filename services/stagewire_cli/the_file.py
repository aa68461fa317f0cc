"""Finds the configuration file of an interface that is up, and compares it with the text in force."""

import os
from contextlib import suppress
from pathlib import Path

from stagewire import config
from stagewire.config import ConfigError, accepted, unconfirmed
from stagewire.config.accepted import Accepted
from stagewire.environment import Environment
from stagewire.loop import boot_time
from stagewire_cli import processes
from stagewire_cli.supervision import Supervision


def of(environment: Environment) -> Path:
    """Returns the file that an interface was brought up with: a link in its run folder names it.

    Its supervisord's environment names it as well, also after the folder was wiped. Otherwise the interface's name does.
    """
    link = environment.run / "config"
    if link.is_symlink():
        return link.readlink()
    pid = Supervision(environment).pid()
    named = processes.variables(pid).get("STAGEWIRE_CONFIG") if pid is not None else None
    return Path(named) if named else environment.config


def what_was_read(environment: Environment) -> Accepted | None:
    """Returns the text in force; None when it is unknown, or closed to this user."""
    try:
        return accepted.read(environment.run)
    except OSError:
        return None


def as_it_was_read(environment: Environment) -> "config.InterfaceConfig | None":
    """Returns the text in force, parsed; None when it is unknown."""
    read = what_was_read(environment)
    with suppress(ConfigError):
        return config.parse_text(read.text, of(environment)) if read is not None else None
    return None


def warnings(environment: Environment) -> list[str]:
    """Returns a line if a trial waits for its confirmation, or else if the file differs from the text in force.

    Root alone can tell.
    """
    read = what_was_read(environment) if os.geteuid() == 0 else None
    if read is None:
        return []
    if left := unconfirmed.left(environment.run, boot_time()):
        mend = f"`stagewire confirm {environment.interface}` keeps it"
        return [f"what `apply --confirm` has applied goes back in {left:.0f} s; {mend}"]
    path = of(environment)
    try:
        text = config.load_text(path)
        if read.was(text) or config.parse_text(text, path) == config.parse_text(read.text, path):
            return []
    except ConfigError as error:
        return [f"{error.mistakes[0]}; the accepted text stays in force"]
    return [f"{path} has changed since it was read; `stagewire reload {environment.interface}` applies it"]
