"""Hooks are run as the file has them."""

import os
import subprocess
import sys
from pathlib import Path

from stagewire_cli import hooks


def test_a_hook_outside_ascii_runs_in_any_locale() -> None:
    program = (
        "from stagewire_cli import hooks; "
        r"assert not hooks.run_until_one_fails('PostUp', ['test $(printf \'caf\xe9\udce9\' | wc -c) = 6'], 'wg0')"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program], env=os.environ | plain, check=True, timeout=30)


def test_a_signal_while_a_hook_starts_ends_the_hook(tmp_path: Path) -> None:
    """It would live on, and hold the command's output open."""
    mark = tmp_path / "pid"
    program = (
        "import os, signal, subprocess\n"
        "from stagewire_cli import hooks, interruption\n"
        "from stagewire_cli.failures import Failed\n"
        "start = subprocess.Popen\n"
        "def interrupted(*arguments):\n"
        "    started = start(*arguments)\n"
        f"    open({str(mark)!r}, 'w').write(str(started.pid))\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    return started\n"
        "hooks.subprocess.Popen = interrupted\n"
        "try:\n"
        "    with interruption.undone():\n"
        "        hooks.run_until_one_fails('PreUp', ['exec sleep 60'], 'wg0')\n"
        "except Failed as failed:\n"
        "    print(failed)\n"
    )
    # The tests may run where the signal is ignored.
    heeding = ["env", "--default-signal=HUP", sys.executable, "-c", program]
    said = subprocess.run(heeding, capture_output=True, text=True, check=True, timeout=30)
    assert said.stdout.startswith("interrupted by SIGHUP")
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_a_hook_that_is_too_long_for_a_command_line_fails_in_a_line_that_is_not_long() -> None:
    """The hooks after it run: `down` undoes as much as it can."""
    complaints: list[str] = []
    long = ": " + "x" * 200_000
    said = hooks.run_until_one_fails("PostUp", [long], "wg0")
    hooks.run_all("PreDown", [long, "exit 3", "kill -9 $$"], "wg0", complaints.append)
    assert said.startswith("PostUp did not start (Argument list too long): : xxx")
    assert len(said) < 300
    assert complaints[1:] == ["PreDown ended with status 3: exit 3", "PreDown was killed by signal 9: kill -9 $$"]
    assert complaints[0] == said.replace("PostUp", "PreDown")


def test_a_hook_that_fails_is_seen_where_a_parent_ignores_the_ends_of_children() -> None:
    """The kernel keeps no exit status then; bash, and so wg-quick, undoes it."""
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from stagewire_cli import hooks\n"
        "from stagewire_cli.__main__ import main\n"
        "main.command('hook')(lambda: print(hooks.run_until_one_fails('PostUp', ['exit 3'], 'wg0')))\n"
        "main(['hook'])\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert said.stdout == "PostUp ended with status 3: exit 3\n"
