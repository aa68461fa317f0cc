"""What the system tests share. They build networks out of namespaces, so they need root."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from lab.hub import Hub
from lab.namespaces import Topology
from lab.wait import until
from lab.wg import WgHub, both_kinds

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests in this folder for anybody but root."""
    if os.geteuid() != 0:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="system tests need root, for network namespaces"))


def _is_removed(directory: Path) -> bool:
    """Removes a directory; a keeper that is still ending may remove its own files meanwhile."""
    with contextlib.suppress(OSError):
        shutil.rmtree(directory)
    return not directory.exists()


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets (107 bytes), which tmp_path's often is not."""
    # Directly below /tmp whatever TMPDIR says, and open to the services' user, who has less rights than we.
    directory = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        until(lambda: _is_removed(directory), 5, f"{directory} to be removed")


@pytest.fixture
def lab_directory() -> Iterator[Path]:
    """A short directory for one test."""
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def shared_directory() -> Iterator[Path]:
    """A short directory for the gateways that a module's tests share."""
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest, network: Topology, shared_directory: Path) -> Iterator[dict[str, WgHub]]:
    """Starts a gateway by `up` and a bare one on the module's `network`; the module's BOTH are arguments of `both_kinds`."""
    with both_kinds(network.b, shared_directory, **getattr(request.module, "BOTH", {})) as hubs:
        yield hubs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the gateways wrote belongs to the report of a failed test: their directory goes before it is read."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            for hub in (each for each in (value if isinstance(value, tuple) else [value]) if isinstance(each, Hub)):
                said = {**hub.gateway.logs(), "status": hub.gateway.command("status", hub.name, check=False).stdout}
                report.sections += [(f"{hub.name}: {name}", text[-4000:]) for name, text in said.items()]
    return report
