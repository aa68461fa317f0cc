"""When key-service sweeps its freed memory, and what is left there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.memory import in_memory

from key_service.sweeps import AFTER, Sweeps
from stagewire.linux import freed_memory
from stagewire.proto import noise

T = 1000.0
HANDSHAKES = 8
DROPS_KEYS = """
import sys, time
from key_service.sweeps import AFTER, Sweeps
from stagewire.proto import noise
def handshake(secret):
    return sum(map(len, noise.kdf(secret, b"", 2)))
secrets = [bytes.fromhex(word) for word in sys.argv[1:]]
sweeps = Sweeps()
for secret in secrets:
    handshake(secret)
    sweeps.session_given(0.0)
print("dropped", flush=True)
sys.stdin.readline()
sweeps.act(AFTER)
print("swept", flush=True)
sys.stdin.readline()
"""
DROPS_LINES = """
import sys, time
from key_service.sweeps import AFTER, Sweeps
sweeps = Sweeps()
keys = [bytes(byte ^ 255 for byte in bytes.fromhex(word)) for word in sys.argv[1:]]
texts = [key.ljust(size - 33, b" ") for key, size in zip(keys, range(80, 528, 16))]
texts += [bytes(bytearray(text)) for text in texts for _ in range(100)]
sweeps.key_dropped(0.0)
del keys, texts
print("dropped", flush=True)
sys.stdin.readline()
sweeps.act(AFTER)
print("swept", flush=True)
sys.stdin.readline()
"""

ENDS_A_STATE = """
import sys
from stagewire.proto.kernel.symmetric import SymmetricState
key = bytearray.fromhex(sys.argv[1])
key.reverse()
state = SymmetricState(key, bytes(32))
key[:] = bytes(32)
if sys.argv[2] == "drop":
    del state
print(flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sweeps so far."""
    found: list[str] = []
    monkeypatch.setattr(freed_memory, "sweep", lambda: found.append("whole"))
    monkeypatch.setattr(freed_memory, "sweep_after_handshakes", lambda: found.append("small"))
    return found


def test_a_sweep_comes_a_while_after_the_first_drop_and_once(swept: list[str]) -> None:
    sweeps = Sweeps()
    assert sweeps.next_deadline() is None
    for late in (0.0, AFTER / 2):
        sweeps.session_given(T + late)
    assert sweeps.next_deadline() == T + AFTER
    sweeps.act(T + AFTER / 2)
    assert swept == []
    sweeps.act(T + AFTER)
    assert swept == ["small"]
    assert sweeps.next_deadline() is None


def test_a_whole_sweep_does_for_sessions_as_well(swept: list[str]) -> None:
    sweeps = Sweeps()
    sweeps.session_given(T)
    sweeps.key_dropped(T)
    sweeps.act(T + AFTER)
    sweeps.act(T + 2 * AFTER)
    assert swept == ["whole"]


@contextmanager
def process(drops: str, *secrets: bytes) -> Iterator["subprocess.Popen[str]"]:
    """One that derives keys and drops them."""
    command = [sys.executable, "-c", drops, *(secret.hex() for secret in secrets)]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.perturb=85",
    }
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield started
        started.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="reads another process's memory")
def test_keys_of_sessions_that_were_given_are_in_no_memory_after_the_sweep() -> None:
    secrets = [os.urandom(32) for _ in range(HANDSHAKES)]
    pairs = [noise.kdf(secret, b"", 2) for secret in secrets]
    keys = {f"{way} {number}": key for number, pair in enumerate(pairs) for way, key in zip("ab", pair, strict=True)}
    expect_swept(DROPS_KEYS, secrets, keys)


@pytest.mark.skipif(os.geteuid() != 0, reason="reads another process's memory")
def test_keys_within_longer_texts_are_in_no_memory_after_the_sweep() -> None:
    """In blocks of every size that Python keeps itself."""
    words = [os.urandom(32) for _ in range(80, 528, 16)]
    keys = {f"key {number}": bytes(byte ^ 255 for byte in word) for number, word in enumerate(words)}
    expect_swept(DROPS_LINES, words, keys)  # which turns each byte round: its own words may stay


def expect_swept(drops: str, secrets: list[bytes], keys: dict[str, bytes]) -> None:
    with process(drops, *secrets) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "dropped\n"
        assert in_memory(other.pid, keys), "freed memory keeps keys until it is taken again"
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "swept\n"
        assert in_memory(other.pid, keys) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="reads another process's memory")
@pytest.mark.parametrize("fate", ["keep", "drop"])
def test_a_compiled_handshake_that_has_ended_leaves_no_chaining_key(fate: str) -> None:
    pytest.importorskip("stagewire.proto.kernel.symmetric")
    key = os.urandom(32)
    command = [sys.executable, "-c", ENDS_A_STATE, key[::-1].hex(), fate]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        found = in_memory(other.pid, {"key": key})
        other.kill()
    assert bool(found) == (fate == "keep")
