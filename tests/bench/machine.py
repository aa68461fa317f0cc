"""Describes the machine and the versions, but nothing that identifies the machine or its owner."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import zmq
from cryptography.hazmat.backends.openssl import backend

ROOT = Path(__file__).parents[2]
_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
_ENOUGH = 1024
"""inotify instances: each wireguard-go has one, and one user runs hundreds of wireguard-go."""


@contextmanager
def room_for_many(setting: Path = _INSTANCES) -> Iterator[None]:
    """Raises the limit of inotify instances for a while, then puts back what was there, unless another changed it."""
    before = setting.read_text()
    if int(before) >= _ENOUGH:
        yield
        return
    setting.write_text(f"{_ENOUGH}\n")
    try:
        yield
    finally:
        if int(setting.read_text()) == _ENOUGH:
            setting.write_text(before)


def describe(**more: Any) -> dict[str, Any]:
    """Returns the facts by name, in the order of the report."""
    cpu = Path("/proc/cpuinfo").read_text()
    memory = int(_first(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()) or 0)
    return {
        "CPU": _first(r"model name\s*:\s*(.+)", cpu) + (", virtual machine" if " hypervisor" in cpu else ""),
        "cores": os.cpu_count(),
        "memory": f"{memory / 2**20:.0f} GiB",
        "kernel": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "Python": platform.python_version(),
        "OpenSSL": backend.openssl_version_text(),
        "ZeroMQ": f"{zmq.zmq_version()} (pyzmq {zmq.__version__})",
        "cryptography": metadata.version("cryptography"),
        "wireguard-go": _output("dpkg-query", "-W", "-f", "${Version}", "wireguard-go"),
        "iperf3": _output("dpkg-query", "-W", "-f", "${Version}", "iperf3"),
        "Stagewire": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **more,
    }


def busy(seconds: float = 1.0) -> float:
    """Returns the part of all cores' time that programs use now."""
    first = _times()
    time.sleep(seconds)
    idle, total = (after - before for after, before in zip(_times(), first, strict=True))
    return 1 - idle / total if total else 0.0


def _times() -> tuple[int, int]:
    times = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return times[3] + times[4], sum(times)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
