"""Checks each descriptor that a holder hands down for what its name means. A spare is root, and a holder may be hostile.

What a check lets pass is a thing of the right kind that the stage's own uid could have. So a hostile holder can at most
leave its successor without packets, which then opens its own. A name that this table lacks is another version's.
"""

import errno
import fcntl
import os
import re
import select
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from stagewire.control.socket_door import TUNNEL, UDP4
from stagewire.limits import MAX_ACCEPTED
from stagewire.linux import tun
from stagewire.linux.peer_credentials import peer_uid
from stagewire.pipe.direct import inherited
from stagewire.pipe.direct.shared_memory import MEMORY_SIZE

SAID: Final = "said"
"""Names the memory file of key-service's messages."""
MAX_SAID: Final = 128 * 1024
"""Bytes, for some 2,000 peers. To read more would take longer than to hear it from key-service again."""
WAITS: Final = "waits"
"""Names an epoll instance, which is readable while work waits (`process/bell.py`)."""
CONFIGURATION: Final = "configuration"
"""Names the memory file of the accepted configuration, for the case that the run folder is wiped."""
_ENDED: Final = select.POLLHUP | select.POLLRDHUP


class _Claim(NamedTuple):
    """Describes what a name claims: the part of it in groups, the stage's folder, the holder's uid."""

    parts: tuple[str, ...]
    descriptor: int
    folder: Path
    uid: int


def is_sound(name: str, descriptor: int, folder: Path, uid: int) -> bool:
    """Tells whether a descriptor is as its name says. `folder` is the stage's, `uid` its holder's.

    Makes sockets and devices non-blocking, as every stage reads them.
    """
    for pattern, check in _CHECKS:
        if (found := pattern.fullmatch(name)) is not None:
            with suppress(OSError, ValueError):
                return check(_Claim(found.groups(), descriptor, folder, uid))
            return False
    return False


def brings_work(name: str) -> bool:
    """Tells whether packets or pushers come by the descriptor of this name: it is readable while they wait."""
    return name in {tun.DESCRIPTOR, WAITS, *TUNNEL} or name.startswith(("pipe:", inherited.PREFIX, inherited.SHARER))


def _socket(descriptor: int) -> socket.socket:
    """Asks the kernel for family, type and protocol. Raises OSError for no socket."""
    return socket.socket(fileno=descriptor)


def _is_kind(claim: _Claim, family: int, kind: int, *, listens: bool = False) -> bool:
    opened = _socket(claim.descriptor)
    try:
        opened.setblocking(False)
        found = (opened.family, opened.type, opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        return found == (family, kind, int(listens))
    finally:
        opened.detach()


def _is_udp(claim: _Claim) -> bool:
    family = socket.AF_INET if claim.parts[0].startswith(UDP4) else socket.AF_INET6
    if not _is_kind(claim, family, socket.SOCK_DGRAM) or _has_ended(claim.descriptor):
        return False
    opened = _socket(claim.descriptor)
    try:
        opened.getpeername()
    except OSError as error:
        return error.errno == errno.ENOTCONN and opened.proto == socket.IPPROTO_UDP and opened.getsockname()[1] != 0
    finally:
        opened.detach()
    return False


def _is_listener(claim: _Claim) -> bool:
    if not _is_kind(claim, socket.AF_UNIX, socket.SOCK_STREAM, listens=True) or _has_ended(claim.descriptor):
        return False
    opened = _socket(claim.descriptor)
    try:
        return opened.getsockname() == str(claim.folder / claim.parts[0]) and peer_uid(opened) in {0, claim.uid}
    finally:
        opened.detach()


def _is_pusher(claim: _Claim) -> bool:
    return int(claim.parts[0]) < inherited.MOST and _is_kind(claim, socket.AF_UNIX, socket.SOCK_STREAM)


def _is_memory(most: int, *, to_write: bool = False) -> Callable[[_Claim], bool]:
    def check(claim: _Claim) -> bool:
        found, seals = os.fstat(claim.descriptor), fcntl.fcntl(claim.descriptor, fcntl.F_GET_SEALS)  # or it is none
        if to_write and seals != fcntl.F_SEAL_SEAL:  # another seal could refuse what the stage writes
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size <= most and _is_for_both(claim.descriptor)

    return check


def _is_for_both(descriptor: int) -> bool:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def _has_ended(descriptor: int) -> bool:
    """Tells whether a socket was shut down: it would be readable for ever."""
    poll = select.poll()
    poll.register(descriptor, _ENDED)
    return bool([events for _, events in poll.poll(0) if events & _ENDED])


def _is_tun(claim: _Claim) -> bool:
    os.set_blocking(claim.descriptor, False)
    is_device = tun.is_device(claim.descriptor) and _is_for_both(claim.descriptor)
    return is_device and tun.is_of(claim.descriptor, claim.folder.parent.name)


def _is_epoll(claim: _Claim) -> bool:
    return str(Path(f"/proc/self/fd/{claim.descriptor}").readlink()) == "anon_inode:[eventpoll]"


_CHECKS: Final = tuple(
    (re.compile(pattern, re.ASCII), check)
    for pattern, check in (
        (tun.DESCRIPTOR, _is_tun),
        (f"({'|'.join(map(re.escape, TUNNEL))})", _is_udp),
        (SAID, _is_memory(MAX_SAID, to_write=True)),
        (CONFIGURATION, _is_memory(MAX_ACCEPTED)),
        (WAITS, _is_epoll),
        (r"pipe:([a-z-]+(?:\.[0-9]+)?):[0-9]+:[0-9]+", _is_listener),
        (inherited.MARKS, _is_memory(os.sysconf("SC_PAGE_SIZE"))),
        (rf"(?:{inherited.PREFIX}|{inherited.SHARER})([0-9]{{1,3}}):[a-z-]+(?:\.[0-9]+)?", _is_pusher),
        (rf"{inherited.MEMORY}[0-9]{{1,3}}", _is_memory(MEMORY_SIZE)),
    )
)
