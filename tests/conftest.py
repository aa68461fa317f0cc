"""Sets up every test: one hypothesis profile, which makes each run the same, longer waits, and cheaper commands."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from lab import stagewire, wait

pytest_plugins = ["side_by_side", "tests.attack.marks"]

settings.register_profile(
    "stagewire",
    derandomize=True,
    deadline=None,  # nothing here is a test of time
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=60,
    database=None,
)
settings.load_profile("stagewire")

wait.slack = 3.0
stagewire.commands_are_loaded = True

_NETWORK = Path("/proc/self/ns/net")
_HERE = _NETWORK.stat()


@pytest.fixture(autouse=True)
def _stays_in_its_network() -> Iterator[None]:
    """Fails a test that moves its process into another network, where the tests after it would run as well."""
    yield
    assert os.path.samestat(_NETWORK.stat(), _HERE), "the test has left its network namespace"
