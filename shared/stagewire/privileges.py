"""From root to a uid of one's own: which program runs as whom, and how it gets there.

Accounts named `stagewire-tun` and so on are used where they exist; elsewhere fixed numbers serve, which need no entry
anywhere. Root is needed to open the TUN device, to set addresses and to read the configuration file; what is needed
beyond the start (CAP_NET_ADMIN in tun- and conn-service) is kept as that one capability.
"""

import ctypes
import functools
import os
import pwd
import resource
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12

_GROUP_NUMBER: Final = 64820
_NUMBERS: Final = {"tun": 64821, "device": 64822, "conn": 64823, "key": 64824, "status": 64825}
_USUAL_NICE: Final = 20
"""20 less the niceness, as RLIMIT_NICE counts."""
_NICE_SESSION: Final = 5
"""A third of the usual share: a start is to take what is free, but when a stage is away altogether, others wait for it."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


_started_as_root: Final = os.geteuid() == 0


@functools.cache
def uid_of(stage: str) -> int:
    """The uid that `stage` (tun, device, conn, key, status) runs as; our own when we weren't started as root."""
    if not _started_as_root:
        return os.geteuid()
    try:
        return pwd.getpwnam(f"stagewire-{stage}").pw_uid
    except KeyError:
        return _NUMBERS[stage]


@functools.cache
def group() -> int:
    """The gid that all stages share, and nobody else has."""
    if not _started_as_root:
        return os.getegid()
    try:
        return pwd.getpwnam("stagewire-key").pw_gid
    except KeyError:
        return _GROUP_NUMBER


def make_folder(path: Path, stage: str | None, mode: int) -> None:
    """Makes a folder, or sets right the one that is there, owned by `stage` (None: by root) and the shared group."""
    before = os.umask(0o022)  # the folders above must be open to all whatever umask we were started with
    try:
        path.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)
    if os.geteuid() == 0:
        os.chown(path, 0 if stage is None else uid_of(stage), group())
    path.chmod(mode)


def give(path: Path, stage: str) -> None:
    """Makes `stage` the owner of a file, if there is one; it may be left from a life under another account."""
    if os.geteuid() == 0 and path.exists():
        os.chown(path, uid_of(stage), group(), follow_symlinks=False)


def drop(stage: str, *capabilities: int) -> None:
    """Becomes `stage` for good, keeping only `capabilities`. Not root: only closes what an ordinary user can close."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        # A thread may come back from idle priority to the usual one (`undertaker`), and no further.
        with suppress(ValueError, OSError):  # a container's root may be short of CAP_SYS_RESOURCE; it isn't much
            resource.setrlimit(resource.RLIMIT_NICE, (_USUAL_NICE, _USUAL_NICE))
        uid, gid = uid_of(stage), group()
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        _set_capabilities(capabilities)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # Not even another process of this uid may look into our memory.
    _prctl(_PR_SET_DUMPABLE, 0)


def be_as_nice_as_parent() -> None:
    """Takes the priority of who started us, where we were given a lower one for our start."""
    parents = os.getpriority(os.PRIO_PROCESS, os.getppid())
    if os.geteuid() != 0 or os.getpriority(os.PRIO_PROCESS, 0) <= parents:
        return
    for thread in Path("/proc/self/task").iterdir():  # a library may have some
        os.setpriority(os.PRIO_PROCESS, int(thread.name), parents)


def stop_going_first() -> None:
    """Takes back `go_first`: what waited has been served."""
    for thread in Path("/proc/self/task").iterdir():
        _schedule(int(thread.name), os.SCHED_OTHER, 0)


def let_trains_gather(gather: bool) -> None:
    """Asks the scheduler not to put this thread before another just because something has come for it (SCHED_BATCH).

    Where cores are free nothing changes. Where our own stages take them all, each works on until it has nothing left, and
    the next finds longer trains: measured with both ends on two cores, two fifths fewer context switches and a sixth more
    throughput. Where somebody else takes them, a lone packet would wait at each stage until the clock's next tick: so it is
    for who carries much alone (`ipc.gathering`). Hot: 2.1 us, once each 20 ms.
    """
    _schedule(0, os.SCHED_BATCH if gather else os.SCHED_OTHER, 0)


def go_first() -> None:
    """Asks for a processor before all others: while one takes over, a few milliseconds, packets wait for it alone.

    Measured with two cores busy to 70 %: from the kill to the first packet 5 ms instead of 11.
    """
    _schedule(0, os.SCHED_RR, 1)


def let_go_first(pid: int) -> None:
    """Asks it for one that was killed: what it still has open is in its successor's way."""
    with suppress(OSError):  # gone
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if os.sched_getscheduler(int(thread.name)) != os.SCHED_IDLE:  # its `undertaker` is to come last
                _schedule(int(thread.name), os.SCHED_RR, 1)


def _schedule(thread: int, policy: int, priority: int) -> None:
    with suppress(OSError):  # forbidden in some containers, and nothing depends on it
        os.sched_setscheduler(thread, policy, os.sched_param(priority))


def be_scheduled_apart() -> None:
    """Begins a session of our own, if we are supervisord's; who is started by hand stays with his terminal.

    Linux shares processors by session (sched(7), autogroup), and each by how much of a session's work is on it: were all
    stages one, those that pass a few packets would get little of a processor as soon as another works hard elsewhere.
    """
    if "SUPERVISOR_ENABLED" in os.environ:
        with suppress(OSError):  # supervisord has ended
            os.setpgid(0, os.getpgid(os.getppid()))  # it has made us the leader of a group, who can't
            os.setsid()


def let_other_sessions_go_first() -> None:
    """Asks for less of the processors for our session, if we lead it: supervisord's, in which programs start.

    Where processors are shared by session, a process's own niceness only tells within it.
    """
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_NICE_SESSION))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _set_capabilities(capabilities: tuple[int, ...]) -> None:
    mask = sum(1 << capability for capability in capabilities)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    # effective, permitted, inheritable: first of capabilities 0 to 31, then of 32 to 63
    data = struct.pack("<6I", low, low, 0, high, high, 0)
    if _libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")
