"""`tun-service`: runs one, in the foreground, until SIGTERM."""

import os
import sys

from stagewire import tun
from stagewire.ipc.stage import EXIT_MISTAKE, Stage
from stagewire.netlink import Netlink
from stagewire.privileges import CAP_NET_ADMIN
from tun_service.service import TunService


def main() -> int:
    """Returns the exit status."""
    stage = Stage("tun")
    netlink = Netlink()
    try:
        device = _device(stage)
    except tun.TunUnavailable as unavailable:
        stage.log.error("cannot work", reason=str(unavailable))
        return EXIT_MISTAKE
    # NET_ADMIN for the device, its addresses and its routes.
    return stage.run(TunService(stage, netlink, device, attached=tun.is_attached(device)).set_up, CAP_NET_ADMIN)


def _device(stage: Stage) -> int:
    """The descriptor of the tun-service before us, or the keeper's, or a new one. Raises TunUnavailable."""
    inherited = stage.inherited.get(tun.DESCRIPTOR)
    if inherited is not None:
        if tun.is_attached(inherited):
            return inherited
        os.close(inherited)  # the device was deleted meanwhile
    return tun.open_clone() if stage.environment.managed else tun.borrow(stage.environment.run / tun.LENDER)


if __name__ == "__main__":
    sys.exit(main())
