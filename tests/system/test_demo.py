"""`make demo`, which checks each of its own claims."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def test_every_claim_of_the_demo_holds() -> None:
    demo = [sys.executable, "-m", "lab.demo"]
    shown = subprocess.run(
        demo, capture_output=True, text=True, check=False, timeout=150, env={**os.environ, "PYTHONPATH": "deploy"}
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Every claim was checked and held" in shown.stdout
