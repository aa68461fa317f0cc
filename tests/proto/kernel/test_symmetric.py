"""The compiled half of the handshake: what `proto.noise` computes, byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto import noise
from stagewire.proto.messages import BadMessage

symmetric = pytest.importorskip("stagewire.proto.kernel.symmetric")
FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))
MATERIAL = st.binary(max_size=200)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["mix_hash", "mix_chain", "mix_key", "mix_preshared_key"]), MATERIAL),
        st.tuples(st.sampled_from(["seal", "open"]), st.binary(max_size=100)),
        st.just(("copy", b"")),
    ),
    max_size=12,
)


def take(state: noise.SymmetricState, step: str, data: bytes) -> object:
    """Takes a step; returns all that can be seen of it."""
    try:
        match step:
            case "copy":
                return state.copy().split()
            case "open":
                return state.open_untrusted(state.copy().seal(data), "no")
            case _:
                return getattr(state, step)(data)
    except RuntimeError as error:
        return str(error)


@given(STEPS)
def test_every_step_gives_the_same_bytes(steps: list[tuple[str, bytes]]) -> None:
    plain, built = noise.SymmetricState(FIRST, SECOND), symmetric.SymmetricState(FIRST, SECOND)
    for step, data in steps:
        assert take(plain, step, data) == take(built, step, data)
        assert (plain.hash, plain.split()) == (built.hash, built.split())


@given(MATERIAL, st.binary(max_size=100), st.integers(0, 10**6), st.integers(0, 7))
def test_what_is_not_authentic_is_refused_and_moves_nothing(material: bytes, text: bytes, at: int, bit: int) -> None:
    state = symmetric.SymmetricState(FIRST, SECOND)
    state.mix_key(material)
    sealed = state.copy().seal(text)
    forged = bytearray(sealed)
    forged[at % len(forged)] ^= 1 << bit
    before = (state.hash, state.split())
    for bad in (bytes(forged), sealed[:-1], sealed + b"\0", sealed[:15], b"", bytes(2000)):
        with pytest.raises(BadMessage, match="my_reason"):
            state.open_untrusted(bad, "my_reason")
        assert (state.hash, state.split()) == before
    assert state.open_untrusted(sealed, "my_reason") == text


def test_states_are_equal_that_will_give_the_same_bytes() -> None:
    state = symmetric.SymmetricState(FIRST, SECOND)
    assert state == state.copy() == symmetric.SymmetricState(FIRST, SECOND)
    for other in (symmetric.SymmetricState(SECOND, SECOND), symmetric.SymmetricState(FIRST, FIRST), None):
        assert state != other
    keyed = state.copy()
    keyed.mix_key(b"secret")
    used = keyed.copy()
    used.open_untrusted(keyed.copy().seal(b""), "no")
    assert used != keyed


@pytest.mark.parametrize(("first", "second"), [(31, 32), (32, 33), (0, 32)])
def test_a_state_has_two_numbers_of_32_bytes(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="32"):
        symmetric.SymmetricState(bytes(first), bytes(second))


def test_nothing_but_bytes_is_taken_and_no_message_is_too_long() -> None:
    state = symmetric.SymmetricState(FIRST, SECOND)
    for act in (state.mix_hash, state.mix_chain, state.mix_key, state.mix_preshared_key):
        for bad in (None, "text", bytearray(3)):
            with pytest.raises(TypeError):
                act(bad)
    state.mix_key(b"secret")
    with pytest.raises(RuntimeError):
        state.seal(bytes(1025))
    assert len(state.seal(bytes(1024))) == 1040
