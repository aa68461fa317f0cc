"""Plays each stage hostile: a process in a real stage's sandbox tries all that the stage may not do.

`killed` is the filter's answer (SIGSYS), `refused` is an error of the kernel's. A second part asks the kernel about the
processes of a gateway at work.
"""

import ctypes
import importlib
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from tests.speakers import acting_as
from tests.system.conftest import short_directory

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.stagewire import KilledByFilter
from lab.wait import until
from stagewire.environment import Environment
from stagewire.history import FOLDER, STATE_MODE
from stagewire.linux import landlock, privileges, sandbox, uids
from stagewire.linux.system_calls import NUMBERS
from stagewire.pipe.pipes import prepare_folders
from stagewire.stages import STAGES

pytestmark = pytest.mark.system

DONE, REFUSED, MISTAKE = 0, 77, 78
NO_NETWORK = ("key", "device")
_libc = ctypes.CDLL(None, use_errno=True)
OTHER: Final = {
    "mount": 165, "ptrace": 101, "bpf": 321, "io_uring_setup": 425, "userfaultfd": 323, "keyctl": 250, "add_key": 248,
    "unshare": 272, "setns": 308, "process_vm_readv": 310, "pidfd_open": 434, "perf_event_open": 298, "fork": 57,
    "execveat": 322, "init_module": 175, "personality": 135, "open_by_handle_at": 304, "chroot": 161, "kcmp": 312,
    "setuid": 105, "process_madvise": 440, "pidfd_getfd": 438, "landlock_create_ruleset": 444, "memfd_secret": 447,
    "seccomp": 317, "mknod": 133, "symlink": 88, "reboot": 169, "swapon": 167, "write by x32": 0x40000001,
    "link": 86, "linkat": 265, "chown": 92, "fsopen": 430, "shmget": 29, "mq_open": 240, "iopl": 172, "splice": 275,
    "process_vm_writev": 311, "fanotify_init": 300, "setxattr": 188, "truncate": 76,
}  # fmt: skip
"""System calls that no stage makes, by their numbers on x86_64."""


class Attempt(NamedTuple):
    """Describes what a hostile stage tries. `open_to` are stages that may do it; `killed`: the filter sees it."""

    does: Callable[["Scene"], object]
    open_to: tuple[str, ...] = ()
    killed: bool = True


class Scene:
    """Holds what exists before the stage is locked up."""

    def __init__(self, folder: Path) -> None:
        self.environment = replace(Environment.read({"STAGEWIRE_RUN_DIR": str(folder / "run")}), state=folder / "state")
        for stage in STAGES:
            prepare_folders(self.environment.run, stage)
        privileges.make_folder(self.environment.state, "key", STATE_MODE)
        privileges.make_folder(self.environment.state / FOLDER, "status", 0o700)
        self.anybodys = folder / "anybodys"
        self.anybodys.mkdir(mode=0o777)
        self.anybodys.chmod(0o777)
        self.read_me = self.anybodys / "read-me"
        self.read_me.write_text("of no stage")
        self.abstract = f"\0sw-{os.getpid()}-abstract"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.abstract)
        self.listener.listen()
        self.tcp, self.udp = socket.socket(socket.AF_INET), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        for opened in (self.listener, self.tcp, self.udp):
            opened.close()


def _call(number: int, *arguments: object) -> None:
    if _libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def _number(name: str) -> int:
    number = NUMBERS[name][os.uname().machine == "aarch64"]
    assert number is not None
    return number


def _write_to(path: Path) -> Callable[[Scene], object]:
    return lambda _scene: path.write_text("mine")


ATTEMPTS: Final = {
    "an IPv4 socket": Attempt(lambda _: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), ("host",)),
    "an IPv6 socket": Attempt(lambda _: socket.socket(socket.AF_INET6, socket.SOCK_STREAM), ("host",)),
    "netlink": Attempt(lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0), ("host",)),
    "a packet socket": Attempt(lambda _: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "a vsock": Attempt(lambda _: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)),
    "a cipher of the kernel's": Attempt(lambda _: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)),
    "a TCP connection": Attempt(lambda scene: scene.tcp.connect(("127.0.0.1", 9)), killed=False),
    "a TCP port": Attempt(lambda scene: scene.tcp.bind(("127.0.0.1", 0)), killed=False),
    "a socket that lingers": Attempt(
        lambda scene: scene.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 9)), killed=False
    ),
    "another mark": Attempt(
        lambda scene: scene.udp.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7), ("host",), killed=False
    ),
    "another's abstract socket": Attempt(lambda scene: _connect(scene.abstract), killed=False),
    "a shell": Attempt(lambda _: os.execv("/bin/sh", ["sh", "-c", "exit 0"])),  # noqa: S606
    "a program": Attempt(lambda _: os.execv("/usr/bin/env", ["env"])),  # noqa: S606
    "a process": Attempt(lambda _: os.posix_spawn("/bin/true", ["true"], {})),
    "a file in /tmp": Attempt(_write_to(Path(f"/tmp/sw-{os.getpid()}-left")), killed=False),  # noqa: S108
    "anybody's file": Attempt(lambda scene: (scene.anybodys / "left").write_text("mine"), killed=False),
    "to read anybody's file": Attempt(lambda scene: scene.read_me.read_text(), killed=False),
    "the accounts": Attempt(lambda _: Path("/etc/shadow").read_text(), killed=False),
    "key-service's state": Attempt(
        lambda scene: (scene.environment.state / "mine").write_text("mine"), ("key",), killed=False
    ),
    "the history": Attempt(
        lambda scene: (scene.environment.state / FOLDER / "mine").write_text("mine"), ("status",), killed=False
    ),
    "another process's state": Attempt(
        lambda _: Path(f"/proc/{os.getppid()}/stat").read_text(), ("host",), killed=False
    ),
    "a kernel parameter": Attempt(_write_to(Path("/proc/sys/kernel/core_pattern")), killed=False),
    "to end its parent": Attempt(lambda _: os.kill(os.getppid(), 0)),
    "to be dumpable": Attempt(lambda _: _call(_number("prctl"), 4, 1, 0, 0, 0), ("host",), killed=False),
    "priority over all": Attempt(lambda _: os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1)), killed=False),
    "memory to write and run": Attempt(lambda _: mmap.mmap(-1, 4096, prot=7)),
    "a new namespace": Attempt(lambda _: _call(_number("clone"), 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)),
    "clone3": Attempt(lambda _: _call(_number("clone3"), struct.pack("=11Q", *[0] * 11), 88), killed=False),
    **(
        {
            name: Attempt(lambda _, number=number: _call(number, 0, 0, 0, 0, 0, 0))  # type: ignore[misc]
            for name, number in OTHER.items()
        }
        if os.uname().machine == "x86_64"
        else {}
    ),
}
ONLY_REFUSED: Final = {
    "a shell": ("host",), "a program": ("host",), "a process": ("host",), "to end its parent": ("host",),
}  # fmt: skip
"""Attempts whose system calls these stages need for `nft`: the fence refuses them."""


def _connect(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)


@pytest.fixture(scope="module")
def scene(shared_directory: Path) -> Iterator[Scene]:
    made = Scene(shared_directory)
    yield made
    made.close()


def _in_the_sandbox(scene: Scene, stage: str, does: Callable[[Scene], object]) -> int:
    """Returns how a child ends that tries something as a stage: one of DONE and REFUSED, or less than 0 for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        status = MISTAKE
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        sandbox.prepare(stage)
        privileges.drop(stage, *((privileges.CAP_NET_ADMIN,) if stage == "host" else ()))
        sandbox.fence_in(stage, scene.environment)
        sandbox.lock(stage)
        try:
            does(scene)
            status = DONE
        except OSError:
            status = REFUSED
    finally:
        os._exit(status)


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("stage", [pytest.param(each, marks=pytest.mark.attack(f"hostile-{each}")) for each in STAGES])
def test_a_hostile_stage_gets_nothing_more(scene: Scene, stage: str, attempt: str) -> None:
    tried = ATTEMPTS[attempt]
    if landlock.abi() < 6 and not tried.killed:
        pytest.skip("this kernel's Landlock cannot do it")
    ended = _in_the_sandbox(scene, stage, tried.does)
    if stage in tried.open_to:
        assert ended == DONE
    elif tried.killed and stage not in ONLY_REFUSED.get(attempt, ()):
        assert ended == -signal.SIGSYS
    else:
        assert ended in (REFUSED, -signal.SIGSYS)


def _its_part(scene: Scene, stage: str) -> None:
    """Does what every stage must be able to do."""
    ends = socket.socketpair()
    thread = threading.Thread(target=lambda: ends[0].send(b"!"))
    thread.start()
    thread.join()
    assert ends[1].recv(1) == b"!"
    if stage != "device":  # root opens a worker's sockets
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(str(scene.environment.run / stage / "door"))
        (scene.environment.run / stage / "door").unlink()
    mmap.mmap(-1, 1 << 20).close()
    assert list(Path("/proc/self/task").iterdir())
    importlib.import_module("colorsys")  # any module that nobody has imported

    if stage == "key":
        assert Path("/proc/sys/kernel/random/boot_id").read_text()
    if sandbox.NEEDS[stage].writes:
        file = scene.environment.run / stage / "file"
        file.with_suffix(".new").write_text("kept")
        file.with_suffix(".new").replace(file)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_can_do_its_part(scene: Scene, stage: str) -> None:
    sys.modules.pop("colorsys", None)
    assert _in_the_sandbox(scene, stage, lambda scene: _its_part(scene, stage)) == DONE


PLAYS: Final = """
import os, sys
from pathlib import Path
from stagewire.process.stage import Stage

def set_up():
    try:
        Path(sys.argv[2]).read_text()
        os._exit(int(sys.argv[3]))
    except PermissionError:
        os._exit(int(sys.argv[4]))

Stage(sys.argv[1]).run(set_up)
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_fenced_in_before_it_reads_anything(stage: str, lab_directory: Path) -> None:
    """As its program starts: any user may read this file."""
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    file = lab_directory / "read-me"
    file.write_text("of no stage")
    folders = {f"STAGEWIRE_{each}_DIR": str(lab_directory / each.lower()) for each in ("RUN", "STATE")}
    played = subprocess.run(
        [sys.executable, "-c", PLAYS, stage, str(file), str(DONE), str(REFUSED)],
        env={**os.environ, **folders, "STAGEWIRE_INTERFACE": "wg0", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert played.returncode == REFUSED, played.stderr


@pytest.mark.parametrize("stage", NO_NETWORK)
def test_key_service_and_workers_see_no_interface(scene: Scene, stage: str) -> None:
    """Beside the filter: even a socket handed in from there would lead to an empty network."""
    child = os.fork()
    if not child:
        sandbox.prepare(stage)
        os._exit([name for _, name in socket.if_nameindex()] != ["lo"])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_resolver_reads_what_it_needs(scene: Scene) -> None:
    def read(_scene: Scene) -> None:
        for path in ("/etc/hosts", "/etc/resolv.conf"):
            if Path(path).exists():
                Path(path).read_text()

    assert _in_the_sandbox(scene, "resolver", read) == DONE


# --- processes at work -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with short_directory() as directory, Topology("hs") as network:
        spoke = Spoke(1, Topology.A4)
        with Hub(network.b, directory, {"it": spoke}) as made:
            until(lambda: made.gateway.status()["ready"], 20, "the gateway to be ready")
            yield made


def _facts(pid: int) -> list[dict[str, str]]:
    """Returns what the kernel says of each thread."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        found.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
    return found


@pytest.mark.parametrize("stage", [pytest.param(each, marks=pytest.mark.attack(f"hostile-{each}")) for each in STAGES])
def test_every_thread_at_work_is_locked_up(hub: Hub, stage: str) -> None:
    pid = hub.gateway.pid(stage)
    capabilities = 1 << privileges.CAP_NET_ADMIN | 1 << privileges.CAP_NET_BIND_SERVICE if stage == "host" else 0
    for facts in _facts(pid):
        assert facts["Seccomp"] == "2"
        assert facts["NoNewPrivs"] == "1"
        assert {int(facts[each], 16) for each in ("CapBnd", "CapAmb")} == {0}
        assert {int(facts[each], 16) for each in ("CapEff", "CapPrm")} == {capabilities}
        assert int(facts["CapInh"], 16) & ~capabilities == 0
        assert 0 not in map(int, facts["Uid"].split())
        if sandbox.NEEDS[stage].keys and privileges.may_lock_memory():
            assert facts["VmLck"] != "0 kB"
    # The kernel gives the files of a process that may be dumped to its uid, those of any other to root.
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0


LOOKS: Final = (
    lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDONLY),
    lambda pid: os.open(f"/proc/{pid}/environ", os.O_RDONLY),
    lambda pid: Path(f"/proc/{pid}/fd/0").readlink(),
    lambda pid: _libc_checked(_libc.ptrace(0x4206, pid, 0, 0)),  # PTRACE_SEIZE
)
"""Ways into another process."""


def _libc_checked(result: int) -> None:
    if result < 0:
        raise PermissionError(ctypes.get_errno(), "refused")


def _ways_into(pid: int, uid: int) -> int:
    """Counts the ways into a process that are open to another with this uid and no capability."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = MISTAKE
    try:
        os.setgroups([])
        os.setresgid(uids.group(), uids.group(), uids.group())
        os.setresuid(uid, uid, uid)
        opened = 0
        for look in LOOKS:
            with suppress(PermissionError):
                look(pid)
                opened += 1
        found = opened
    finally:
        os._exit(found)


@pytest.mark.parametrize("stage", [pytest.param(each, marks=pytest.mark.attack(f"hostile-{each}")) for each in STAGES])
def test_no_process_of_a_stages_uid_looks_into_its_memory(hub: Hub, stage: str) -> None:
    assert _ways_into(hub.gateway.pid(stage), uids.uid_of(stage)) == 0
    uid = uids.uid_of(stage)
    with subprocess.Popen(["sleep", "60"], user=uid, group=uids.group(), extra_groups=[]) as open_to_all:
        assert _ways_into(open_to_all.pid, uid) == len(LOOKS)
        open_to_all.kill()


def test_key_service_and_workers_have_a_network_of_their_own(hub: Hub) -> None:
    networks = {stage: Path(f"/proc/{hub.gateway.pid(stage)}/ns/net").stat().st_ino for stage in STAGES}
    here = networks["conn"]
    assert {stage for stage, network in networks.items() if network != here} == {*NO_NETWORK}
    assert networks["key"] != networks["device"]


def test_no_stage_can_open_what_another_process_locks(hub: Hub) -> None:
    """Any process that can read a file can lock it, and a stage could so keep all others from their slots."""
    run = hub.gateway.run_directory
    locked = {
        line.split()[5].split(":")[2] for line in Path("/proc/locks").read_text().splitlines() if "->" not in line
    }
    files = [each for each in (run, *run.rglob("*")) if str(each.lstat().st_ino) in locked]
    assert len(files) >= 2 * len(STAGES), "each stage has a slot, and shows that it is here"
    for uid in (*map(uids.uid_of, STAGES), 65534):
        with acting_as(uid, uids.group()):
            assert [each for each in files if os.access(each, os.R_OK, effective_ids=True)] == []


@pytest.mark.attack("hostile-status")
def test_a_stage_that_the_filter_killed_is_named_in_log_and_status_and_fails_its_test(hub: Hub) -> None:
    """By the signal that a filter sends."""
    hub.gateway.kill("status", signal.SIGSYS)
    until(lambda: hub.gateway.status()["killed_by_filter"] == {"status-service": 1}, 10, "the word of `status`")
    (warning,) = (each for each in hub.gateway.status()["warnings"] if "filter" in each)
    assert warning.startswith("the kernel's filter killed status-service once")
    assert warning in hub.gateway.command("status", hub.name, check=False).stdout
    with pytest.raises(KilledByFilter, match=r"status-service.* \(terminated by SIGSYS"):
        hub.gateway.expect_no_sigsys()
    hub.gateway.sigsys_expected = 1
    hub.gateway.expect_no_sigsys()
