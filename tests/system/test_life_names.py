"""Who is meant: by what the kernel vouches for. Neither a name, nor a path, nor an inode's number makes a process ours."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from lab.namespaces import Namespace, stop
from lab.stagewire import Gateway, executable
from lab.wait import until
from lab.wireguard_go import Peer, new_key_pair
from stagewire.loop import boot_time
from stagewire.process import slots

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NOBODY = 65534
HOLD = 'for folder; do mount -t tmpfs -o mode=755 none "$folder"; done; echo apart; exec sleep infinity'


class Apart(Gateway):
    """A gateway on file systems of its own, at the same paths as others'; as a container also with pids of its own."""

    def __init__(self, namespace: Namespace, directory: Path, *, container: bool, spares: int = 0) -> None:
        peer = Peer(new_key_pair().public, ["10.8.0.0/24"], "192.0.2.9:9")
        text = f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n{peer.section()}\n"
        super().__init__(namespace, "x0", directory, text, workers=1, spares=spares)
        self.wg_directory.mkdir(exist_ok=True)
        for folder in (self.run_directory, self.state_directory, self.log_directory):
            folder.mkdir(exist_ok=True)
        own_pids = ("--pid", "--fork", "--mount-proc") if container else ()
        self._holder = namespace.popen(
            *("unshare", "--mount", "--propagation", "private", *own_pids, "sh", "-c", HOLD, "-"),
            *(self.run_directory, self.state_directory, self.wg_directory),
            output=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"apart\n"
        self._inside = self._holder.pid
        if container:
            children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
            self._inside = int(children[0])
        self._container = container

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        stop(self._holder)
        assert self._holder.stdout is not None
        self._holder.stdout.close()

    def mount(self, folder: Path) -> None:
        """Mounts an empty file system, which this gateway alone sees."""
        self.namespace.run("nsenter", "--target", str(self._inside), "--mount", "mount", "-t", "tmpfs", "none", folder)

    def command(self, *arguments: str, check: bool = True, timeout: float = 30) -> "subprocess.CompletedProcess[str]":
        enter = ["nsenter", "--target", str(self._inside), "--mount", *(["--pid"] if self._container else [])]
        return self.namespace.run(
            *enter, executable("stagewire"), *arguments, check=check, timeout=timeout, env=self.env
        )

    def status(self) -> dict[str, Any]:
        return self.status_by_command()  # this process sees other files

    def at_work(self) -> dict[str, int]:
        """The pids that `status` shows, as they are in its own namespace."""
        return {each["service"]: each["pid"] for each in self.status()["services"]}


@pytest.fixture
def namespaces() -> Iterator[list[Namespace]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Namespace(label)) for label in ("x", "y", "z")]


def test_gateways_of_one_name_on_different_file_systems_know_nothing_of_one_another(
    lab_directory: Path, namespaces: list[Namespace]
) -> None:
    here, there, inside = namespaces
    with (
        Apart(there, lab_directory, container=False) as other,
        Apart(inside, lab_directory, container=True) as container,
    ):
        before = other.at_work(), container.at_work()
        gateway = Apart(here, lab_directory, container=False, spares=1)
        refused = gateway.command("down", "x0", check=False)
        assert (refused.returncode, refused.stderr) == (3, "stagewire: x0 is not up\n")
        with gateway:  # although both others run
            ours = gateway.at_work()
            assert not {*ours.values()} & {*other.at_work().values()}
            until(lambda: waits(gateway), 30, "the spare to wait")
            os.kill(ours["tun-service"], signal.SIGSTOP)
            until(lambda: gateway.at_work()["tun-service"] != ours["tun-service"], 10, "its spare to be at work")
            assert other.at_work() == before[0]
            gateway.command("restart", "status", "x0")
            gateway.down()
            assert here.pids() == [gateway._holder.pid]
        assert (other.at_work(), container.at_work()) == before
        other.down()
        assert container.at_work() == before[1]
        container.down()


@pytest.mark.parametrize("inside", [False, True])
def test_a_run_folder_that_a_gateway_in_another_pid_namespace_uses_is_left_alone(
    lab_directory: Path, namespaces: list[Namespace], inside: bool
) -> None:
    """A container may share the host's folders."""
    here, there, _ = namespaces
    text = f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n"
    gateway = Gateway(here, "x0", lab_directory, text, workers=1)
    gateway.write_config(text)
    for folder in (gateway.run_directory, gateway.state_directory, gateway.log_directory):
        folder.mkdir()
    apart = ("unshare", "--mount", "--pid", "--fork", "--mount-proc")
    up = f"{executable('stagewire')} up {gateway.config_path} && echo up; exec sleep infinity"
    process = here.popen(*(apart if inside else ()), "sh", "-c", up, env=gateway.env, output=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"x0 is up, with 0 peers\n"
    wanted = {path.name: path.stat().st_ino for path in (gateway.run_directory / "x0").glob("slot.*")}
    for arguments in (("down", "x0"), ("up", gateway.config_path)):
        enter = () if inside else apart
        done = there.run(*enter, executable("stagewire"), *arguments, check=False, timeout=60, env=gateway.env)
        assert (done.returncode, done.stdout) == (1, "")
        assert "a gateway in another container uses" in done.stderr
    assert {path.name: path.stat().st_ino for path in (gateway.run_directory / "x0").glob("slot.*")} == wanted
    assert slots.are_held(gateway.run_directory / "x0")


def waits(gateway: Apart) -> bool:
    """Whether a spare of tun-service waits."""
    return any(each["service"] == "tun-service" and each["spares"] for each in gateway.status()["services"])


HOLDER = """
import sys, time
from pathlib import Path
from stagewire.process.holders import Presence
from stagewire.loop import boot_time
from stagewire.process.slots import Slot
slot, here = Slot(Path(sys.argv[1]), "tun", 0), Presence(Path(sys.argv[1]), "tun")
print(slot.take(boot_time()), flush=True)
time.sleep(1000)
"""


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", folder], check=True)


def test_a_file_of_the_same_number_on_another_file_system_is_another(lab_directory: Path) -> None:
    folders = [lab_directory / each for each in ("a", "b")]
    with contextlib.ExitStack() as stack:
        for folder in folders:
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
            stack.callback(_unmount, folder)
        ours, others = folders
        for name in ("beats.tun.0", "slot.tun.0", "here.tun"):
            (ours / name).touch()
        holder = stack.enter_context(
            subprocess.Popen([sys.executable, "-c", HOLDER, others], stdout=subprocess.PIPE, text=True)
        )
        stack.callback(holder.kill)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        for name in ("beats.tun.0", "slot.tun.0", "here.tun"):
            assert (ours / name).stat().st_ino == (others / name).stat().st_ino, "or this shows nothing"
        assert (slots.held(ours), slots.contenders(ours)) == ({}, [])
        assert (slots.held(others), slots.contenders(others)) == ({("tun", 0): holder.pid}, [holder.pid])
        slot = slots.Slot(ours, "tun", 0)
        assert slot.holder(0) is None
        assert slot.take(boot_time())
        slot.close()
        del slot  # its page is mapped


STRANGER = """
import fcntl, os, sys, time
run = sys.argv[1]
os.mkdir(run)
held = []
for name in sys.argv[2:]:
    held.append(os.open(f"{run}/{name}", os.O_RDWR | os.O_CREAT, 0o600))
    fcntl.flock(held[-1], fcntl.LOCK_EX)
    if name.endswith(".0"):
        os.unlink(f"{run}/{name}")
print("holds", flush=True)
time.sleep(1000)
"""


def test_what_an_ordinary_user_holds_open_or_calls_itself_means_nothing(
    lab_directory: Path, namespaces: list[Namespace]
) -> None:
    """With a user and a mount namespace of its own, it can have a file at any path, and any name."""
    here, there, _ = namespaces
    run = lab_directory / "run"
    script = lab_directory / "key-service"
    script.write_text(STRANGER)
    files = [f"slot.{stage}.0" for stage in ("tun", "key", "conn", "device", "host")]
    files += ["here.supervisord", "here.keeper", "here.tun", "here.going", "slot.status.0.x"]
    run.mkdir()
    stranger = there.popen(
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
        *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'mount -t tmpfs none {run}; exec "$@"', "-"),
        *("/usr/bin/python3", str(script), str(run / "x0"), *files),
        env={"STAGEWIRE_RUN_DIR": str(run), "STAGEWIRE_INTERFACE": "x0"},
        output=subprocess.PIPE,
    )
    # As root, but without anything of the gateway's: a name alone.
    named = there.popen("bash", "-c", f"exec -a supervisord sleep 1000 # -c {run}/x0/supervisord.conf")
    try:
        assert stranger.stdout is not None
        until(lambda: stranger.poll() is not None or stranger.stdout.readline() == b"holds\n", 10, "it to hold them")  # type: ignore[union-attr]
        assert stranger.poll() is None
        gateway = Gateway(here, "x0", lab_directory, _text(), workers=1, spares=1)
        refused = gateway.command("down", "x0", check=False)
        assert (refused.returncode, refused.stderr) == (3, "stagewire: x0 is not up\n")
        with gateway:
            found = {each["pid"] for each in gateway.status()["services"]}
            assert found <= {*here.pids()}
            gateway.down()
            assert here.pids() == []
        assert (stranger.poll(), named.poll()) == (None, None)
    finally:
        stop(stranger)
        stop(named)
        assert stranger.stdout is not None
        stranger.stdout.close()


NAMED = r"""
import ctypes, time
ctypes.CDLL(None).prctl(15, b"caf\xe9\xff", 0, 0, 0)
print("named", flush=True)
time.sleep(1000)
"""


def test_names_that_are_no_text_stop_nothing(lab_directory: Path, namespaces: list[Namespace]) -> None:
    """An ordinary user's process may have any bytes as its name, and so may a mount point on a stick from elsewhere."""
    here, there, _ = namespaces
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    named = there.popen(*user, "/usr/bin/python3", "-c", NAMED, output=subprocess.PIPE)
    (stick := lab_directory / os.fsdecode(b"caf\xe9 \xff")).mkdir()
    try:
        assert named.stdout is not None
        assert named.stdout.readline() == b"named\n"
        gateway = Apart(here, lab_directory, container=False, spares=1)
        gateway.mount(stick)
        with gateway:
            assert gateway.at_work().keys() >= {"tun-service", "key-service", "host-service"}
            gateway.command("restart", "status", timeout=120)
            gateway.down()
            assert not [pid for pid in here.pids() if "service" in Path(f"/proc/{pid}/cmdline").read_text()]
    finally:
        stop(named)
        assert named.stdout is not None
        named.stdout.close()


def _text() -> str:
    peer = Peer(new_key_pair().public, ["10.8.0.0/24"], "192.0.2.9:9")
    return f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n{peer.section()}\n"


def test_a_pid_that_another_process_has_by_now_is_left_alone(lab_directory: Path, namespaces: list[Namespace]) -> None:
    """The pid file of a supervisord that was killed, with the number of somebody else's process in it."""
    here = namespaces[0]
    bystander = here.popen("sleep", "1000")
    run = lab_directory / "run" / "x0"
    run.mkdir(parents=True)
    (run / "supervisord.pid").write_text(f"{bystander.pid}\n")
    gateway = Gateway(here, "x0", lab_directory, _text(), workers=1)
    try:
        gateway.down()
        assert bystander.poll() is None
        assert not re.search("x0", here.run("ip", "-o", "link").stdout)
        assert not run.exists()
    finally:
        stop(bystander)
