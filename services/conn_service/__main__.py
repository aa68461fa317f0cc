"""Runs a conn-service in the foreground until SIGTERM."""

import sys

from conn_service.kernel import load
from conn_service.service import ConnService
from stagewire.process.stage import EXIT_MISTAKE, Stage


def main() -> int:
    """Returns the exit status."""
    stage = Stage("conn")
    try:
        kernel = load(stage.environment.kernel)
    except ImportError as error:
        stage.log.error("cannot work", reason=str(error))
        return EXIT_MISTAKE
    # It keeps no capability: an attacker who takes conn-service over can change nothing of the host.
    return stage.run(ConnService(stage, kernel).set_up)


if __name__ == "__main__":
    sys.exit(main())
