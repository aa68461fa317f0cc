"""`conn-service`: runs one, in the foreground, until SIGTERM."""

import sys

from conn_service import names
from conn_service.service import ConnService
from stagewire.ipc.stage import Stage
from stagewire.privileges import CAP_NET_ADMIN, CAP_NET_BIND_SERVICE


def main() -> int:
    """Returns the exit status."""
    stage = Stage("conn", warm_up=names.warm_up)
    # NET_ADMIN for large socket buffers and the mark on outer packets, NET_BIND_SERVICE for ports below 1,024.
    return stage.run(ConnService(stage).set_up, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE)


if __name__ == "__main__":
    sys.exit(main())
