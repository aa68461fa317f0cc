"""Lets pytest-xdist run the tests side by side: first those marked `alone`, on one worker, then file by file on all.

Tests that measure (a time, a rate, a loss) want the machine for themselves and are marked `alone`. They leave it half
idle, so the other workers meanwhile run the tests in COMPUTING, with what the processors have left. The others mostly
wait. xdist's own scheduler would also hang if a worker died.
"""

import json
import os
import signal
import tempfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import NodeManager, WorkerController

ALONE: Final = "alone"
COMPUTING: Final = (
    "tests/config/",
    "tests/control/",
    "tests/fuzz/",
    "tests/proto/",
    "tests/services/test_backup.py",
    "tests/services/test_peer_commands.py",
    "tests/services/test_peers_file.py",
    "tests/services/test_stagewire_cli.py",
    "tests/system/test_corpus.py",
)
"""Folders and files whose tests compute, and hold nothing to the time of a clock."""
COMPUTES_WITHIN: Final = 600
"""s that a computing test may take: on a busy machine it waits for a processor as long as it gives way."""
TIDY_WITHIN: Final = 20
"""s that a worker has to remove its namespaces after SIGTERM."""


class AloneFirst(LoadFileScheduling):  # type: ignore[misc] # xdist ships no types
    """Gives one worker the tests that run alone. Until these are over, the other workers compute and give way to it."""

    workqueue: OrderedDict[str, dict[str, bool]]
    assigned_work: dict[WorkerController, dict[str, dict[str, bool]]]

    def __init__(self, config: pytest.Config, log: Producer, listed: Path) -> None:
        """Takes the file in which the workers list the tests that run alone."""
        super().__init__(config, log)
        self._listed = listed
        self._alone: set[str] = set()
        self._alone_left: set[str] = set()
        self._at_work: WorkerController | None = None
        self._giving_way: set[WorkerController] = set()

    def _split_scope(self, nodeid: str) -> str:
        return ALONE if nodeid in self._alone else super()._split_scope(nodeid)

    def schedule(self) -> None:
        if self.collection is None:
            self._alone = {*json.loads(self._listed.read_text())}
            self._alone_left = self._alone.copy()
            super().schedule()
        else:
            self._begin()

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        if self._alone_left:
            self._alone_left.discard(self.registered_collections[node][item_index])
            if not self._alone_left:
                self._begin()

    def remove_node(self, node: WorkerController) -> str | None:
        """Puts back the work of a dead worker. Returns the test that it died of, if any."""
        workload = self.assigned_work.pop(node)
        died_of = next((each for unit in workload.values() for each, done in unit.items() if not done), None)
        if died_of is not None:
            workload[self._split_scope(died_of)][died_of] = True
            self._alone_left.discard(died_of)
            left = {scope: unit for scope, unit in workload.items() if not all(unit.values())}
            self.workqueue = OrderedDict({**left, **self.workqueue})
            self._begin()
        return died_of

    def _begin(self) -> None:
        """Gives work to each idle worker. A worker begins a test when it knows the next one, so it needs two files."""
        if not self._alone_left:
            for node in self._giving_way:
                give_way(self._pid(node), False)
            self._giving_way.clear()
        for _ in range(2):
            for node in self.nodes:
                self._reschedule(node)

    def _pid(self, node: WorkerController) -> int:
        return int(self._listed.with_name(node.gateway.id).read_text())

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self._may_work(node):
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if self._may_work(node):
            super()._reschedule(node)

    def _may_work(self, node: WorkerController) -> bool:
        if node not in self.registered_collections:  # it replaces a dead worker and is not ready yet
            return False
        if not self._alone_left:
            return True
        if self._at_work not in self.assigned_work:
            self._at_work = node
        if node is self._at_work:
            if node in self._giving_way:
                self._giving_way.remove(node)
                give_way(self._pid(node), False)
            return True
        if not next(iter(self.workqueue), "").startswith(COMPUTING):
            return False
        if node not in self._giving_way:
            self._giving_way.add(node)
            give_way(self._pid(node), True)
        return True


class Plugin:
    """Provides xdist's scheduler in the main process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._listed = Path(self._folder.name) / "alone"

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tells a worker where to list its tests."""
        node.workerinput[ALONE] = str(self._listed)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> AloneFirst | None:
        """Replaces the scheduler of `--dist loadfile`."""
        return AloneFirst(config, log, self._listed) if config.getoption("dist") == "loadfile" else None

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()


def pytest_configure(config: pytest.Config) -> None:
    """Adds the scheduler if there are workers."""
    if config.getoption("dist", "no") != "no":
        config.pluginmanager.register(Plugin())


@pytest.hookimpl(trylast=True)  # after `-m` has left tests out: one that never runs would keep all others waiting
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts a worker's tests (alone, computing, then system tests, which are long).

    Lists those that run alone, and tells the worker's pid.
    """
    if given := getattr(config, "workerinput", None):
        items.sort(
            key=lambda item: (
                not item.get_closest_marker(ALONE),
                not item.nodeid.startswith(COMPUTING),
                not item.get_closest_marker("system"),
            )
        )
        if config.pluginmanager.hasplugin("timeout"):
            for item in items:
                if item.nodeid.startswith(COMPUTING) and not item.get_closest_marker("timeout"):
                    item.add_marker(pytest.mark.timeout(COMPUTES_WITHIN))
        # Each worker writes the same list, to a file of its own first: others may write at the same time.
        whole = Path(f"{given[ALONE]}-{given['workerid']}")
        whole.write_text(json.dumps([item.nodeid for item in items if item.get_closest_marker(ALONE)]))
        whole.rename(given[ALONE])
        whole.with_name(given["workerid"]).write_text(str(os.getpid()))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Ends pytest through its teardown on SIGTERM (a time limit on the run), so that no namespace is left behind.

    Gives each worker a session of its own: Linux shares processors by session first.
    """
    if hasattr(session.config, "workerinput"):
        os.setsid()

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if hasattr(session.config, "workerinput"):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # execnet asks a second time by SIGINT
        elif session.config.getoption("dist", "no") != "no":
            _pass_on()
        pytest.exit("terminated", returncode=128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def _pass_on() -> None:
    """Sends SIGTERM to the workers, which are the only children."""
    NodeManager.EXIT_TIMEOUT = TIDY_WITHIN
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in path.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)


def give_way(worker: int, yes: bool) -> None:
    """Lets a worker and its children run only when nothing else wants a processor, or again as others do."""
    if os.geteuid() != 0:  # root alone can undo this
        return
    with suppress(OSError):  # this kernel does not share by session
        Path(f"/proc/{worker}/autogroup").write_text("19" if yes else "0")
    _schedule(worker, os.SCHED_IDLE if yes else os.SCHED_OTHER)


def _schedule(pid: int, policy: int) -> None:
    """Sets the policy of a process, then of its children: those that begin meanwhile inherit it."""
    with suppress(OSError):
        threads = [*Path(f"/proc/{pid}/task").iterdir()]
        for thread in threads:
            with suppress(OSError):
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
        for thread in threads:
            with suppress(OSError):
                for child in (thread / "children").read_text().split():
                    _schedule(int(child), policy)
