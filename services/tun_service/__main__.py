"""`tun-service`: runs one, in the foreground, until SIGTERM."""

import sys

from stagewire import tun
from stagewire.ipc.stage import EXIT_MISTAKE, Stage
from stagewire.privileges import CAP_NET_ADMIN
from tun_service import network
from tun_service.service import TunService


def main() -> int:
    """Returns the exit status."""
    stage = Stage("tun")
    try:
        lender = stage.environment.run / tun.LENDER
        kept = lender.exists()
        device = tun.borrow(lender) if kept else tun.open_clone()
    except tun.TunUnavailable as unavailable:
        stage.log.error("cannot work", reason=str(unavailable))
        return EXIT_MISTAKE
    network.warm_up()
    # NET_ADMIN for the device, its addresses and its routes.
    return stage.run(TunService(stage, device, attached=kept).set_up, CAP_NET_ADMIN)


if __name__ == "__main__":
    sys.exit(main())
