"""Services that are forks of supervisord: they share its memory, and look and fail like programs of their own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.namespaces import Namespace
from lab.stagewire import Gateway
from lab.wait import until
from lab.wireguard_go import new_key_pair
from stagewire.environment import Environment
from stagewire.process import slots
from stagewire.stages import STAGES
from stagewire_cli.supervision import Supervision

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

WITHIN = 30.0
BY_ITSELF = {"key-service"}


@pytest.fixture(scope="module")
def gateway(shared_directory: Path) -> Iterator[Gateway]:
    text = f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n"
    with Namespace("f") as namespace, Gateway(namespace, "wg0", shared_directory, text, workers=2, spares=1) as gateway:
        until(lambda: len(contenders(gateway)) == 2 * len(STAGES) + 1, WITHIN, "all spares")
        yield gateway


def contenders(gateway: Gateway) -> set[int]:
    return {*slots.contenders(gateway.run_directory / gateway.name)}


def supervisord(gateway: Gateway) -> int:
    pid = Supervision(Environment.read(gateway.env, gateway.name)).pid()
    assert pid is not None
    return pid


def words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def program(pid: int) -> str:
    return Path(words(pid)[1]).name


def layout(pid: int) -> str:
    """Where the heap begins, which the kernel chooses at a program's start."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return next(line.partition("-")[0] for line in lines if line.endswith("[heap]"))


def variables(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return {name: value for name, _, value in (line.partition("=") for line in lines) if name}


def test_all_but_key_service_are_forks_and_key_service_has_layouts_of_its_own(gateway: Gateway) -> None:
    parents = layout(supervisord(gateway))
    of_its_own = [pid for pid in contenders(gateway) if layout(pid) != parents]
    assert {program(pid) for pid in of_its_own} == BY_ITSELF
    assert len({layout(pid) for pid in of_its_own}) == len(of_its_own) == 2


def test_each_shows_its_own_name_command_and_environment(gateway: Gateway) -> None:
    for pid in contenders(gateway):
        interpreter, script, *rest = words(pid)
        assert Path(script).read_text().splitlines()[0] == f"#!{interpreter}"
        assert rest == [""]
        assert Path(f"/proc/{pid}/comm").read_text() == f"{program(pid)[:15]}\n"
        found = variables(pid)
        assert found["SUPERVISOR_GROUP_NAME"] == program(pid)
        assert found["STAGEWIRE_RUN_DIR"] == str(gateway.run_directory)


def test_none_has_a_descriptor_of_supervisords(gateway: Gateway) -> None:
    """Its pid file's folder, its socket and its locks; pipes that both ends have are a program's output."""
    parent = supervisord(gateway)
    its_own = {str(each.readlink()) for each in Path(f"/proc/{parent}/fd").iterdir()}
    its_sockets_and_files = {each for each in its_own if not each.startswith(("pipe:", "/dev/null"))}
    assert len(its_sockets_and_files) > 2
    for pid in contenders(gateway):
        theirs = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
        assert theirs & its_sockets_and_files <= {"anon_inode:[eventpoll]", "anon_inode:[pidfd]"}, program(pid)


def test_a_fault_gives_the_next_process_a_layout_of_its_own(gateway: Gateway) -> None:
    """Before, an attacker could try one address after another."""
    parents, before = layout(supervisord(gateway)), contenders(gateway)

    def fresh() -> list[int]:
        return [pid for pid in contenders(gateway) - before if program(pid) == "status-service"]

    holder = gateway.held()["status", 0]
    os.kill(holder, signal.SIGKILL)
    (forked,) = until(fresh, WITHIN, "the next spare")
    assert layout(forked) == parents
    before = contenders(gateway)
    holder = gateway.held()["status", 0]
    os.kill(holder, signal.SIGSEGV)
    (executed,) = until(fresh, WITHIN, "the next spare after a fault")
    assert layout(executed) != parents
