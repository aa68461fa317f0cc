"""Finds the configuration for a starting key-service: the accepted text of a running gateway, otherwise the file's text.

So an edited file cannot stop a running gateway. `stagewire reload` applies an edited file.
"""

import mmap
import os
import time
from pathlib import Path

from stagewire import config, files
from stagewire.config import ConfigError, InterfaceConfig, accepted, operations, unconfirmed
from stagewire.config.accepted import Accepted
from stagewire.limits import MAX_ACCEPTED
from stagewire.linux import mapped_pages, privileges
from stagewire.process import handed
from stagewire.process.stage import Stage

_left: list[tuple[int, mmap.mmap | None]] = []
"""The memory file for the spares, and its pages."""


def accepted_by(stage: Stage) -> tuple[Accepted, InterfaceConfig]:
    """Returns the configuration in force and stores it. Raises ConfigError if no configuration is valid."""
    environment = stage.environment
    for kept in (accepted.read(environment.run), _inherited(stage)):
        if kept is None:
            continue
        try:
            interface = config.parse_text(kept.text, environment.config)
        except ConfigError:  # another version accepted this text
            stage.log.warning(
                "this version refuses the configuration in force and reads the file", file=str(environment.config)
            )
            continue
        _compare(stage, kept)
        keep(stage, kept)
        return kept, operations.in_force(interface, time.time())
    kept = Accepted.first(config.load_text(environment.config))
    if unconfirmed.holds(environment.state, kept.text):
        stage.log.warning("the file was applied on trial and never confirmed", file=str(environment.config))
    interface = config.parse_text(kept.text, environment.config)
    kept = without_others(kept, interface)
    keep(stage, kept)
    return kept, operations.in_force(interface, time.time())


def without_others(kept: Accepted, interface: InterfaceConfig) -> Accepted:
    """Takes the keys of peers that are out of use, or expired, out of a text."""
    return kept.without(operations.secrets_not_in_force(kept.text, interface, time.time()))


def keep(stage: Stage, kept: Accepted) -> None:
    """Stores the configuration in force in the run folder. If that fails, only spares inherit the configuration."""
    run = stage.environment.run
    try:
        if accepted.read(run) != kept:
            files.put_over(kept.prepare(run, privileges.uid_of("key"), privileges.group()), accepted.path(run))
    except OSError as error:
        stage.log.warning("cannot store the configuration in force", reason=f"{accepted.path(run)}: {error.strerror}")


def _leave(stage: Stage, kept: Accepted) -> None:
    """Hands the configuration in force down to the spares."""
    descriptor = os.memfd_create(handed.CONFIGURATION, os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(kept.packed())
    stage.bequest.leave({handed.CONFIGURATION: descriptor}, handed.CONFIGURATION)
    for earlier, pages in _left:
        os.ftruncate(earlier, 0)  # also for a spare that still holds it
        os.close(earlier)
        if pages is not None:
            pages.close()
    _left[:] = [(descriptor, mapped_pages.of(descriptor))]


class Kept:
    """Holds the accepted text of a running key-service: in the run folder, and in a memory file for the spares."""

    def __init__(self, stage: Stage, kept: Accepted) -> None:
        self._stage = stage
        self._kept = kept

    @property
    def kept(self) -> Accepted:
        """Returns the text."""
        return self._kept

    def leave(self) -> None:
        """Hands the text down to the spares."""
        _leave(self._stage, self._kept)

    def accept(self, kept: Accepted) -> None:
        """Takes another text, which lies in the run folder already."""
        self._kept = kept
        _leave(self._stage, kept)

    def forget(self, secrets: set[bytes]) -> None:
        """Takes keys that are no longer in force out of the text."""
        kept = self._kept.without(secrets)
        if kept is not self._kept:
            keep(self._stage, kept)
            self.accept(kept)


def journal_of(run: Path, kept: Accepted) -> Path:
    """Returns the path of a configuration's journal and deletes all other journals. Raises OSError."""
    store = run / "key" / f"live-{kept.generation}"
    for stale in store.parent.glob("live-*"):
        if stale != store:
            files.clear(stale)
    return store


def _inherited(stage: Stage) -> Accepted | None:
    descriptor = stage.inherited.pop(handed.CONFIGURATION, None)
    if descriptor is None:
        return None
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return accepted.unpack(files.read_open(descriptor, MAX_ACCEPTED))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _compare(stage: Stage, kept: Accepted) -> None:
    """Logs a warning if the file is invalid or differs from the configuration in force."""
    path = stage.environment.config
    try:
        if kept.was(config.load_text(path)):
            return
        reason = "the file has changed; `stagewire reload` applies it"
    except ConfigError as error:
        reason = error.mistakes[0].message
    stage.log.warning("keeps the configuration in force, not the file's", file=str(path), reason=reason)
