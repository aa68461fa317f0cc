"""Runs host-service in the foreground until SIGTERM. `host-service --undo` undoes its changes, and ends.

With `--link-is-gone`, `--undo` says nothing of an interface that was moved away.
"""

import os
import sys

from stagewire.environment import Environment, EnvironmentMistake
from stagewire.linux import privileges, uids
from stagewire.linux.privileges import CAP_NET_ADMIN, CAP_NET_BIND_SERVICE

EXIT_MISTAKE = 2
CLONES = 16
"""Descriptors of /dev/net/tun, opened as root. Each makes the interface once; the next makes it after a deletion."""


def main() -> int:
    """Returns the exit status."""
    return _undo(link_is_gone="--link-is-gone" in sys.argv) if "--undo" in sys.argv[1:] else _serve()


def _serve() -> int:
    from host_service.service import HostService  # noqa: PLC0415 - undoing needs none of it
    from stagewire.linux import tun  # noqa: PLC0415
    from stagewire.process.stage import Stage  # noqa: PLC0415

    stage = Stage("host")
    clones: list[int] = []
    if stage.environment.managed:
        try:
            clones.extend(tun.open_clone() for _ in range(CLONES))
        except tun.TunUnavailable as unavailable:
            stage.log.warning("no TUN device can be made", reason=str(unavailable))
    return stage.run(HostService(stage, clones).set_up, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE)


def _undo(*, link_is_gone: bool) -> int:
    from host_service import ledger, undo  # noqa: PLC0415

    try:
        environment = Environment.read(os.environ)
        uids.look(environment)
        privileges.drop("host", CAP_NET_ADMIN)
        operations = ledger.read(environment.run / "host" / ledger.NAME)
        if link_is_gone:
            operations = [each for each in operations if not isinstance(each, ledger.LinkMoved)]
        owner = privileges.uid_of("tun")
        undo.undo(environment.interface, owner, operations, lambda text: print(text, file=sys.stderr))  # noqa: T201
    except (EnvironmentMistake, OSError) as mistake:
        print(f"host-service: {mistake}", file=sys.stderr)  # noqa: T201
        return EXIT_MISTAKE
    return 0


if __name__ == "__main__":
    sys.exit(main())
