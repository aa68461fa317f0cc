"""Which session's share of the processors supervisord changes: its own, and never that of a terminal it was started from."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel shares by process alone")
ASKS = (
    "from stagewire.linux import privileges; privileges.share_processors(privileges.NICE_SESSION);"
    "print(open('/proc/self/autogroup').read())"
)


@pytest.mark.parametrize(("own", "nice"), [(True, "nice 5"), (False, "nice 0")])
def test_only_a_session_of_our_own_lets_others_go_first(*, own: bool, nice: str) -> None:
    # Those that don't lead a session are children of one that does: it mustn't be the one that runs the tests.
    ask = [sys.executable, "-c", ASKS]
    if not own:
        ask = [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.run({ask!r}).returncode)"]
    found = subprocess.run(ask, start_new_session=True, capture_output=True, text=True, timeout=30, check=True)
    assert found.stdout.strip().endswith(nice)
