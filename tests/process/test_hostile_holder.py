"""A holder that an attacker took over: its spare, which is root, kills it or waits, and does nothing that it asks for."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.wait import until
from stagewire.linux import privileges
from stagewire.process import holders, slots

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="plays root and a stage")

UID = 64000 + os.getpid() % 500
HOLDER = """
import math, os, sys, time
from pathlib import Path
from stagewire import logs
from stagewire.loop import Loop, boot_time
from stagewire.process.hand_down import Bequest
from stagewire.process.spare import Spare
run, what, uid = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
log = logs.set_up("test", "info")
slot, inherited = Spare(run, "test", lambda: (0,), lambda _: uid, log, urgent=what == "spare").wait()
if what == "spare":
    log.info("begun", inherited=sorted(inherited))
    time.sleep(60)
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
heir = run / "heir"
heir.touch()
os.chown(heir, uid, uid)
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
loop = Loop(slot.beat)
bequest = Bequest(loop, run / "test", 0)
slot.beat(boot_time())
log.info("leaves")
command = run / "go"
while not command.exists():
    slot.beat(boot_time())
    bequest._accept(0.0)
    time.sleep(0.01)
log.info("attacks")
page = slot._page
match what:
    case "nan":
        while True:
            page[0] = page[1] = math.nan
    case "future":
        page[0], page[1] = 1e300, 0.0
    case "infinite":
        page[0], page[1] = math.inf, math.inf
    case "negative":
        page[0], page[1] = -math.inf, -1.0
    case "shorten":
        for change in (lambda: os.ftruncate(slot._file, 0), lambda: os.write(slot._file, bytes(1 << 20)),
                       lambda: os.open(f"/proc/self/fd/{slot._file}", os.O_RDWR), lambda: slot.path.unlink()):
            try:
                change()
            except OSError as error:
                log.info("refused", error=error.strerror)
            else:
                log.info("worked")
    case "flood":
        made = {f"anything{number}": os.open("/dev/null", os.O_RDWR) for number in range(100)}
        while True:
            bequest.leave(made)
            bequest._accept(0.0)
    case "spin":
        bequest.close()
        while True:
            slot.beat(boot_time())
    case "heir":
        ready, told = os.pipe()
        if os.fork():
            os.read(ready, 1)
            os._exit(0)
        heir.write_text(str(os.getpid()))
        os.write(told, b"x")
time.sleep(60)
"""


class Cast:
    """A hostile holder and a spare of root's."""

    def __init__(self, run: Path) -> None:
        self.run = run
        run.chmod(0o755)
        (run / "test").mkdir()
        os.chown(run / "test", UID, UID)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, what: str) -> subprocess.Popen[bytes]:
        with (self.run / f"output.{what}").open("wb") as file:
            arguments = [sys.executable, "-c", HOLDER, str(self.run), what, str(UID)]
            self.processes.append(subprocess.Popen(arguments, stdout=file, stderr=file))
        return self.processes[-1]

    def says(self, what: str, text: str) -> bool:
        return text in (self.run / f"output.{what}").read_text()

    def play(self, what: str) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        """Starts both, and lets the attack begin once the spare waits."""
        holder = self.start(what)
        until(lambda: self.says(what, "leaves"), 20, "a holder")
        spare = self.start("spare")
        until(lambda: self.says("spare", "waits"), 20, "a spare")
        (self.run / "go").touch()
        until(lambda: self.says(what, "attacks"), 20, "the attack")
        return holder, spare

    def took_over(self) -> bool:
        return self.says("spare", "begun")


@pytest.fixture
def cast() -> Iterator[Cast]:
    with tempfile.TemporaryDirectory() as name:  # pytest's folders are closed to a stage
        made = Cast(Path(name))
        yield made
        _end(made)


def _end(made: Cast) -> None:
    for process in made.processes:
        process.kill()
        process.wait(5)
    heir = (made.run / "heir").read_text() if (made.run / "heir").exists() else ""
    if heir and holders.status(int(heir)).get("Uid", "").split()[:1] == [str(UID)]:
        os.kill(int(heir), signal.SIGKILL)


@pytest.mark.parametrize("what", ["nan", "future", "infinite", "negative", "shorten", "flood"])
def test_a_holder_that_lies_about_its_life_is_killed(cast: Cast, what: str) -> None:
    holder, _ = cast.play(what)
    until(cast.took_over, 20, "a take-over")
    assert holder.wait(5) == -signal.SIGKILL
    if what == "shorten":
        assert not cast.says(what, "worked")
        assert (cast.run / f"output.{what}").read_text().count("refused") == 4
    assert cast.says("spare", "inherited=[]")


def test_a_holder_that_hangs_up_and_runs_on_gets_no_priority(cast: Cast) -> None:
    holder, spare = cast.play("spin")
    for _ in range(20):
        assert os.sched_getscheduler(holder.pid) == os.SCHED_OTHER
        time.sleep(0.01)  # nothing is waited for: no moment may show it
    assert holder.poll() is None
    assert not cast.took_over()
    holder.kill()
    until(cast.took_over, 20, "a take-over")
    assert spare.poll() is None


def test_a_lock_that_was_left_to_another_process_keeps_no_slot(cast: Cast) -> None:
    holder, spare = cast.play("heir")
    assert holder.wait(5) == 0
    until(cast.took_over, 20, "a take-over")
    assert slots.held(cast.run) == {("test", 0): spare.pid}


def test_a_process_without_the_lock_is_no_holder_whatever_its_pid(cast: Cast) -> None:
    holder = cast.start("nan")
    until(lambda: cast.says("nan", "leaves"), 20, "a holder")
    file = holders.identity_of(cast.run / "slot.test.0")
    assert file is not None
    assert holders.has_lock(holder.pid, file, UID)
    assert not holders.has_lock(holder.pid, file, UID + 1)
    assert not holders.has_lock(os.getpid(), file, UID)
    assert not holders.has_lock(1, file, UID)


def test_only_a_dying_process_goes_first() -> None:
    named_no_text = "open('/proc/self/comm', 'wb').write(b'\\xe9'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", named_no_text], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        privileges.let_go_first(process.pid)
        assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER
        process.kill()


@pytest.mark.parametrize("make", ["mkfifo", "mkdir", "ln -s /etc/passwd"])
def test_a_slot_that_is_no_file_of_ours_is_an_error_that_names_it(tmp_path: Path, make: str) -> None:
    path = tmp_path / "slot.test.0"
    subprocess.run([*make.split(), path], check=True)
    with pytest.raises(OSError, match=str(path)):
        slots.Slot(tmp_path, "test", 0)


def test_a_file_on_a_mount_that_is_in_no_list_is_known_by_its_device() -> None:
    """A chroot whose root is no mount point sees no mount of its own files."""
    assert holders._filesystem(77, "no mount's number") == 77
