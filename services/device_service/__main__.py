"""Runs a device-service, a worker, in the foreground until SIGTERM."""

import argparse
import sys

from device_service.service import DeviceService
from stagewire.limits import MAX_WORKERS
from stagewire.process.stage import EXIT_MISTAKE, Stage
from stagewire.proto.kernel.choice import choose


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="device-service", description="Runs one worker of a Stagewire gateway: it seals and opens packets."
    )
    parser.add_argument(
        "--number",
        type=int,
        choices=range(MAX_WORKERS),
        metavar="N",
        help="worker number (default: the first free one)",
    )
    stage = Stage("device", parser.parse_args().number, warm_up=warm_up)
    try:
        kernel = choose(stage.environment.kernel)
    except ImportError as error:
        stage.log.error("cannot work", reason=str(error))
        return EXIT_MISTAKE
    stage.log.info("kernel chosen", kernel=kernel.name, why=kernel.why, cipher=kernel.library)
    return stage.run(DeviceService(stage, kernel).set_up)


def warm_up() -> None:
    """Loads and tries the ciphers' libraries: a take-over must not wait for them."""
    choose("")


if __name__ == "__main__":
    sys.exit(main())
