"""Identifies the network namespace in which an interface's services run or ran.

A name may lead to another namespace by now. The kernel reuses device and inode of a namespace that is gone, but never its
cookie (SO_NETNS_COOKIE) before the next boot.
"""

import ctypes
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

T = TypeVar("T")

_HERE: Final = Path("/proc/self/ns/net")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_SO_NETNS_COOKIE: Final = 71
"""Since Linux 5.14."""
_CLONE_NEWNET: Final = 0x40000000
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies a network namespace for good. `cookie` is 0 on a kernel without cookies."""

    boot: str
    device: int
    inode: int
    cookie: int

    @classmethod
    def of_here(cls) -> Self:
        """Returns the identity of this process's namespace. Raises OSError."""
        found = _HERE.stat()
        return cls(_BOOT.read_text().strip(), found.st_dev, found.st_ino, _cookie())

    def is_of_this_boot(self) -> bool:
        """Says whether the machine hasn't booted since; a boot ends each namespace. Raises OSError."""
        return _BOOT.read_text().strip() == self.boot

    def is_at(self, path: Path) -> bool:
        """Says whether a path leads to this namespace, or to another with its inode."""
        try:
            found = path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.inode)


class Network:
    """Holds a network namespace open."""

    def __init__(self, path: Path) -> None:
        """Opens the namespace at a path. Raises OSError."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def is_here(self) -> bool:
        """Says whether this process is in this namespace."""
        return os.path.samestat(os.fstat(self._file), _HERE.stat())

    def is_that_of(self, identity: Identity) -> bool:
        """Says whether this is the namespace with that identity. Raises OSError if it can't be entered."""
        found = os.fstat(self._file)
        is_at = (found.st_dev, found.st_ino) == (identity.device, identity.inode)
        return is_at and self.call(_cookie) == identity.cookie

    def enter(self) -> None:
        """Moves this thread into the namespace. Raises OSError."""
        # Python 3.11 lacks os.setns.
        if ctypes.CDLL(None, use_errno=True).setns(self._file, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "the interface's network namespace can't be entered")

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function inside the namespace. Raises OSError."""
        if self.is_here:
            return function()

        from concurrent.futures import ThreadPoolExecutor  # slow to import, and `down` seldom needs it

        def entered() -> T:
            self.enter()
            return function()

        with ThreadPoolExecutor(max_workers=1) as one_thread:
            return one_thread.submit(entered).result()

    def close(self) -> None:
        os.close(self._file)


def of_process(pid: int) -> Network | None:
    """Opens the namespace of a process; None when the process is gone."""
    with suppress(OSError):
        return Network(Path(f"/proc/{pid}/ns/net"))
    return None


def shared_by(pids: Iterable[int], least: int) -> int | None:
    """Returns a process in the namespace of most of these processes, of `least` at least; None without one."""
    members: dict[tuple[int, int], list[int]] = {}
    for pid in pids:
        with suppress(OSError):
            found = Path(f"/proc/{pid}/ns/net").stat()
            members.setdefault((found.st_dev, found.st_ino), []).append(pid)
    most = max(members.values(), key=len, default=[])
    return most[0] if len(most) >= least else None


def find(identity: Identity) -> Network | None:
    """Opens a namespace if a process is in it or a file is mounted for it. Raises OSError if it can't be entered."""
    if not identity.is_of_this_boot():
        return None
    for path in (_HERE, *_mounted(), *Path("/proc").glob("[0-9]*/ns/net")):
        if not identity.is_at(path):
            continue
        with suppress(FileNotFoundError):  # the process has ended
            network = Network(path)
            if network.is_that_of(identity):
                return network
            network.close()
    return None


def _mounted() -> Iterator[Path]:
    """Yields the paths at which ip-netns(8) and others have mounted namespaces."""
    for words in (line.split() for line in Path("/proc/self/mountinfo").read_bytes().splitlines()):
        if words[3].startswith(b"net:["):  # the kernel writes a space in a path as \040
            yield Path(os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), words[4])))


def _cookie() -> int:
    with socket.socket(socket.AF_UNIX) as any_socket, suppress(OSError):
        return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    return 0
