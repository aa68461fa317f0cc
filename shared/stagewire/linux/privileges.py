"""Takes each program from root to its stage's uid, with only the capabilities that it needs; and sets priorities.

`uids` tells which. Only root may open the TUN device, make changes to the host and read the configuration file. Where all
programs run as one uid, they still drop the capabilities that they don't need. `lacking` names all that is lacking.
"""

import ctypes
import errno
import functools
import os
import resource
import signal
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewire import files
from stagewire.linux import uids

CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12
CAP_SETPCAP: Final = 8
CAP_SYS_ADMIN: Final = 21
_CAP_SYS_NICE: Final = 23
_CAP_SYS_RESOURCE: Final = 24
_USUAL_NICE: Final = 20
"""Niceness 0; RLIMIT_NICE counts 20 less the niceness."""
NICE_SESSION: Final = 5
"""A third of the usual share. A start should take free cores alone; but if the stage is away, packets wait for it."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_PR_CAPBSET_DROP: Final = 24
_CAPABILITY_VERSION_3: Final = 0x20080522
_FLAGS: Final = 6
"""Place of a thread's flags in its `stat`, after the name."""
_PF_EXITING: Final = 0x4
_HALF: Final = 0xFFFFFFFF
_libc = ctypes.CDLL(None, use_errno=True)


_own_uid: Final = os.geteuid()
_started_as_root: Final = _own_uid == 0


def _capabilities(kind: str) -> int:
    """Returns a set of our capabilities, such as "CapEff" or "CapPrm", as bits."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1], 16) for line in lines if line.startswith(f"{kind}:")), 0)


_capabilities_at_start: Final = _capabilities("CapEff")


def uid_of(stage: str, number: int = 0) -> int:
    """Returns the uid of a stage, and of a worker (`uids.uid_of`)."""
    return uids.uid_of(stage, number)


def group() -> int:
    """Returns the gid that the interface's stages share (`uids.group`)."""
    return uids.group()


def started_as_root() -> bool:
    return _started_as_root


def had(capability: int) -> bool:
    """Tells whether this program started with a capability."""
    return bool(_capabilities_at_start >> capability & 1)


def may_lock_memory() -> bool:
    """Tells whether a process may keep all of its memory out of the swap."""
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY
    return unlimited or (had(_CAP_SYS_RESOURCE) and _is_first_user_namespace())


def lacking() -> list[str]:
    """Names each privilege that is lacking, and what follows."""
    if not _started_as_root:
        return []
    lacking = []
    if reason := uids.why_shared():
        lacking.append(reason)
    if not may_raise_priority():
        lacking.append("priorities (CAP_SYS_NICE lacking): packets may wait longer on a busy machine")
    if not had(CAP_NET_BIND_SERVICE):
        lacking.append("ports below 1024 (CAP_NET_BIND_SERVICE lacking)")
    return lacking


@functools.cache
def may_raise_priority() -> bool:
    """Tells whether a process that starts with a low priority may take the usual one again."""
    if had(_CAP_SYS_NICE) and _is_first_user_namespace():
        return True
    return resource.getrlimit(resource.RLIMIT_NICE)[0] >= _USUAL_NICE


def _is_first_user_namespace() -> bool:
    # Elsewhere CAP_SYS_NICE means nothing: priorities concern the whole machine.
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def make_folder(path: Path, stage: str | None, mode: int) -> None:
    """Makes a folder of `stage` (None: of root) and the stages' group. Corrects an existing folder's mode and owner."""
    own = os.geteuid() == 0 and not uids.why_one_uid()
    files.make_folder(path, mode, (0 if stage is None else uid_of(stage), group()) if own else None)


def give(path: Path, stage: str, number: int = 0) -> files.Suspicious | None:
    """Makes a stage the owner of an existing file, which another account may have left. Returns why it removed the file."""
    if os.geteuid() == 0 and not uids.why_one_uid():
        return files.give(path, uid_of(stage, number), group())
    return None


def give_socket(path: Path, stage: str, number: int) -> None:
    """Makes a stage the owner of a socket's file in a folder that only root can write."""
    if os.geteuid() == 0 and not uids.why_one_uid():
        os.chown(path, uid_of(stage, number), group(), follow_symlinks=False)


def give_all(folder: Path, stage: str) -> None:
    """Makes a stage the owner of the files in its folder that it had under an earlier uid."""
    if os.geteuid() != 0 or uids.are_shared():
        return
    for path in folder.iterdir():
        with suppress(OSError):  # gone
            opened = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                found = os.fstat(opened)
                # The stage may have put a second name of another file there.
                is_its_own = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and uids.may_be(stage, found.st_uid)
                if is_its_own and found.st_uid != uid_of(stage):
                    os.chown(f"/proc/self/fd/{opened}", uid_of(stage), group())
            finally:
                os.close(opened)


def drop(stage: str, *capabilities: int, number: int = 0) -> None:
    """Becomes a stage for good, and keeps only `capabilities`. Without root, only gives up what any user can give up."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        # A thread may return from idle priority to the usual one (`process.fd_release`), and no further.
        with suppress(ValueError, OSError):  # a container's root may lack CAP_SYS_RESOURCE
            resource.setrlimit(resource.RLIMIT_NICE, (_USUAL_NICE, _USUAL_NICE))
        permitted = _capabilities("CapPrm")
        # A capability that root lacks can't be kept; the stage reports what the kernel then refuses.
        kept = sum(1 << capability for capability in capabilities) & permitted
        # A program that the stage runs, such as nft, gets capabilities from this set alone.
        handed_on = kept & 1 << CAP_NET_ADMIN
        _set_capabilities(permitted, handed_on)
        _empty_bounding_set()
        if not uids.why_one_uid():
            uid, gid = uid_of(stage, number), group()
            _prctl(_PR_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        _set_capabilities(kept, handed_on)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    hide_memory()  # the kernel shows it again to a process that changes its uid


def hide_memory() -> None:
    """Lets no other process of this uid look into our memory, nor the kernel write it to a core file.

    Call it before the first key is read. A program that this process starts is visible again.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def be_as_nice_as_parent() -> None:
    """Takes our parent's priority, after a start with a lower one."""
    parents = os.getpriority(os.PRIO_PROCESS, os.getppid())
    if os.geteuid() != 0 or os.getpriority(os.PRIO_PROCESS, 0) <= parents:
        return
    for thread in Path("/proc/self/task").iterdir():  # a library may have started threads
        with suppress(OSError):  # `lacking` names it
            os.setpriority(os.PRIO_PROCESS, int(thread.name), parents)


def stop_going_first() -> None:
    """Takes `go_first` back."""
    for thread in Path("/proc/self/task").iterdir():
        _schedule(int(thread.name), os.SCHED_OTHER, 0)


def let_trains_gather(gather: bool) -> None:
    """Asks the scheduler not to preempt another thread when something comes for this thread (SCHED_BATCH).

    With free cores nothing changes. If our own stages take all cores, each works until nothing is left, and the next stage
    finds longer trains. If another program takes the cores, a lone packet would wait at each stage for the clock's next
    tick. So only a stage that carries much asks for it (`loop.Gathering`, docs/decisions/011). Hot.
    """
    _schedule(0, os.SCHED_BATCH if gather else os.SCHED_OTHER, 0)


def go_first() -> None:
    """Asks for a processor before all other programs: during a take-over, packets wait for this process."""
    _schedule(0, os.SCHED_RR, 1)


def let_go_first(pid: int) -> None:
    """Asks for the same for a dying process: its successor waits until its descriptors are closed.

    Passes over each thread that may still run code of its program: a hostile holder would keep the processor.
    """
    with suppress(OSError):  # gone
        for thread in Path(f"/proc/{pid}/task").iterdir():
            number = int(thread.name)
            # Idle threads leave last (`fd_release`).
            if os.sched_getscheduler(number) != os.SCHED_IDLE and _is_dying(thread):
                _schedule(number, os.SCHED_RR, 1)


def _is_dying(thread: Path) -> bool:
    """Tells whether a thread never runs its program again: it exits already, or SIGKILL is pending (proc(5))."""
    flags = int((thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[_FLAGS])
    if flags & _PF_EXITING:
        return True
    lines = (thread / "status").read_text(errors="replace").splitlines()
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(signals >> (signal.SIGKILL - 1) & 1 for signals in pending)


def let_idle_threads_run(pid: int) -> None:
    """Gives the idle threads (`process.fd_release`) of a dying process the usual priority: it ends with the last of them."""
    with suppress(OSError):  # gone
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if os.sched_getscheduler(int(thread.name)) == os.SCHED_IDLE:
                _schedule(int(thread.name), os.SCHED_OTHER, 0)


def _schedule(thread: int, policy: int, priority: int) -> None:
    with suppress(OSError):  # some containers forbid it, and nothing depends on it
        os.sched_setscheduler(thread, policy, os.sched_param(priority))


def be_scheduled_apart() -> None:
    """Begins a session for this process if supervisord started it. A process started by hand stays with its terminal.

    Linux shares processors by session (sched(7), autogroup). In one session, a busy stage would take the processors from
    stages that pass a few packets.
    """
    if "SUPERVISOR_ENABLED" in os.environ:
        with suppress(OSError):  # supervisord has ended
            # supervisord made us the leader of a group, and such a leader can't begin a session.
            os.setpgid(0, os.getpgid(os.getppid()))
            os.setsid()


def share_processors(niceness: int) -> None:
    """Sets the niceness of supervisord's session, in which programs start: NICE_SESSION lets other sessions go first.

    Does nothing in a process that doesn't lead its session. A process's own niceness counts only within its session.
    """
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(niceness))


def _prctl(option: int, value: int, more: int = 0) -> None:
    if _libc.prctl(option, value, more, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _empty_bounding_set() -> None:
    with suppress(OSError):  # CAP_SETPCAP may be lacking; `sandbox.does_without` names it
        for capability in range(64):
            if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 and ctypes.get_errno() == errno.EINVAL:
                break  # the kernel knows no more capabilities
    with suppress(OSError):
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def hand_on_net_admin() -> None:
    """Lets the program that this child process is about to run keep CAP_NET_ADMIN. A child of root's has it anyway."""
    if os.geteuid() != 0:
        only = _capabilities("CapPrm") & 1 << CAP_NET_ADMIN
        _set_capabilities(only, only)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN)


def _set_capabilities(permitted: int, inheritable: int) -> None:
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    halves = [(permitted >> shift & _HALF, inheritable >> shift & _HALF) for shift in (0, 32)]
    # effective, permitted, inheritable: of capabilities 0 to 31, then of 32 to 63
    data = struct.pack("<6I", *(value for own, handed_on in halves for value in (own, own, handed_on)))
    if _libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")
