"""Runs Debian's ufw and firewalld in a namespace, from packages that `deploy/setup --system` unpacks and does not install.

A room is a mount namespace where the packages' files lie over the host's. Settings and sockets in it vanish with it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from lab.namespaces import Namespace, stop
from lab.wait import until

PACKAGES: Final = Path(__file__).resolve().parents[2] / ".venv" / "firewalls"
_SET_UP: Final = r"""
set -eu
packages=$1
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/etc /mnt/work
mount -t overlay overlay -o "lowerdir=$packages/etc:/etc,upperdir=/mnt/etc,workdir=/mnt/work" /etc
mount -t overlay overlay -o "lowerdir=$packages/usr:/usr" /usr
for own in /run /var/log; do mount -t tmpfs -o mode=755 tmpfs "$own"; done
mkdir /run/dbus
# Otherwise the bus would start programs of the host's, such as polkitd.
services=/usr/share/dbus-1/system-services
[ ! -d "$services" ] || mount -t tmpfs tmpfs "$services"
# The package's own script copies these when it is installed.
cp /usr/share/ufw/iptables/*.rules /usr/share/ufw/*.init /usr/share/ufw/ufw.conf /etc/ufw
exec dbus-daemon --system --nofork --nopidfile
"""


class Room:
    """Lets ufw and firewalld run in a namespace when entered."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def __enter__(self) -> Self:
        self._bus = self._namespace.popen("unshare", "--mount", "sh", "-c", _SET_UP, "room", PACKAGES)
        until(Path(f"/proc/{self._bus.pid}", "root", "run/dbus/system_bus_socket").exists, 10, "the bus in the room")
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._bus)

    def run(self, *argv: str) -> str:
        """Runs a command to its end. Returns its output."""
        return self._namespace.run(*self._entering(), *argv, timeout=30).stdout

    @contextlib.contextmanager
    def firewalld(self) -> Iterator[None]:
        """Runs firewalld, which removes its table at the end."""
        daemon = self._namespace.popen(*self._entering(), "firewalld", "--nofork", "--nopid")
        try:
            until(self._is_ready, 20, "firewalld")
            yield
        finally:
            stop(daemon, patience=10)

    def _is_ready(self) -> bool:
        return self._namespace.run(*self._entering(), "firewall-cmd", "--state", check=False).returncode == 0

    def _entering(self) -> tuple[str, ...]:
        return "nsenter", f"--mount=/proc/{self._bus.pid}/ns/mnt", "--"
