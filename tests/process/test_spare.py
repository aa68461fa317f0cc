"""A spare takes over: at a death, at a hang, with what it was left; and never beside a holder that lives."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.wait import until
from stagewire import logs
from stagewire.linux import privileges
from stagewire.process import giving_back, holders, slots, spare

FREEZERS = (
    ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"),
    ("/sys/fs/cgroup", "cgroup.freeze", "1", "0"),
)
"""Both versions of control groups. In the first, a frozen process doesn't even die of SIGKILL."""

CONTENDER = """
import os, socket, sys, time
from pathlib import Path
from stagewire import logs
from stagewire.process.hand_down import Bequest
from stagewire.deadlines import Every
from stagewire.loop import Loop
from stagewire.process.slots import SlotLost
from stagewire.process import slots, spare
from stagewire.process.spare import Spare
import stagewire.loop
pusher = int(sys.argv[4])
if pusher:
    stagewire.loop.MAX_SLEEP = slots.MAX_SLEEP = spare.REST_INTERVAL = float(sys.argv[5])
    spare.AWAKE_FOR = 0.0
run, numbers = Path(sys.argv[1]), range(int(sys.argv[2]))
log = logs.set_up("test", "info")
slot, inherited = Spare(run, "test", lambda: numbers, lambda _: os.geteuid(), log).wait()
got = {name: os.fstat(number).st_ino for name, number in inherited.items()}
log.info("begun", number=slot.number, got=got)
loop = Loop(slot.beat, slot.sleep if pusher else None)
bequest = Bequest(loop, run / "test", slot.number)
kept = os.memfd_create("said") if "said" not in inherited else inherited["said"]
bequest.leave({"said": kept} | ({"pipe-pusher:0:control": pusher} if pusher else {}))
log.info("leaves", inode=os.fstat(kept).st_ino)
command = Path(sys.argv[3])
def obey(now):
    if command.exists():
        what = command.read_text()
        if what == "busy":
            slot.expect_silence(60, now)
        command.unlink()
        while True:
            if what != "spin":
                time.sleep(1)
if not pusher:
    loop.add_timed(Every(0.01, obey))
try:
    loop.run()
except SlotLost:
    log.info("lost")
slot.release()
bequest.close()
time.sleep(60)
"""


class Contender:
    """A process that holds a slot or waits for one."""

    def __init__(self, run: Path, numbers: int, pusher: int = 0, sleep: float = 60.0) -> None:
        """With the descriptor of a `pusher`, which it leaves unread, it has nothing to do and may `sleep` so long (s)."""
        self.name = os.urandom(4).hex()
        self.output, self.command = run / f"output.{self.name}", run / f"command.{self.name}"
        arguments = [str(run), str(numbers), str(self.command), str(pusher), str(sleep)]
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CONTENDER, *arguments],
                stdout=file,
                stderr=file,
                pass_fds=[pusher] if pusher else [],
            )

    def says(self, what: str) -> bool:
        return what in self.output.read_text()

    def wait_for(self, what: str) -> None:
        until(lambda: self.says(what), 10, f"{what}: {self.output.read_text()}")

    def order(self, what: str) -> None:
        fresh = self.command.with_suffix(".new")
        fresh.write_text(what)
        fresh.rename(self.command)

    @property
    def wakes(self) -> int:
        """How often it has slept and woken."""
        return int(holders.status(self.process.pid)["voluntary_ctxt_switches"])

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


class Place:
    """A run folder and its contenders."""

    def __init__(self, run: Path) -> None:
        self.run = run
        (run / "test").mkdir()
        self.contenders: list[Contender] = []

    def start(self, numbers: int = 1, pusher: int = 0, sleep: float = 60.0) -> Contender:
        self.contenders.append(Contender(self.run, numbers, pusher, sleep))
        return self.contenders[-1]

    def holder_and_spare(self, pusher: int = 0, sleep: float = 60.0) -> tuple[Contender, Contender]:
        """The second waits, and has been left what the first has."""
        first = self.start(pusher=pusher, sleep=sleep)
        first.wait_for("leaves")
        second = self.start(pusher=pusher, sleep=sleep)
        second.wait_for("waits")
        links = Path(f"/proc/{second.process.pid}/fd")
        until(lambda: any("memfd:said" in str(link.readlink()) for link in links.iterdir()), 10, "the copy to be there")
        return first, second

    def held(self) -> dict[int, int]:
        return {number: pid for (_, number), pid in slots.held(self.run).items()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for contender in made.contenders:
        contender.process.kill()
        contender.process.wait(5)


def left(contender: Contender) -> str:
    return contender.output.read_text().partition("leaves")[2].partition("inode=")[2].split()[0]


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_spare_takes_over_with_what_it_was_left(place: Place, death: int) -> None:
    first, second = place.holder_and_spare()
    inode = left(first)
    first.process.send_signal(death)
    second.wait_for("leaves")
    assert left(second) == inode
    assert place.held() == {0: second.process.pid}


def test_a_holder_that_is_stopped_is_killed(place: Place) -> None:
    first, second = place.holder_and_spare()
    first.process.send_signal(signal.SIGSTOP)
    second.wait_for("leaves")
    assert first.process.wait(5) == -signal.SIGKILL
    assert left(second) == left(first)


@pytest.mark.parametrize("hang", ["spin", "sleep"])
def test_a_holder_whose_loop_stands_still_is_killed(place: Place, hang: str) -> None:
    first, second = place.holder_and_spare()
    first.order(hang)
    second.wait_for("leaves")
    assert first.process.wait(5) == -signal.SIGKILL


def rests(contender: Contender) -> bool:
    """Whether it doesn't wake for ten looks."""
    before = contender.wakes
    time.sleep(10 * spare.LOOK_INTERVAL)
    return contender.wakes == before


def test_a_spare_rests_while_the_holder_sleeps_and_finds_it_stopped_when_work_comes(place: Place) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first, second = place.holder_and_spare(pusher=theirs.fileno())
        until(lambda: rests(second) and rests(first), 10, "both to rest")
        first.process.send_signal(signal.SIGSTOP)
        assert rests(second)
        ours.send(b"work")
        second.wait_for("leaves")
        assert first.process.wait(5) == -signal.SIGKILL


def test_a_holder_that_may_wake_is_left_alone_though_work_waits(place: Place) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first, second = place.holder_and_spare(pusher=theirs.fileno())
        ours.send(b"work")
        with pytest.raises(subprocess.TimeoutExpired):
            first.process.wait(1.0)  # three times as long as would do for a stopped one
        assert not second.says("begun")


def test_the_end_of_a_holder_ends_a_rest(place: Place) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first, second = place.holder_and_spare(pusher=theirs.fileno())
        until(lambda: rests(second), 10, "the spare to rest")
        first.process.kill()
        second.wait_for("begun")


def test_a_holder_that_has_announced_long_work_is_left_alone(place: Place) -> None:
    first, second = place.holder_and_spare()
    first.order("busy")
    until(lambda: not first.command.exists(), 10, "it to be busy")
    with pytest.raises(subprocess.TimeoutExpired):
        first.process.wait(1.0)  # three times as long as would do otherwise
    assert place.held() == {0: first.process.pid}
    assert not second.says("begun")


def test_a_spare_that_is_stopped_holds_nobody_up(place: Place) -> None:
    first, second = place.holder_and_spare()
    second.process.send_signal(signal.SIGSTOP)
    third = place.start()
    third.wait_for("waits")
    first.process.kill()
    third.wait_for("begun")
    second.process.send_signal(signal.SIGCONT)
    third.process.kill()
    second.wait_for("leaves")
    assert left(second) == left(first)


def test_one_spare_watches_all_slots_and_takes_the_one_that_is_free(place: Place) -> None:
    holders = [place.start(3) for _ in range(3)]
    for holder in holders:
        holder.wait_for("leaves")
    assert sorted(place.held()) == [0, 1, 2]
    spare = place.start(3)
    spare.wait_for("waits")
    victim = place.held()[1]
    os.kill(victim, signal.SIGKILL)
    spare.wait_for("begun")
    assert place.held() == {**place.held(), 1: spare.process.pid}
    # The kernel frees the slot a moment before the killed process has ended.
    until(lambda: [holder.alive for holder in holders].count(True) == 2, 5, "the victim to have ended")


def test_of_many_that_wait_one_takes_over(place: Place) -> None:
    first = place.start()
    first.wait_for("leaves")
    waiting = [place.start() for _ in range(5)]
    for each in waiting:
        each.wait_for("waits")
    while waiting:
        (holder,) = [each for each in place.contenders if each.process.pid in place.held().values()]
        holder.process.kill()
        until(lambda: any(each.says("begun") for each in waiting), 10, "another")
        begun = [each for each in waiting if each.says("begun")]
        assert len(begun) == 1
        assert place.held() == {0: begun[0].process.pid}
        waiting.remove(begun[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="looks into others' descriptors")
@pytest.mark.parametrize("hung", [False, True])
def test_a_wiped_folder_never_makes_two(place: Place, hung: bool) -> None:
    """The file is gone, the lock is not: who comes next waits until the holder has noticed, or has been killed."""
    first = place.start()
    first.wait_for("leaves")
    (place.run / "slot.test.0").unlink()
    if hung:
        first.process.send_signal(signal.SIGSTOP)
    second = place.start()
    second.wait_for("begun")
    if hung:
        assert first.process.wait(5) == -signal.SIGKILL
    else:
        assert first.says("lost")
    assert place.held() == {0: second.process.pid}


def test_a_wiped_folder_makes_no_two_beside_a_holder_that_sleeps(place: Place) -> None:
    """It looks at the file only when it wakes, which its spares wait for."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first, second = place.holder_and_spare(theirs.fileno(), sleep=1.0)
        until(lambda: rests(first), 10, "the holder to sleep")
        (place.run / "slot.test.0").unlink()
        second.wait_for("begun")
        assert first.says("lost")
        assert place.held() == {0: second.process.pid}


@contextmanager
def freezer() -> Iterator[tuple[Path, Path, str, str]]:
    """Makes a control group: its processes, the file that freezes and thaws them, and what to write there."""
    for top, file, freeze, thaw in FREEZERS:
        group = Path(top) / f"sw-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
        if (group / file).exists():
            try:
                yield group / "cgroup.procs", group / file, freeze, thaw
            finally:
                (group / file).write_text(thaw)
                until(lambda: not (group / "cgroup.procs").read_text(), 5, "the group to be empty")  # noqa: B023
                group.rmdir()
            return
        with suppress(OSError):
            group.rmdir()
    pytest.skip("no control group freezes here")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a control group")
def test_a_holder_that_is_frozen_loses_its_slot_and_never_runs_again(place: Place) -> None:
    first, second = place.holder_and_spare()
    with freezer() as (processes, state, freeze, thaw):
        processes.write_text(str(first.process.pid))
        state.write_text(freeze)
        second.wait_for("leaves")
        assert place.held() == {0: second.process.pid}
        assert left(second) == left(first)
        assert second.output.read_text().count("kills") == 1
        state.write_text(thaw)
        assert first.process.wait(5) == -signal.SIGKILL
        assert second.alive
        assert not first.says("lost")


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", full], check=False).returncode != 0:
        pytest.skip("mounting needs root")
    try:
        with (full / "filler").open("wb") as file:
            file.write(bytes(4096))
        with pytest.raises(OSError, match="No space left"):
            slots.Slot(full, "test", 0)
    finally:
        subprocess.run(["umount", full], check=True)


def test_a_locks_owner_is_searched_for_only_where_the_process_at_the_line_is_stopped() -> None:
    """host-service's sockets are readable under traffic, and the search reads the descriptors of many processes."""
    waiting: Any = spare.Spare.__new__(spare.Spare)
    waiting._holder_uid = lambda _number: 0
    reader, writer = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    searched: list[int] = []

    def search(uid: int) -> int:
        searched.append(uid)
        return child.pid

    slot = SimpleNamespace(number=0, holder=search)
    watched: Any = SimpleNamespace(work={reader}, process=os.pidfd_open(child.pid), slot=slot)
    try:
        os.write(writer, b"x")
        assert not waiting._is_held_up(watched)
        assert not searched
        child.send_signal(signal.SIGSTOP)
        until(lambda: waiting._is_held_up(watched), 5, "the stopped process to be seen")
        assert searched
    finally:
        child.kill()
        child.wait()
        for each in (reader, writer, watched.process):
            os.close(each)


def test_a_spare_is_present_only_once_it_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rolling restart ends a holder then: it once waited for a spare that was at its slow part, with low priority."""
    run = tmp_path / "run"
    waits = spare.Spare(run, "test", lambda: (), lambda _uid: os.geteuid(), logs.set_up("test", "info"))
    while_slow: list[object] = []

    def end(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(giving_back, "give_back", lambda: while_slow.append(waits.presence))
    monkeypatch.setattr(privileges, "be_as_nice_as_parent", lambda: while_slow.append(waits.presence))
    monkeypatch.setattr(spare.Spare, "_rest", end)
    (run / "test").mkdir(parents=True)
    with pytest.raises(OSError, match=r"^$"):
        waits.wait()
    assert while_slow == [None, None]
    assert waits.presence is not None
