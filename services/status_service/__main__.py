"""Runs status-service in the foreground until SIGTERM."""

import sys
from pathlib import Path

from stagewire.history import FOLDER, STATE_MODE
from stagewire.linux import privileges
from stagewire.process.stage import Stage, why
from status_service import http
from status_service.service import StatusService


def main() -> int:
    """Returns the exit status."""
    stage = Stage("status")
    # Later the stage may open no socket of the network.
    place = stage.environment.metrics
    listener = http.listen(*place) if place is not None else "off"
    if isinstance(listener, str) and place is not None:
        stage.log.warning("serves no metrics", reason=listener)
    return stage.run(StatusService(stage, listener, _folder(stage)).set_up)


def _folder(stage: Stage) -> Path | None:
    """Makes the folder of the history, in the interface's state folder, which is key-service's."""
    state: Path = stage.environment.state
    try:
        privileges.make_folder(state, "key", STATE_MODE)
        privileges.make_folder(state / FOLDER, "status", 0o700)
        privileges.give_all(state / FOLDER, "status")
    except OSError as error:
        stage.log.warning("keeps no history", reason=why(error))
        return None
    return state / FOLDER


if __name__ == "__main__":
    sys.exit(main())
