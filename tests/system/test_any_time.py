"""Any order, any time: whatever is killed, told or wiped, a gateway with spares comes back by itself, and to what it was."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.system.oversight import BACK_WITHIN, Overseen, overseen

from lab.stagewire import executable
from lab.wait import until
from stagewire.stages import STAGES
from stagewire_cli import processes

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def seen(shared_directory: Path) -> Iterator[Overseen]:
    with overseen("y", shared_directory) as seen:
        yield seen


def kill_supervisord(seen: Overseen) -> None:
    pid = until(seen.supervision.pid, 5, "supervisord")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not processes.lives(pid), 5, "supervisord to die")


def start_supervisord(seen: Overseen) -> None:
    """As an operator would, who knows nothing but where its configuration is."""
    seen.hub.namespace.run(executable("supervisord"), "-c", seen.supervision.configuration, timeout=30)


def test_what_killed_supervisords_leave_goes_on_until_another_replaces_it(seen: Overseen) -> None:
    """The last one finds orphans of two: at work, waiting, and just starting."""
    with seen.traffic():
        before = seen.gateway.held()
        kill_supervisord(seen)
        seen.flows()
        assert seen.gateway.held() == before
        start_supervisord(seen)
        kill_supervisord(seen)
        start_supervisord(seen)
        until(lambda: not {*before.values()} & {*seen.gateway.held().values()}, BACK_WITHIN, "others to take over")


@pytest.mark.parametrize(
    "programs", [["conn-service:*"], ["tun-service:*", "device-service:*", "key-service:*"], ["all"]]
)
def test_supervisorctl_restarts_one_or_some_or_all_with_their_spares(seen: Overseen, programs: list[str]) -> None:
    with seen.traffic():
        before = {*seen.gateway.processes()}
        seen.gateway.supervisorctl("restart", *programs)
        if programs == ["all"]:
            assert not before & {*seen.gateway.processes()}


def test_storms_of_signals(seen: Overseen) -> None:
    """To whoever is there: at work, waiting, starting or ending."""
    seen.settles()
    before = seen.gateway.processes()
    with seen.traffic():
        for _ in range(20):
            for pid in before:
                os.kill(pid, signal.SIGHUP)
        seen.flows()
    assert seen.gateway.processes() == before
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with seen.traffic():
        for number in chance.choices((signal.SIGHUP, signal.SIGTERM, signal.SIGKILL), k=30):
            for pid in processes.services(seen.environment):
                if chance.random() < 0.5:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
        seen.flows()


def test_supervisord_may_be_told_to_begin_anew(seen: Overseen) -> None:
    """Also beside a file that is broken by then."""
    text = seen.gateway.config_path.read_text()
    seen.gateway.write_config("[Interface]\nListenPort = 51820x\n")
    try:
        with seen.traffic():
            before = {*seen.gateway.processes()}
            os.kill(seen.gateway.pid(), signal.SIGHUP)
            until(lambda: not before & {*seen.gateway.processes()}, BACK_WITHIN, "all to be others")
    finally:
        seen.gateway.write_config(text)


def wipe(seen: Overseen) -> None:
    """Everything at once, or somebody would be making it again meanwhile."""
    away = seen.run.with_name("away")
    seen.run.rename(away)
    shutil.rmtree(away)


def test_a_wiped_run_folder_comes_back_with_all_that_was_in_it(seen: Overseen) -> None:
    with seen.traffic():
        seen.settles()
        before = {*seen.gateway.held().values()}
        supervisord = seen.gateway.pid()
        wipe(seen)
        until(lambda: len(seen.gateway.held()) == len(STAGES), BACK_WITHIN, "all places to be taken again")
        assert not before & {*seen.gateway.held().values()}
        seen.flows()
        seen.settles()
        assert seen.gateway.pid() == supervisord
        assert seen.gateway.status()["ready"]
        assert seen.spoke.keys.public in seen.hub.wg("show", seen.hub.name).stdout  # type: ignore[attr-defined]
        assert seen.gateway.supervisorctl("pid").stdout.strip() == str(supervisord)
        assert len(seen.gateway.command("restart", "conn", seen.hub.name).stdout.splitlines()) == 1
        seen.gateway.command("scale", "2", seen.hub.name)
        seen.flows()
        seen.gateway.command("scale", "1", seen.hub.name)


def test_a_folder_that_is_wiped_while_it_is_made_again(seen: Overseen) -> None:
    with seen.traffic():
        for _ in range(3):
            was = {*seen.gateway.held().values()}
            subprocess.run(["rm", "-rf", seen.run], check=False, capture_output=True)
            until(lambda w=was: {*seen.gateway.held().values()} - w, BACK_WITHIN, "somebody to be there again")  # type: ignore[misc]


def test_down_ends_all_that_wiped_folders_and_killed_supervisords_have_left(seen: Overseen) -> None:
    """Orphans with their spares, the next supervisord's, and a folder that knows of none of them."""
    seen.settles()
    kill_supervisord(seen)
    start_supervisord(seen)
    until(lambda: len(seen.gateway.processes()) > 10, BACK_WITHIN, "more than are wanted")
    os.kill(seen.gateway.pid(), signal.SIGSTOP)  # it can neither mend nor be asked
    wipe(seen)
    seen.gateway.down()
    assert processes.services(seen.environment) == seen.supervision.pids() == []
    assert not seen.run.exists()
    assert seen.hub.name not in seen.hub.namespace.run("ip", "-o", "link").stdout
    again = seen.gateway.command("down", seen.hub.name, check=False)
    assert again.stderr == f"stagewire: {seen.hub.name} is not up\n"
    seen.gateway.up()
    with seen.traffic():
        pass
