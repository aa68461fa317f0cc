"""Runs a key-service in the foreground until SIGTERM."""

import codecs
import gc
import sys
from contextlib import suppress
from importlib import import_module
from typing import Final

from key_service import door_wire, in_force, journal, wg_socket
from key_service.registry import Registry, unconfigured
from key_service.service import KeyService
from key_service.timestamps import TimestampStore
from stagewire import config
from stagewire.config import unconfirmed
from stagewire.config.accepted import Accepted
from stagewire.control import usage
from stagewire.history import STATE_MODE
from stagewire.linux import privileges
from stagewire.process.stage import EXIT_MISTAKE, Stage, why
from stagewire.proto import noise
from stagewire.proto.constants import KEY_LENGTH
from stagewire.proto.kernel import rule

FILES: Final = ("timestamps", "audit", usage.NAME, unconfirmed.NAME)
"""In the state folder, whose former owner may be another."""
KERNEL: Final = "stagewire.proto.kernel.symmetric"
RARELY = (700, 10, 1000)
"""Thresholds of the garbage collector. With the defaults, a big change starts several full collections, and each delays
all handshakes."""


def main() -> int:
    """Returns the exit status."""
    gc.set_threshold(*RARELY)
    stage = Stage("key", warm_up=warm_up)
    privileges.hide_memory()  # root's part reads keys as well
    environment = stage.environment
    try:
        kernel = _choose_kernel(environment.kernel)
        kept, interface = in_force.accepted_by(stage) if environment.managed else (Accepted.first(""), unconfigured())
        registry, text = Registry(interface), in_force.Kept(stage, kept)
        store = in_force.journal_of(environment.run, kept)
        for record in journal.records(store):
            registry.restore(record)
        privileges.make_folder(environment.state, "key", STATE_MODE)
        timestamps, *others = (environment.state / name for name in FILES)
        removed = privileges.give(timestamps, "key")
        for file in others:
            privileges.give(file, "key")
        listener = wg_socket.listen(environment.wg / f"{environment.interface}.sock")
        door = door_wire.listen(environment.run) if environment.managed else None
    except (config.ConfigError, ImportError, OSError) as error:
        return _refused(stage, error)
    del kept, interface  # their keys must not outlive a change
    if listener is None:
        _warn_of_another(stage)
    else:
        stage.at_end = listener.close
    service: list[KeyService] = []

    def set_up() -> None:
        try:
            stamps = TimestampStore(timestamps)
        except OSError as error:
            stage.log.error("cannot work", reason=f"{timestamps}: {error.strerror}")
            sys.exit(EXIT_MISTAKE)
        if lost := removed or stamps.lost:
            stage.log.warning(
                "time stamps are lost: each peer's next initiation counts, even a recorded one",
                file=str(timestamps),
                reason=f"it {lost.why}",
            )
        service.append(KeyService(stage, registry, stamps, listener, store, kernel))
        service[0].set_up()
        for opened in (listener, door):
            if stage.bell is not None and opened is not None:
                stage.bell.watch(opened.fileno())
        if door is not None:
            service[0].open_door(door, text)

    return stage.run(set_up)


def warm_up() -> None:
    """Loads what handshakes need: a new key-service must not do it while they wait."""
    config.public_key(bytes(KEY_LENGTH))
    with suppress(ImportError):  # `rule.load` says why
        import_module(KERNEL)
    codecs.lookup("ascii")


def _choose_kernel(wanted: str) -> str:
    """Chooses what computes handshakes, and returns what `status` says of it. Raises ImportError as `rule.load` does."""
    compiled, said = rule.load(wanted, KERNEL)
    if compiled is not None:
        noise.use(compiled.SymmetricState)
    return said


def _refused(stage: Stage, error: config.ConfigError | ImportError | OSError) -> int:
    if isinstance(error, ImportError):
        stage.log.error("cannot work", reason=str(error))
    elif isinstance(error, OSError):
        stage.log.error("cannot work", reason=why(error))
    else:
        for mistake in error.mistakes:
            stage.log.error("configuration refused", mistake=str(mistake))
    return EXIT_MISTAKE


def _warn_of_another(stage: Stage) -> None:
    stage.log.warning(
        "another program serves the wg socket",
        folder=str(stage.environment.wg),
        mend="stop that program, then run `stagewire restart`",
    )


if __name__ == "__main__":
    sys.exit(main())
