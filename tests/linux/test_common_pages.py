"""A fork gives pages back that say what its parent's say, and nothing that it has changed."""

import subprocess
import sys

import pytest

common_pages = pytest.importorskip("stagewire.linux.common_pages", reason="no compiled modules here")

BEGINNING = """
import gc, os, sys, types
from pathlib import Path
from stagewire.linux import common_pages

def function(number):
    return [number, "name", (1, 2)]

class Kind:
    word = "a word of its own"

texts = [f"text {number}" for number in range(20_000)]
lists = [[number] for number in range(20_000)]
size = common_pages.share()
gc.freeze()

def dirty():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))

def fork(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error))
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


def run(work: str, **environment: str) -> str:
    program = f"{BEGINNING}\ndef work():\n{work}\nfork(work)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert not done.stderr
    return done.stdout


pytestmark = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="knows this version's objects alone")


def test_pages_that_a_fork_only_used_are_shared_again() -> None:
    used = """
    begun = dirty()
    kept = [texts[:], [function, Kind] * 9]
    after_use = dirty()
    common_pages.give_back()
    given_back = dirty()
    print(size > 1 << 20, after_use - begun > 1000, given_back - begun < 600)
"""
    assert run(used) == "True True True\n"


def test_what_a_fork_changed_stays_as_the_fork_wants_it() -> None:
    changed = """
    for number in range(0, 20_000, 7):
        lists[number][0] = "changed"
        lists[number].append(number)
    for _ in range(40):
        function(3)
    mine = [bytes([number % 256]) * 40 for number in range(20_000)]
    for _ in range(3):
        common_pages.give_back()
        right = all(each == (["changed", number] if number % 7 == 0 else [number]) for number, each in enumerate(lists))
        print(right, all(each == bytes([number % 256]) * 40 for number, each in enumerate(mine)))
        print(function(3), Kind.word, all(text == f"text {number}" for number, text in enumerate(texts)))
"""
    assert run(changed) == 3 * "True True\n[3, 'name', (1, 2)] a word of its own True\n"


def test_objects_outlive_uses_that_the_fork_has_forgotten() -> None:
    forgotten = """
    uses = [list(texts), [function] * 1000, [Kind] * 1000, [Kind.word] * 1000]
    common_pages.give_back()
    del uses
    for _ in range(1000):
        common_pages.give_back() if _ % 100 == 0 else None
        uses = [list(texts[:100]), [function] * 100, [Kind] * 100]
        del uses
    gc.collect()
    print(texts[5], function(1), Kind.word)
"""
    assert run(forgotten) == "text 5 [1, 'name', (1, 2)] a word of its own\n"


def test_code_is_still_optimized_in_a_fork_that_gives_back_meanwhile() -> None:
    optimized = """
    import dis
    for _ in range(3):
        function(1)
        common_pages.give_back()
    for _ in range(100):
        function(1)
    common_pages.give_back()
    names = {each.opname for each in dis.get_instructions(function, adaptive=True)}
    print("RESUME_QUICK" in names, function(1))
"""
    assert run(optimized) == "True [1, 'name', (1, 2)]\n"


def test_no_fork_can_write_to_the_shared_memory() -> None:
    written = """
    lines = [line.split() for line in open("/proc/self/maps") if "memfd:stagewire" in line]
    print(bool(lines), any(rights.endswith("s") for _, rights, *_ in lines))
"""
    assert run(written) == "True False\n"


@pytest.mark.parametrize("environment", [{"PYTHONMALLOC": "malloc"}, {"PYTHONDEVMODE": "1"}])
def test_nothing_is_shared_where_objects_lie_elsewhere(environment: dict[str, str]) -> None:
    assert run("    print(size, common_pages.give_back())\n", **environment) == "0 0\n"


def test_nothing_is_shared_beside_another_thread() -> None:
    program = (
        "import threading\nfrom stagewire.linux import common_pages\nend = threading.Event()\n"
        "threading.Thread(target=end.wait).start()\nprint(common_pages.share())\nend.set()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
