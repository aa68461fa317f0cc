"""What `ps` and /proc show of a process after a fork."""

import os
import subprocess
import sys

import pytest

SHOWS = """
import os, sys
from pathlib import Path
from stagewire.linux import command_line
words = [sys.executable, "/some/where/resolver-service", "--of", ""]
command_line.show(words, {"ONE": "1", "TWO": "ü=2"})
print(Path("/proc/self/cmdline").read_bytes())
print(Path("/proc/self/environ").read_bytes())
print(Path("/proc/self/comm").read_text().strip())
print(os.environ["HERE"])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="without CONFIG_CHECKPOINT_RESTORE programs are executed instead")
def test_the_host_sees_words_variables_and_name() -> None:
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), "HERE": "stays", "PYTHONUTF8": "1"}
    said = subprocess.run([sys.executable, "-c", SHOWS], env=variables, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [
        str(os.fsencode(sys.executable) + b"\0/some/where/resolver-service\0--of\0\0"),
        str("ONE=1\0TWO=ü=2\0".encode()),
        "resolver-servic",
        "stays",
    ]
