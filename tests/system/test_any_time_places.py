"""The places a gateway needs may be full or taken, at the start or when a process and its spare die: that is said, tried
again, and harms nothing else."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from tests.system.conftest import short_directory
from tests.system.oversight import BACK_WITHIN, Overseen

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.wait import until
from lab.wg import WgHub
from stagewire_cli import processes

pytestmark = pytest.mark.system

SPOKE = Spoke(1, Topology.A4)
HOLDERS = {"host": ("host", "conn"), "tun": ("tun",)}
"""Which stages have to be gone before another program can take what the first of them opens."""


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Where the run folders are going to be."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=755", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="module")
def seen() -> Iterator[Overseen]:
    with short_directory() as directory, small_disk(directory / "run"), Topology("z") as network:
        hub = WgHub(network.b, directory, {"one": SPOKE}, workers=1, spares=1)
        hub.gateway.write_config(hub.config)
        with full(directory / "run"):
            failed = hub.gateway.command("up", str(hub.gateway.config_path), check=False)
        print(failed.stderr)
        seen_full.append(failed)
        with hub, hub.wireguard_go(SPOKE, network.a, Topology.B4):
            yield Overseen(hub, network.a, SPOKE)


seen_full: list[subprocess.CompletedProcess[str]] = []
"""What `up` said before there was room, where it came up after."""


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Not a byte is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        filler.unlink()


def kill_all_of(seen: Overseen, *stages: str) -> None:
    """At work, waiting and starting, so that for a moment there is nobody."""
    for pid in processes.services(seen.environment):
        command = Path(f"/proc/{pid}/cmdline").read_text()
        if any(f"/{stage}-service" in command for stage in stages):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_up_on_a_full_disk_says_so_and_leaves_nothing(seen: Overseen) -> None:
    (failed,) = seen_full
    assert failed.returncode == 1
    assert "No space left on device" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_disk_that_fills_up_stops_nobody_from_taking_over(seen: Overseen) -> None:
    with seen.traffic(), full(seen.run.parent):
        before = seen.gateway.held()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: seen.gateway.held().keys() == before.keys(), BACK_WITHIN, "others at work")
        seen.flows()
        seen.settles()
        refused = seen.gateway.command("scale", "2", seen.hub.name, check=False)
        assert refused.returncode == 1
        assert "No space left on device" in refused.stderr


def test_a_folder_that_is_wiped_with_no_room_for_another_is_waited_for(seen: Overseen) -> None:
    earlier = set(seen.log_of("tun").splitlines())

    def said() -> str:
        return "\n".join(line for line in seen.log_of("tun").splitlines() if line not in earlier)

    with seen.traffic(), full(seen.run.parent):
        # As long as it exists elsewhere, it has room that the processes would else take at once.
        away = seen.run.rename(seen.run.with_name("away"))
        until(lambda: 'event="cannot work"' in said(), BACK_WITHIN, "a complaint")
        shutil.rmtree(away)
        seen.flows()
    assert "No space left on device" in said()


@contextmanager
def taken(seen: Overseen, what: str) -> Iterator[None]:
    """By another program, in the moment in which nobody of ours has it."""
    hub, ip = seen.hub, seen.hub.namespace.run
    with ExitStack() as stack:
        if what == "host":
            program = stack.enter_context(hub.namespace.udp_socket("0.0.0.0"))

            def take() -> bool:
                with suppress(OSError):
                    program.close()
                    again = hub.namespace.udp_socket("0.0.0.0", hub.port)
                    stack.callback(again.close)
                    return True
                return False

        else:
            stack.callback(ip, "ip", "link", "delete", hub.name)

            def take() -> bool:
                ip("ip", "link", "delete", hub.name, check=False)
                added = ip("ip", "link", "add", hub.name, "type", "veth", "peer", "name", "other", check=False)
                return added.returncode == 0

        kill_all_of(seen, *HOLDERS[what])
        until(take, 10, "it to be taken")
        yield


@pytest.mark.parametrize(
    ("stage", "words"),
    [("host", "UDP port 51820 is taken by another program"), ("tun", "exists and is no TUN device")],
)
def test_what_another_program_has_taken_meanwhile_is_waited_for(seen: Overseen, stage: str, words: str) -> None:
    with seen.traffic():
        seen.settles()
        others = {name: pid for name, pid in seen.gateway.held().items() if name[0] not in HOLDERS[stage]}
        with taken(seen, stage):
            until(lambda: words in seen.fault_of(stage), BACK_WITHIN, f"a fault, {seen.fault_of(stage)}")
            assert words in seen.log_of(stage)
            assert not seen.gateway.status()["ready"]
            assert others.items() <= seen.gateway.held().items()
        until(lambda: not seen.fault_of(stage), BACK_WITHIN, "it to work again")
        seen.flows()
        assert others.items() <= seen.gateway.held().items()
