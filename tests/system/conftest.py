"""What the system tests share. They build networks out of namespaces, so they need root."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture
def lab_directory() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets (107 bytes), which tmp_path's often is not."""
    # Directly below /tmp whatever TMPDIR says, and open to the services' user, who has less rights than we.
    directory = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)
