"""Runs resolver-service in the foreground until SIGTERM."""

import sys

from resolver_service.lookup import warm_up
from resolver_service.service import ResolverService
from stagewire.process.stage import Stage


def main() -> int:
    """Returns the exit status."""
    stage = Stage("resolver", warm_up=warm_up)
    return stage.run(ResolverService(stage).set_up)


if __name__ == "__main__":
    sys.exit(main())
