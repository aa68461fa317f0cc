"""`stagewire restart all` across two versions of the code, while packets flow."""

import compileall
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.oversight import BACK_WITHIN, Overseen

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.wait import until
from lab.wg import WgHub
from stagewire.control import questions
from stagewire.process import slots

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SPOKE = Spoke(1, Topology.A4)
OURS, OTHER = questions.VERSION, questions.VERSION + 1
LONG = 240
"""s that a command may take which replaces ten processes one after another."""


class Copy:
    """Of the code, which a gateway runs and a test changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for root in ("services", "shared"):
            shutil.copytree(ROOT / root, folder / root, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(folder, quiet=1)  # or each process may compile all of it at each start
        shutil.copy(ROOT / "supervisord.conf", folder)
        self.env = {"PYTHONPATH": f"{folder / 'services'}:{folder / 'shared'}"}

    def change(self, file: str, old: str, new: str) -> None:
        """Python knows a changed file by its length, should the second be the same."""
        path = self._folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def copy(shared_directory: Path) -> Copy:
    return Copy(shared_directory / "code")


@pytest.fixture(scope="module")
def seen(copy: Copy, shared_directory: Path) -> Iterator[Overseen]:
    with Topology("u") as network:
        hub = WgHub(network.b, shared_directory / "hub", {"one": SPOKE}, workers=1, spares=1, env=copy.env)
        with hub, hub.wireguard_go(SPOKE, network.a, Topology.B4):
            yield Overseen(hub, network.a, SPOKE)


def test_every_process_runs_the_new_code_and_packets_flow_all_the_while(seen: Overseen, copy: Copy) -> None:
    copy.change(
        "shared/stagewire/process/stage.py", 'self.log.info("started"', 'self.log.info("started in the new version"'
    )
    copy.change(
        "shared/stagewire/process/spare.py", '"waits: another process is', '"waits in the new version: another is'
    )
    with seen.traffic():
        seen.settles()
        before = {*seen.gateway.processes()}
        said = seen.gateway.command("restart", "all", seen.hub.name, timeout=LONG).stdout
        assert [line.partition(":")[0] for line in said.splitlines()] == [
            *("status-service", "resolver-service", "host-service"),
            *("key-service", "conn-service", "tun-service", "device-service 0"),
        ]
        assert not before & {*seen.gateway.processes()}
        seen.settles()
        holders = {*seen.gateway.held().values()}
        assert all(said_by(seen, pid, "started in the new") for pid in holders)
        # A spare is at its slot before it says so.
        waiting = {*slots.contenders(seen.run)} - holders
        until(
            lambda: all(said_by(seen, pid, "waits in the new") for pid in waiting), BACK_WITHIN, "the spares to say so"
        )


def said_by(seen: Overseen, pid: int, what: str) -> bool:
    """Whether a process has said in its log what has these words."""
    logs = "".join(seen.gateway.logs().values())
    return any(what in line and f"pid={pid} " in f"{line} " for line in logs.splitlines())


def others_said(seen: Overseen, stage: str, theirs: int) -> int:
    """How often a stage has said in its log that it drops messages of this version."""
    lines = seen.log_of(stage).splitlines()
    return sum('event="drops messages of another version"' in line and f"theirs={theirs} " in line for line in lines)


def test_a_version_that_nobody_else_speaks_stops_at_the_first_step_and_harms_nothing(
    seen: Overseen, copy: Copy
) -> None:
    standing, other = f"VERSION: Final = {OURS}\n", f"VERSION: Final = {OTHER}  # another\n"
    with seen.traffic():
        seen.settles()
        before = seen.gateway.processes()
        copy.change("shared/stagewire/control/questions.py", standing, other)
        refused = seen.gateway.command("restart", "all", seen.hub.name, check=False)
        assert refused.returncode == 1
        assert refused.stdout == ""
        assert f"speaks version {OURS} of the control messages, this command version {OTHER}" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert seen.gateway.processes() == before
        # One of the new version comes all the same: as when both processes of a stage die before the rest is replaced.
        seen.gateway.supervisorctl("restart", "status-service:*")
        for stage, theirs in (("key", OTHER), ("status", OURS)):
            until(lambda s=stage, v=theirs: others_said(seen, s, v), BACK_WITHIN, f"{stage} to say so")  # type: ignore[misc]
        seen.flows(200)
        copy.change("shared/stagewire/control/questions.py", other, standing)
        seen.gateway.command("restart", "status", seen.hub.name, timeout=LONG)

        def counted() -> int:
            services = seen.gateway.status()["services"]
            found = [each["counters"] for each in services if each["service"] == "key-service"]
            return sum(each.get("control_of_unknown_version", 0) for each in found)

        assert until(counted, BACK_WITHIN, "the counters") > 10
        assert others_said(seen, "key", OTHER) == others_said(seen, "status", OURS) == 1
        said = seen.gateway.command("restart", "all", seen.hub.name, timeout=LONG).stdout
        assert len(said.splitlines()) == 7
        assert seen.gateway.status()["ready"]
