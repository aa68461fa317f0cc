"""`key-service`: runs one, in the foreground, until SIGTERM."""

import sys

from key_service.service import KeyService
from key_service.timestamps import TimestampStore
from stagewire import config, privileges
from stagewire.ipc.stage import EXIT_MISTAKE, Stage


def main() -> int:
    """Returns the exit status."""
    stage = Stage("key")
    environment = stage.environment
    try:
        interface = config.load(environment.config)
    except config.ConfigError as error:
        for mistake in error.mistakes:
            stage.log.error("configuration refused", mistake=str(mistake))
        return EXIT_MISTAKE
    path = environment.state / "timestamps"
    try:
        privileges.make_folder(environment.state, "key", 0o700)
        privileges.give(path, "key")
    except OSError as error:
        stage.log.error("cannot work", reason=str(error))
        return EXIT_MISTAKE
    service: list[KeyService] = []

    def set_up() -> None:
        try:
            timestamps = TimestampStore(path)
        except OSError as error:
            stage.log.error("cannot work", reason=f"{path}: {error.strerror}")
            sys.exit(EXIT_MISTAKE)
        service.append(KeyService(stage, interface, timestamps))
        service[0].set_up()

    return stage.run(set_up)


if __name__ == "__main__":
    sys.exit(main())
