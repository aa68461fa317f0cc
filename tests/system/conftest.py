"""What the system tests share. They build networks out of namespaces, so they need root."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from lab.hub import Hub

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests in this folder for anybody but root."""
    if os.geteuid() != 0:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="system tests need root, for network namespaces"))


@pytest.fixture(scope="session", autouse=True)
def _tidy_when_terminated() -> Iterator[None]:
    """SIGTERM (a time limit on the run) ends pytest through its teardown, so that no namespace is left behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))
    yield
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets (107 bytes), which tmp_path's often is not."""
    # Directly below /tmp whatever TMPDIR says, and open to the services' user, who has less rights than we.
    directory = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


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
