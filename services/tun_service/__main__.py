"""Runs a tun-service in the foreground until SIGTERM."""

import os
import sys

from stagewire.linux import privileges, tun
from stagewire.process.stage import EXIT_MISTAKE, Stage
from stagewire.proto.kernel import rule
from tun_service.service import TunService


def main() -> int:
    """Returns the exit status."""
    stage = Stage("tun")
    try:
        kernel = rule.load(stage.environment.kernel, "stagewire.linux.tun_trains")
        device = _device(stage)
    except ImportError as error:
        stage.log.error("cannot work", reason=str(error))
        return EXIT_MISTAKE
    except tun.TunUnavailable as unavailable:
        stage.log.error("cannot work", reason=str(unavailable))
        return EXIT_MISTAKE
    return stage.run(TunService(stage, device, attached=tun.is_attached(device), kernel=kernel).set_up)


def _device(stage: Stage) -> int:
    """Returns the descriptor that the holder before us handed down, or the keeper's, or a new one. Raises TunUnavailable."""
    inherited = stage.inherited.get(tun.DESCRIPTOR)
    if inherited is not None:
        if tun.is_attached(inherited):
            tun.give(inherited, privileges.uid_of("tun"))
            return inherited
        os.close(inherited)  # the device was deleted meanwhile
    return tun.open_clone() if stage.environment.managed else tun.borrow(stage.environment.run / tun.LENDER)


if __name__ == "__main__":
    sys.exit(main())
