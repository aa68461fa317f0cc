"""What `doctor` says of services that lack a filter or locked memory, by the kernel's word for real processes."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagewire.environment import Environment
from stagewire.linux import sandbox, seccomp
from stagewire_cli import unprotected

NO_FILTER = " has no filter of system calls, and its log says why: a hostile one could make any call"


@pytest.fixture
def plain() -> Iterator[int]:
    """A process without a filter and without locked memory."""
    if "Seccomp:\t0" not in Path("/proc/self/status").read_text():
        pytest.skip("each process here has a filter")
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def said(tmp_path: Path, *services: tuple[str, int, int | None]) -> list[str]:
    environment = Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path)}, "wg0")
    known: dict[str, Any] = {
        "interface": "wg0",
        "services": [{"service": name, "number": number, "pid": pid} for name, number, pid in services],
    }
    return unprotected.found(environment, known)


@pytest.mark.parametrize("swap", [True, False])
def test_a_service_without_filter_or_locked_memory_is_named(
    tmp_path: Path, plain: int, monkeypatch: pytest.MonkeyPatch, swap: bool
) -> None:
    monkeypatch.setattr(sandbox, "has_swap", lambda: swap)
    unlocked = [" has no locked memory: its keys may reach the swap"] if swap else []
    found = said(tmp_path, ("device-service", 3, plain), ("tun-service", 0, plain), ("key-service", 0, None))
    assert found == [*(f"device-service 3{each}" for each in (NO_FILTER, *unlocked)), f"tun-service{NO_FILTER}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may load a filter without more ado")
def test_nothing_is_said_of_a_service_with_its_filter(tmp_path: Path) -> None:
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            seccomp.load(seccomp.program(sandbox.calls("tun")))
            os.write(tell, b".")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.read(told, 1)
        assert said(tmp_path, ("tun-service", 0, child)) == []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
