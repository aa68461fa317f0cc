"""All compiled modules under the address and undefined-behaviour sanitizers: their tests, and what fuzzing keeps."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lab import installed

pytestmark = pytest.mark.timeout(600)
SANITIZERS = "-fsanitize=address,undefined"
COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]
DRIVEN = (
    "tests/proto/kernel/test_sealing.py",
    "tests/proto/kernel/test_steady.py",
    "tests/proto/kernel/test_opening.py",
    "tests/proto/kernel/test_cipher.py",
    "tests/proto/kernel/test_symmetric.py",
    "tests/proto/kernel/test_macs.py",
    "tests/proto/kernel/test_admission.py",
    "tests/linux/test_pipe_trains.py",
    "tests/linux/test_tun_trains.py",
    "tests/linux/test_udp_batch.py",
    "tests/linux/test_udp_trains.py",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with sanitized modules."""
    if shutil.which(COMPILER) is None:
        pytest.skip("there is no compiler")
    copy = tmp_path_factory.mktemp("sanitized")
    installed.sources(copy)
    settings = copy / "pyproject.toml"
    # The compiler heeds the last -O, which is the module's own.
    settings.write_text(re.sub(r'"-O\d", ', "", settings.read_text()))
    flags = {
        "CFLAGS": f"{SANITIZERS} -O0 -fno-sanitize-recover=undefined -fno-omit-frame-pointer",
        "LDFLAGS": SANITIZERS,
    }
    made = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", "build_ext", "--inplace"],
        cwd=copy, env=os.environ | flags, capture_output=True, text=True, check=False,
    )  # fmt: skip
    modules = list(copy.glob("shared/stagewire/**/*.so"))
    assert len(modules) == 12, made.stderr
    assert all(b"__asan_init" in module.read_bytes() for module in modules)
    return copy


def run(built: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    libraries = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    paths = [built / "services", built / "shared", installed.ROOT, installed.ROOT / "deploy"]
    # Python's own memory comes from malloc then, which the sanitizer watches; what Python keeps to its end is no leak.
    variables = {
        "LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc",
        "PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments], cwd=installed.ROOT, env=os.environ | variables, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_sanitizer_would_say_it(built: Path) -> None:
    """Memory that was freed is read through the module's own allocator."""
    done = run(built, "-c", "import ctypes; p = ctypes.pythonapi; p.PyMem_Malloc.restype = ctypes.c_void_p; "
               "a = p.PyMem_Malloc(100); p.PyMem_Free(ctypes.c_void_p(a)); ctypes.string_at(a, 100)")  # fmt: skip
    assert "AddressSanitizer: heap-use-after-free" in done.stderr


def test_nothing_is_said_in_the_kernels_tests(built: Path) -> None:
    done = run(built, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", *DRIVEN)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "skipped" not in done.stdout


def test_nothing_is_said_about_what_fuzzing_keeps(built: Path) -> None:
    done = run(
        built, "-c",
        "from stagewire.proto.kernel import sealing; from tests.fuzz.doors import DOORS\n"
        "print(sealing.__file__)\n"
        "for name, door in DOORS.items():\n"
        "    if name.startswith(('kernels_', 'noise_', 'pipes_')):\n"
        "        for data in (b'', *door.seeds(), *door.kept()):\n"
        "            door.take(data)\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(str(built))
