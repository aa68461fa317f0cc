"""No process that reads a key leaves a core file, whatever ends it: each dies here at the first file that it reads."""

import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import pytest

from lab.wireguard_go import new_key_pair

ENDS_AT_A_FILE: Final = """
import os, sys
from pathlib import Path
from stagewire import files
files.read_open = lambda *_: os.abort()
"""
ENDS: Final = {
    "a command": "from stagewire_cli.__main__ import main; sys.argv = ['stagewire', 'check', CONFIG]; main()",
    "a completion": """
from stagewire_cli.__main__ import main
os.environ |= {'_STAGEWIRE_COMPLETE': 'bash_complete', 'COMP_LINE': f'stagewire peer show -i {CONFIG} '}
sys.argv = ['stagewire']
main(prog_name='stagewire')
""",
    "root's writer": "from stagewire_cli import writer; writer.main()",
    "supervisord's reader": """
from stagewire_cli import inside
wait = os.waitpid
def end_as_it(pid, options):
    pid, status = wait(pid, options)
    if os.WIFSIGNALED(status) and not os.WCOREDUMP(status):
        from stagewire.linux import privileges
        privileges.hide_memory()
    os.abort()
os.waitpid = end_as_it
inside._can_be_read(Path(CONFIG))
""",
}  # fmt: skip
REQUEST: Final = b'{"version": 1, "do": "ExpirePeers"}\n'


def left_a_core(code: str, folder: Path, key: str = "") -> bool:
    """Runs Python code, which SIGABRT ends. Tells whether the kernel wrote its memory to a core file."""
    config = folder / "wg0.conf"
    config.touch(mode=0o600)
    config.write_text(f"[Interface]\nPrivateKey = {key}\n")
    ours, theirs = socket.socketpair()
    ours.sendall(REQUEST)
    variables = {
        "PYTHONPATH": os.pathsep.join(sys.path), "STAGEWIRE_INTERFACE": "wg0", "STAGEWIRE_CONFIG": str(config),
        "STAGEWIRE_RUN_DIR": str(folder), "STAGEWIRE_STATE_DIR": str(folder), "PATH": os.environ["PATH"],
    }  # fmt: skip
    child = os.fork()
    if not child:
        try:
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.dup2(theirs.fileno(), 0)
            os.execve(sys.executable, [sys.executable, "-c", f"CONFIG = {str(config)!r}\n{code}"], variables)  # noqa: S606
        finally:
            os._exit(1)
    with ours, theirs:
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended without reading a file"
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status)


@pytest.fixture(scope="module")
def _cores(tmp_path_factory: pytest.TempPathFactory) -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("RLIMIT_CORE forbids core files")
    if not left_a_core("import os; os.abort()", tmp_path_factory.mktemp("core")):
        pytest.skip("this kernel writes no core file")


@pytest.mark.skipif(os.geteuid() != 0, reason="a completion reads files as root alone")
@pytest.mark.parametrize("process", ENDS)
@pytest.mark.usefixtures("_cores")
def test_a_process_of_roots_that_reads_keys_leaves_no_core_file(tmp_path: Path, process: str) -> None:
    assert not left_a_core(ENDS_AT_A_FILE + ENDS[process], tmp_path, new_key_pair().private)
