"""`status-service`: runs one, in the foreground, until SIGTERM."""

import sys

from stagewire.ipc.stage import Stage
from status_service.service import StatusService


def main() -> int:
    """Returns the exit status."""
    stage = Stage("status")
    return stage.run(StatusService(stage).set_up)


if __name__ == "__main__":
    sys.exit(main())
