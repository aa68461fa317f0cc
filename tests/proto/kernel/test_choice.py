"""Which kernel a process has, and what it says about it."""

import pytest

from stagewire.proto.kernel import choice
from stagewire.proto.kernel.choice import choose
from stagewire.proto.kernel.rule import COMPILED, PLAIN
from stagewire.proto.worker import Worker


def test_the_compiled_kernel_is_the_default_where_it_is_built() -> None:
    pytest.importorskip("stagewire.proto.kernel.sealing")
    kernel = choose("")
    assert (kernel.name, kernel.why) == (COMPILED, "by default")
    worker = Worker(lambda: 0.0, kernel=kernel)
    assert worker.sealing is not None
    assert worker.opening is not None
    assert choose(COMPILED).why == "as STAGEWIRE_KERNEL says"


@pytest.mark.parametrize("name", ["OpenSSL", "libgcrypt"])
def test_the_compiled_one_takes_the_quickest_cipher(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cipher = pytest.importorskip("stagewire.proto.kernel.cipher")
    if name not in cipher.LIBRARIES:
        pytest.skip(f"this machine has no {name}")
    standing = cipher.library()
    monkeypatch.setattr(choice, "quickest", lambda: name)
    try:
        assert choose("").library == cipher.library() == name
        assert choose(PLAIN).library == ""
    finally:
        cipher.use(standing)


def test_the_plain_one_is_there_always() -> None:
    kernel = choose(PLAIN)
    assert (kernel.name, kernel.why) == (PLAIN, "as STAGEWIRE_KERNEL says")
    assert Worker(lambda: 0.0, kernel=kernel).sealing is None


def test_without_a_build_the_plain_one_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_LACKING", "it isn't built here")
    kernel = choose("")
    assert (kernel.name, kernel.why) == (PLAIN, "the compiled kernel can't be loaded: it isn't built here")
    with pytest.raises(ImportError, match="it isn't built here"):
        choose(COMPILED)


@pytest.mark.parametrize("name", [PLAIN, COMPILED])
def test_a_session_outlives_the_memory_of_its_keys(name: str) -> None:
    if name == COMPILED:
        pytest.importorskip("stagewire.proto.kernel.cipher")
    keys = bytearray(range(64))
    session = choose(name).session(1, 2, memoryview(keys)[:32], memoryview(keys)[32:], initiator=True, created=0.0)
    keys[:] = bytes(64)
    other = choose(PLAIN).session(2, 1, bytes(range(32, 64)), bytes(range(32)), initiator=False, created=0.0)
    (sealed,) = session.seal([b"packet"], 1420)
    assert other.receiver.decrypt(bytes(4) + sealed[8:16], sealed[16:], None).rstrip(b"\0") == b"packet"
    session.forget()
