"""`key-service`: runs one, in the foreground, until SIGTERM."""

import gc
import sys
from hashlib import blake2s
from pathlib import Path

from key_service import journal, wg_socket
from key_service.registry import Registry, unconfigured
from key_service.service import KeyService
from key_service.timestamps import TimestampStore
from stagewire import config, privileges
from stagewire.environment import Environment
from stagewire.ipc.stage import EXIT_MISTAKE, Stage

RARELY = (700, 10, 1000)
"""When garbage is looked for. The default looks through everything several times while a set of 130,000 prefixes is read,
100 ms and more each, during which no handshake is answered."""


def main() -> int:
    """Returns the exit status."""
    gc.set_threshold(*RARELY)
    stage = Stage("key")
    environment = stage.environment
    timestamps = environment.state / "timestamps"
    try:
        registry = Registry(config.load(environment.config) if environment.managed else unconfigured())
        store = _store(environment)
        for record in journal.records(store):
            registry.restore(record)
        privileges.make_folder(environment.state, "key", 0o700)
        privileges.give(timestamps, "key")
        listener = wg_socket.listen(environment.wg / f"{environment.interface}.sock")
    except config.ConfigError as error:
        for mistake in error.mistakes:
            stage.log.error("configuration refused", mistake=str(mistake))
        return EXIT_MISTAKE
    except OSError as error:
        stage.log.error("cannot work", reason=str(error))
        return EXIT_MISTAKE
    if listener is None:
        stage.log.warning("the wg socket is served by another program", folder=str(environment.wg))
    else:
        stage.at_end = listener.close
    service: list[KeyService] = []

    def set_up() -> None:
        try:
            kept = TimestampStore(timestamps)
        except OSError as error:
            stage.log.error("cannot work", reason=f"{timestamps}: {error.strerror}")
            sys.exit(EXIT_MISTAKE)
        service.append(KeyService(stage, registry, kept, listener, store))
        service[0].set_up()

    return stage.run(set_up)


def _store(environment: Environment) -> Path:
    """Where live changes are remembered: upon this very configuration file, as an edited one is the newer word."""
    text = environment.config.read_bytes() if environment.managed else b""
    store = environment.run / "key" / f"live-{blake2s(text, digest_size=8).hexdigest()}"
    for stale in store.parent.glob("live-*"):
        if stale != store:
            stale.unlink()
    return store


if __name__ == "__main__":
    sys.exit(main())
