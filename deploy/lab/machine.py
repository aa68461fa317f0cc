"""Runs a machine inside this one, with a real systemd as PID 1.

Processes, mounts, host name, IPC and control groups are its own; its network is a lab namespace's. /usr is the host's
and read-only. /etc, /var and /usr/local are the host's, and changes vanish with the machine. /opt, /run, /tmp, /home,
/root and /dev are its own. The machine cannot set anything for the whole kernel.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from lab.namespaces import Namespace, checked
from lab.wait import until

BOOTED_WITHIN: Final = 30.0
_SYSTEMD: Final = "/lib/systemd/systemd"
_MASKED: Final = """
systemd-sysctl.service systemd-modules-load.service modprobe@.service systemd-binfmt.service proc-sys-fs-binfmt_misc.mount
proc-sys-fs-binfmt_misc.automount sys-kernel-debug.mount sys-kernel-config.mount sys-kernel-tracing.mount
sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount systemd-remount-fs.service
systemd-tmpfiles-setup-dev.service systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket
systemd-udevd-control.socket systemd-logind.service systemd-timesyncd.service systemd-update-utmp.service
systemd-journal-flush.service systemd-random-seed.service getty.target timers.target systemd-journald-audit.socket
systemd-initctl.socket
"""
"""Units that serve hardware or logins, or set something for the whole kernel."""

_SET_UP: Final = r"""
set -eu
root=$1; shift
mount --bind / "$root"
mount -o remount,bind,ro "$root"
for own in mnt opt run tmp home root dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$own"; done
chmod 1777 "$root/tmp"
for kept in etc var usr/local; do
    mkdir -p "$root/mnt/$kept" "$root/mnt/work/$kept"
    mount -t overlay overlay -o "lowerdir=/$kept,upperdir=$root/mnt/$kept,workdir=$root/mnt/work/$kept" "$root/$kept"
done
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
cd "$root/dev"
mknod -m 666 null c 1 3; mknod -m 666 zero c 1 5; mknod -m 666 full c 1 7; mknod -m 666 random c 1 8
mknod -m 666 urandom c 1 9; mknod -m 666 tty c 5 0; mknod -m 600 console c 1 3; mknod -m 666 fuse c 10 229
mkdir net pts shm mqueue; mknod -m 666 net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts pts; ln -s pts/ptmx ptmx
mount -t tmpfs -o mode=1777 tmpfs shm; mount -t mqueue mqueue mqueue
ln -s /proc/self/fd fd; ln -s fd/0 stdin; ln -s fd/1 stdout; ln -s fd/2 stderr
# The kernel lets an unprivileged user's container mount /proc only if it sees another /proc that nothing covers.
mkdir -p "$root/run/netns" "$root/run/host/proc"; mount -t proc proc "$root/run/host/proc"
cd "$root/etc"
: > fstab; rm -rf systemd/system/*.wants; echo 0123456789abcdef0123456789abcdef > machine-id
for unit in $MASKED; do ln -sf /dev/null "systemd/system/$unit"; done
mkdir -p systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitIntervalSec=0\n' > systemd/journald.conf.d/lab.conf
while [ $# -gt 0 ]; do
    mkdir -p "$root/$2"; mount --bind "$1" "$root/$2"; mount -o remount,bind,ro "$root/$2"; shift 2
done
cd "$root"
pivot_root . mnt
umount -l mnt
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$SYSTEMD" --show-status=no \
    --unit=multi-user.target </dev/null
"""


class Machine:
    """Boots a machine when entered; ends everything in it when left.

    `shown` are folders of the host, by their place inside.
    """

    def __init__(self, namespace: Namespace, shown: Mapping[str, Path] | None = None) -> None:
        self.namespace = namespace
        self._shown = shown or {}
        self._stack = contextlib.ExitStack()
        self.pid = 0
        """The pid of its systemd, as the host sees it."""

    def __enter__(self) -> Self:
        with self._stack:
            root = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp"))
            self.cgroup = _cgroup_mount() / f"sw-{os.getpid()}-{self.namespace.label}"
            (self.cgroup / "lab").mkdir(parents=True)
            self._stack.callback(self._remove_cgroup)
            self._log = self._stack.enter_context(tempfile.TemporaryFile())
            self._boot(root)
            self._stack.callback(self._end)
            until(self._booted, BOOTED_WITHIN, f"the machine in {self.namespace.name} to boot")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self,
        *argv: str | Path,
        check: bool = True,
        timeout: float = 30,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - subprocess.run calls it so
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end in the machine, as root."""
        result = subprocess.run(
            self._entering(argv), check=False, timeout=timeout, env={**self._environment(), **(env or {})}, input=input,
            stdin=None if input is not None else subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        return checked(result) if check else result

    def popen(self, *argv: str | Path, output: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        """Starts a command, which ends with the machine at the latest."""
        return subprocess.Popen(
            self._entering(argv), env=self._environment(), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def path(self, inside: str) -> Path:
        """Returns the host's path of a file in the machine."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def journal(self, *arguments: str) -> str:
        """Returns the output of journalctl."""
        return self.run("journalctl", "--no-pager", "--quiet", *arguments).stdout

    def _boot(self, root: str) -> None:
        shown = [word for inside, folder in self._shown.items() for word in (str(folder), inside)]
        enter = [
            "nsenter", f"--net={self.namespace.path}", "unshare", "--pid", "--mount", "--uts", "--ipc", "--cgroup", "--fork",
            "--kill-child", "sh", "-c", _SET_UP, "machine", root, *shown,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            _joining(self.cgroup, enter), stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
            env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "MASKED": " ".join(_MASKED.split()), "SYSTEMD": _SYSTEMD},
        )  # fmt: skip

    def _booted(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"the machine did not boot: {self._said()}")
        if not self.pid:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
                return False
            self.pid = int(children[0])
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state == "degraded":
            raise RuntimeError(f"units failed: {self.run('systemctl', '--failed', '--no-legend').stdout}")
        return state == "running"

    def _entering(self, argv: tuple[str | Path, ...]) -> list[str]:
        return _joining(self.cgroup / "lab", ["nsenter", "-t", str(self.pid), "-a", "--", *map(str, argv)])

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
        }

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-2000:]

    def _end(self) -> None:
        # When a PID 1 dies, the kernel ends all its processes. unshare(1), its parent, reaps it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid or self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _remove_cgroup(self) -> None:
        def gone() -> bool:
            for folder, _, _ in os.walk(self.cgroup, topdown=False):
                with contextlib.suppress(OSError):  # its processes are still ending
                    Path(folder).rmdir()
            return not self.cgroup.exists()

        until(gone, 5, f"{self.cgroup} to go")


def _joining(cgroup: Path, argv: list[str]) -> list[str]:
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *argv]


def _cgroup_mount() -> Path:
    """Returns the mount point of cgroup v2, which some hosts have beside v1."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise RuntimeError("no cgroup2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
