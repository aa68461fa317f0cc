"""A fork gets the pages beforehand that another fork has written to, and no others."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, mmap, os, signal, sys
from pathlib import Path
from stagewire.linux import own_pages

PAGE = mmap.PAGESIZE
memory = mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE)
memory[:] = b"x" * len(memory)
begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
ready, told = os.pipe()

def fork(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid

def writes():
    for page in (3, 4, 5, 40):
        memory[page * PAGE] = ord("y")
    os.write(told, b".")
    signal.pause()

def resembles():
    own_pages.make_own(writer)
    with open("/proc/self/pagemap", "rb", 0) as file:
        entries = own_pages._entries(file.fileno(), begin, begin + len(memory))
    print([page for page, entry in enumerate(entries) if entry & own_pages._EXCLUSIVE], memory[3 * PAGE] == ord("x"))
    sys.stdout.flush()

writer = fork(writes)
os.read(ready, 1)
os.waitpid(fork(resembles), 0)
os.kill(writer, signal.SIGKILL)
os.waitpid(writer, 0)
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_fork_gets_the_pages_that_another_has_written_to_with_its_own_content() -> None:
    assert run(PROGRAM) == "[3, 4, 5, 40] True\n"


@pytest.mark.parametrize("pid", ["os.getpid()", "2**22 + 1"])
def test_nothing_happens_for_itself_and_for_a_process_that_is_gone(pid: str) -> None:
    assert run(f"import os\nfrom stagewire.linux import own_pages\nprint(own_pages.make_own({pid}))") == "0\n"
