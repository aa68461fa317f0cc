"""Starting beside a predecessor that is going, and how long it takes to be gone.

STAGEWIRE_LIFE_ROUNDS=34 makes it 100 rounds of wg-quick instead of a few; STAGEWIRE_LIFE_STRICT=1 holds each end to what a
machine without other work takes.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from time import monotonic

import pytest

from lab.namespaces import Namespace
from lab.stagewire import Gateway, executable
from lab.wait import until
from lab.wg import Bare, unique_name
from lab.wireguard_go import SOCKETS, Peer, new_key_pair
from stagewire.linux import privileges
from stagewire.process import holders, signals

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("STAGEWIRE_LIFE_ROUNDS") or 2)
STRICT = bool(os.environ.get("STAGEWIRE_LIFE_STRICT"))
MEDIAN, WORST = (0.3, 1.0) if STRICT else (1.5, 4.0)
"""s until every process is gone; twelve processes die at once, on processors that others may be using."""
FREE_WITHIN = 1.0
"""s until the port is free after an end that no command waits for."""


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace("life") as namespace:
        yield namespace


def keeper(bare: Bare) -> int:
    (pid,) = holders.present(bare.run_directory / bare.name, holders.KEEPER)
    return pid


ENDS: dict[str, Callable[[Bare], object]] = {
    "device": lambda bare: bare.namespace.run("ip", "link", "delete", bare.name),
    "socket": lambda bare: bare.socket.unlink(),
    "SIGTERM": lambda bare: os.kill(keeper(bare), signal.SIGTERM),
    "down": lambda bare: bare.command("down", bare.name),
    "killed supervisord": lambda bare: os.kill(bare.pid(), signal.SIGKILL),
    "killed keeper": lambda bare: os.kill(keeper(bare), signal.SIGKILL),
}


class Watched:
    """The processes of a moment, by descriptors that tell their end."""

    def __init__(self, pids: list[int]) -> None:
        self._opened = [os.pidfd_open(pid) for pid in pids]

    def wait(self, seconds: float) -> bool:
        """Whether all end in time."""
        ended = signals.wait(self._opened, seconds)
        for process in self._opened:
            os.close(process)
        return ended


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_a_start_takes_over_from_whoever_is_going(namespace: Namespace, lab_directory: Path) -> None:
    took: dict[str, float] = {}
    with Bare(namespace, lab_directory) as bare:
        for name, end in ENDS.items():
            before, began = Watched(namespace.pids()), monotonic()
            end(bare)
            starting = namespace.popen(executable("stagewire"), bare.name, env=bare.env)
            assert before.wait(WORST), f"{name}: what was before is still there after {WORST} s"
            took[name] = monotonic() - began
            assert starting.wait(60) == 0, name
            assert namespace.run("wg", "show", bare.name, "listen-port").stdout.strip().isdecimal()
            assert "mtu 1420" in namespace.run("ip", "link", "show", bare.name).stdout
        again = bare.command(bare.name, check=False)
        assert again.returncode == 1
        assert again.stderr == f"stagewire: {bare.name} is up already; `stagewire down {bare.name}` takes it down\n"
        namespace.run("ip", "link", "delete", bare.name)
        until(bare.gone, 10, "it to be gone, with the keeper of every life before")
    print({name: round(seconds, 2) for name, seconds in took.items()})
    assert median(took.values()) < MEDIAN, took


@pytest.mark.alone
@pytest.mark.parametrize("also", [False, True])
def test_services_end_with_the_keeper_of_a_bare_interface(
    namespace: Namespace, lab_directory: Path, also: bool
) -> None:
    """Also when supervisord was killed along with it."""
    with Bare(namespace, lab_directory, env={"STAGEWIRE_SPARES": "1"}) as bare:
        until(lambda: spares_wait(bare), 30, "every spare to wait")
        before, killed = Watched(namespace.pids()), keeper(bare)
        if also:
            os.kill(killed, signal.SIGSTOP)  # it would see that supervisord is gone
            os.kill(bare.pid(), signal.SIGKILL)
        os.kill(killed, signal.SIGKILL)
        assert before.wait(WORST), f"what was before is still there after {WORST} s"
        assert namespace.run("ip", "link", "show", bare.name, check=False).returncode == 1
        if also:
            bare.command("down", bare.name)
        assert bare.gone()


def be_nice(namespace: Namespace, niceness: int) -> None:
    for pid in namespace.pids():
        with suppress(OSError):  # it has ended
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)


@contextmanager
def beside_busy_processors(namespace: Namespace) -> Iterator[None]:
    """Leaves a gateway's processes hardly any of the processors. This test goes first."""
    be_nice(namespace, 19)
    processors = os.sched_getaffinity(0)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in processors]
    try:
        for each, processor in zip(busy, processors, strict=True):
            os.sched_setaffinity(each.pid, {processor})
            Path(f"/proc/{each.pid}/autogroup").write_text("-20")
            os.setpriority(os.PRIO_PROCESS, each.pid, -20)
        privileges.go_first()
        yield
    finally:
        privileges.stop_going_first()
        for each in busy:
            each.kill()
            each.wait()
        be_nice(namespace, 0)


@pytest.mark.alone
def test_the_port_is_free_at_once_even_on_busy_processors(namespace: Namespace, lab_directory: Path) -> None:
    """No command waits for the end of a gateway whose device was deleted."""

    def is_free() -> bool:
        with suppress(OSError):
            namespace.udp_socket(port=51997).close()
            return True
        return False

    with Bare(namespace, lab_directory, env={"STAGEWIRE_SPARES": "1"}) as bare:
        namespace.run("wg", "set", bare.name, "listen-port", "51997")
        until(lambda: spares_wait(bare), 30, "every spare to wait")
        assert not is_free()
        with beside_busy_processors(namespace):
            ENDS["device"](bare)
            began = monotonic()
            until(is_free, FREE_WITHIN, "the port to be free", promptly=True)
            print(f"free after {(monotonic() - began) * 1000:.0f} ms")
        until(bare.gone, 10, "the rest to be gone")


def spares_wait(bare: Bare) -> bool:
    services = bare.status()["services"]
    return all(each["spares"] for each in services)


def configuration(port: int = 0) -> str:
    peer = Peer(new_key_pair().public, ["10.8.0.0/24"], "192.0.2.9:9")
    listen = f"ListenPort = {port}\n" if port else ""
    return f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n{listen}{peer.section()}\n"


def test_up_waits_for_a_down_that_is_under_way(namespace: Namespace, lab_directory: Path) -> None:
    gateway = Gateway(namespace, unique_name(), lab_directory, configuration(51999), workers=1)
    with gateway:
        for number in (signal.SIGTERM, None):
            before = Watched(namespace.pids())
            if number is None:
                going = namespace.popen(executable("stagewire"), "down", gateway.name, env=gateway.env)
                lock = gateway.run_directory / f"{gateway.name}.turn"
                until(lambda: lock.exists() or going.poll() is not None, 10, "it to have begun")  # noqa: B023
            else:
                os.kill(gateway.pid(), number)
            gateway.up()
            assert before.wait(0.5), "nothing of the life before is there when the next is ready"
            assert gateway.status()["ready"]
            if number is None:
                assert going.wait(10) == 0


def test_two_that_start_at_once_are_one_and_a_refusal(namespace: Namespace, lab_directory: Path) -> None:
    bare = Bare(namespace, lab_directory)
    for folder in (bare.run_directory, bare.state_directory, bare.log_directory):
        folder.mkdir()
    try:
        both = [namespace.popen(executable("stagewire"), bare.name, env=bare.env) for _ in range(2)]
        assert sorted(each.wait(60) for each in both) == [0, 1]
        namespace.run("wg", "show", bare.name)
    finally:
        bare.close()


@pytest.mark.timeout(400 + 60 * ROUNDS)
def test_wg_quick_down_and_up_also_to_and_from_wireguard_go(namespace: Namespace, lab_directory: Path) -> None:
    """A manager does it this way. The port is the same, so the one before must have let go of it."""
    name, port = unique_name(), 51998
    gateway = Gateway(namespace, name, lab_directory, configuration(port))
    for folder in (gateway.run_directory, gateway.state_directory, gateway.log_directory):
        folder.mkdir()
    gateway.write_config(gateway._config_text)
    stagewire = str(executable("stagewire"))
    env = gateway.env | {"STAGEWIRE_WG_DIR": str(SOCKETS), "STAGEWIRE_SPARES": "1"}

    def wg_quick(command: str, program: str) -> "subprocess.CompletedProcess[str]":
        variables = {**env, "WG_QUICK_USERSPACE_IMPLEMENTATION": program}
        return namespace.run("wg-quick", command, gateway.config_path, env=variables, timeout=100, check=False)

    failed = []
    try:
        for number in range(ROUNDS * 3):
            program = (stagewire, stagewire, "wireguard-go")[number % 3]
            up = wg_quick("up", program)
            listens = namespace.run("wg", "show", name, "listen-port", check=False).stdout.strip()
            down = wg_quick("down", program)
            if (up.returncode, down.returncode, listens) != (0, 0, str(port)):
                failed.append(f"{number}: {program}: port {listens}\n{up.stderr}\n{down.stderr}")
        until(lambda: namespace.pids() == [], 10, "all to be gone")
        assert not (SOCKETS / f"{name}.sock").exists()
    finally:
        (SOCKETS / f"{name}.sock").unlink(missing_ok=True)
    assert not failed, "\n".join(failed)
