"""Leaves each stage only what it needs: its own files, no network without need, and a list of system calls.

    prepare(stage)                 as root, before the wait for a slot: what takes long
    privileges.drop(stage)         the uid, and no capability that the stage doesn't need
    fence_in(stage, environment)   its own files
    lock(stage)                    its system calls, once the stage has opened all that it opens only once

Each of them holds for the whole process and for good. `NEEDS` says what each stage may do. What this host can't do is done
without, and `does_without` names it (docs/decisions/021).
"""

import ctypes
import errno
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stagewire.environment import Environment
from stagewire.history import FOLDER
from stagewire.linux import landlock, privileges, seccomp
from stagewire.linux.landlock import CHANGE, EXECUTE, MAKE_SOCKET, READ, READ_DIR, READ_FILE, REMOVE_FILE, WRITE, Rule
from stagewire.linux.seccomp import ALLOW, ANY, Argument, Call, Calls, fails_with


@dataclass(frozen=True, slots=True)
class Needs:
    """Describes what a stage needs beyond its pipes, log and memory."""

    network: bool = True
    """It stays in the host's network namespace, or else gets an empty one."""
    keys: bool = False
    """It holds keys: nothing of its memory reaches the swap."""
    writes: bool = False
    """It keeps files."""
    host: bool = False
    """It changes the host: opens sockets of every kind that this takes, writes kernel parameters, runs `nft`."""
    asks_names: bool = False
    """It reads the host's lists of names and DNS servers, and connects to the servers' TCP port."""


NEEDS: Final = {
    "tun": Needs(),
    "device": Needs(network=False, keys=True),
    "conn": Needs(),
    "key": Needs(network=False, keys=True, writes=True),
    "status": Needs(writes=True),
    "host": Needs(writes=True, host=True),
    "resolver": Needs(asks_names=True),
}

LOCKED_MEMORY: Final = "locked memory"
_CLONE_NEWNET: Final = 0x40000000
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_DNS_PORT: Final = 53
_SWAPS: Final = Path("/proc/swaps")
_LIBRARIES: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_libc = ctypes.CDLL(None, use_errno=True)


# --- before the wait ---------------------------------------------------------------------------------------


def prepare(stage: str) -> list[str]:
    """Leaves the host's network and locks memory, where the stage's needs say so. Returns what failed.

    Only a process with one thread may call it.
    """
    needs, failed = NEEDS[stage], []
    if not needs.network and _libc.unshare(_CLONE_NEWNET) != 0:
        failed.append("an empty network namespace")
    if needs.keys and not _lock_memory():
        failed.append(LOCKED_MEMORY)
    return failed


def _lock_memory() -> bool:
    """Keeps all memory of this process, and all that it takes later, out of the swap. No page is filled for it."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    # With a limit, memory that the process takes later would be refused.
    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    return unlimited and _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0


# --- files -------------------------------------------------------------------------------------------------


def fence_in(stage: str, environment: Environment) -> None:
    """Leaves this thread, and those that it starts, the stage's own files alone. Raises OSError."""
    landlock.fence_in(_rules(stage, environment), [_DNS_PORT] if NEEDS[stage].asks_names else [])


def _rules(stage: str, environment: Environment) -> Iterator[Rule]:
    needs, own = NEEDS[stage], environment.run / stage
    # Python reads a module when it is first imported, and its text for a traceback.
    for library in {*_LIBRARIES, str(Path(os.__file__).parent), *filter(os.path.isabs, sys.path)}:
        yield Rule(Path(library), READ)
    yield Rule(Path("/proc"), READ_DIR)  # a process lists its threads
    yield Rule(own, WRITE if needs.writes else MAKE_SOCKET | REMOVE_FILE)
    if stage == "key":
        yield Rule(environment.state, WRITE)
        yield Rule(Path("/proc/sys/kernel/random/boot_id"), READ_FILE)
    if stage == "status":
        yield Rule(environment.state / FOLDER, WRITE)
        yield Rule(environment.run, READ_FILE)  # the pages of beats; all else there is closed to it by modes
    if needs.asks_names:
        # Other programs replace these files, and may make them later.
        for folder in (Path("/etc"), Path("/run"), Path(os.path.realpath("/etc/resolv.conf")).parent, environment.run):
            yield Rule(folder, READ_FILE)
    if needs.host:
        yield Rule(Path("/proc"), READ)
        yield Rule(Path("/proc/sys/net"), CHANGE)
        yield Rule(Path("/etc"), READ)  # nft reads names of protocols and groups
        yield Rule(Path("/dev/null"), CHANGE)
        import shutil  # noqa: PLC0415 - it loads three compressors, and no other stage needs it

        for program in filter(None, [shutil.which("nft")]):
            yield Rule(Path(os.path.realpath(program)), EXECUTE | READ_FILE)
        for library in _LIBRARIES:
            yield Rule(Path(library), READ | EXECUTE)  # the loader is a program


# --- system calls ------------------------------------------------------------------------------------------

_FOR_ALL: Final = """
    read write epoll_wait recvmsg sendmsg readv writev recvfrom sendto epoll_pwait epoll_pwait2 epoll_ctl epoll_create1 poll
    ppoll select pselect6 recvmmsg sendmmsg pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2
    dup3 fcntl flock ftruncate eventfd2 pipe2 bind listen connect accept accept4 shutdown getsockname getpeername getsockopt
    setsockopt memfd_create

    futex munmap mremap madvise brk membarrier rseq set_robust_list get_robust_list gettid sched_yield sched_getaffinity
    sched_setaffinity sched_setscheduler sched_getscheduler sched_getparam sched_get_priority_max
    sched_get_priority_min getpriority getcpu

    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack pause restart_syscall nanosleep clock_nanosleep
    clock_gettime clock_getres gettimeofday time times

    fstat stat lstat newfstatat statx fstatfs statfs access faccessat faccessat2 readlink readlinkat getcwd getdents64 unlink
    unlinkat umask

    getpid getppid getuid geteuid getgid getegid getresuid getresgid getgroups capget getrlimit getrusage uname sysinfo
    getrandom exit exit_group
"""
"""Pipes, the most frequent first; threads; signals and time; files, with the rights of uid and fence; the process itself."""
_TO_KEEP_FILES: Final = """
    openat open rename renameat renameat2 chmod fchmod fchmodat fchown utimensat fallocate fsync fdatasync msync mkdir
    mkdirat
"""
_TO_RUN_PROGRAMS: Final = """
    execve wait4 waitid vfork clone capset arch_prctl set_tid_address chdir getpgrp getpgid getsid setsid prctl kill
    socketpair ioctl prlimit64
"""
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
_PROT_WRITE, _PROT_EXEC = 2, 4
_CLONE_VM, _CLONE_THREAD = 0x100, 0x10000
_NEW_NAMESPACES: Final = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000
_PR_SET_NAME: Final = 15
_TCGETS, _FIONBIO, _FIOCLEX, _FIONCLEX, _FIONREAD, _SIOCOUTQ = 0x5401, 0x5421, 0x5451, 0x5450, 0x541B, 0x5411
_SIOCGIFNAME, _SIOCGIFINDEX = 0x8910, 0x8933
_TUN: Final = (0x400454CA, 0x800454D2, 0x400454D0)
"""TUNSETIFF, TUNGETIFF and TUNSETOFFLOAD of linux/if_tun.h."""


def calls(stage: str) -> Calls:
    """Lists the system calls that a stage may make from its first turn of the loop to its end."""
    needs = NEEDS[stage]
    ours = os.getpid()
    found = dict.fromkeys(_FOR_ALL.split(), ANY)
    found["mmap"] = Call(((Argument(2, (0,), _PROT_EXEC),), (Argument(2, (0,), _PROT_WRITE),)))
    found["mprotect"] = Call(((Argument(2, (0,), _PROT_EXEC),),))
    # The C library takes `clone` where it may not see what `clone3` would do.
    found["clone3"] = Call((), fails_with(errno.ENOSYS))
    thread = _CLONE_VM | _CLONE_THREAD
    found["clone"] = Call(((Argument(0, (thread,), thread | _NEW_NAMESPACES),),))
    found["kill"] = found["tgkill"] = Call(((Argument(0, (ours,)),),))
    found["prlimit64"] = Call(((Argument(2, (0,)), Argument(2, (0,), high=True)),))
    found["prctl"] = Call(((Argument(0, (_PR_SET_NAME,)),),), fails_with(errno.EPERM))
    found["socket"] = found["socketpair"] = Call(((Argument(0, (socket.AF_UNIX,)),),))
    # A socket that lingers, handed to another process, would hold that up when it closes it.
    lingers = (Argument(1, (socket.SOL_SOCKET,)), Argument(2, (socket.SO_LINGER,)))
    found["setsockopt"] = Call((lingers,), ALLOW, fails_with(errno.EPERM))
    commands = (_TCGETS, _FIONBIO, _FIOCLEX, _FIONCLEX, _FIONREAD, _SIOCOUTQ, _SIOCGIFINDEX, _SIOCGIFNAME)
    found["ioctl"] = Call(((Argument(1, commands + (_TUN if stage == "tun" else ())),),))
    for name, flags in (("openat", 2), ("open", 1)):
        found[name] = Call(((Argument(flags, (0,), _WRITING),),), fails_with(errno.EACCES))
    if needs.writes:
        found.update(dict.fromkeys(_TO_KEEP_FILES.split(), ANY))
    if needs.host:
        # Its program, nft, has the same filter and needs no more.
        found.update(dict.fromkeys(_TO_RUN_PROGRAMS.split(), ANY))
        found["clone"] = Call(((Argument(0, (0,), _NEW_NAMESPACES),),))
        families = (socket.AF_UNIX, socket.AF_NETLINK, socket.AF_INET, socket.AF_INET6)
        found["socket"] = Call(((Argument(0, families),),))
    return found


def lock(stage: str) -> None:
    """Kills the process from now on if it makes a system call that the stage doesn't need. Raises OSError."""
    seccomp.load(seccomp.program(calls(stage)))


# --- what is lacking ---------------------------------------------------------------------------------------


def does_without() -> str:
    """Says in a sentence what this host denies to root's programs, and what follows; empty if it denies nothing."""
    lacking = [*privileges.lacking(), *_lacking()]
    return f"does without {'; without '.join(lacking)}" if lacking else ""


def has_swap() -> bool:
    """Tells whether this host has swap at this moment."""
    try:
        return len(_SWAPS.read_text().splitlines()) > 1  # the first line is a heading
    except OSError:
        return True  # a container may hide it


def _lacking() -> Iterator[str]:
    if not privileges.started_as_root():
        return
    if not privileges.had(privileges.CAP_SETPCAP):
        yield "empty bounding sets (CAP_SETPCAP lacking): only no_new_privs keeps stages from new capabilities"
    if not privileges.had(privileges.CAP_SYS_ADMIN):
        yield (
            "empty network namespaces (CAP_SYS_ADMIN lacking): only filters of system calls keep key-service and workers "
            "from the network"
        )
    if not privileges.may_lock_memory() and has_swap():
        yield f"{LOCKED_MEMORY} (CAP_SYS_RESOURCE or an unlimited RLIMIT_MEMLOCK lacking): keys may reach the swap"
    if not landlock.abi():
        yield "Landlock (the kernel lacks it, or forbids it here): only owners and modes of files keep stages apart"
