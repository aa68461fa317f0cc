"""`device-service`: runs one crypto worker, in the foreground, until SIGTERM. Which one, it finds out by itself."""

import argparse
import sys

from device_service.service import DeviceService
from stagewire.environment import MAX_WORKERS
from stagewire.ipc.stage import Stage


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="device-service", description="Runs one crypto worker of a Stagewire gateway."
    )
    parser.add_argument(
        "--number", type=int, choices=range(MAX_WORKERS), metavar="N", help="this one, from 0; otherwise one that lacks"
    )
    stage = Stage("device", parser.parse_args().number)
    return stage.run(DeviceService(stage).set_up)


if __name__ == "__main__":
    sys.exit(main())
