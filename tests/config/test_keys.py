"""Keys as `wg` writes them."""

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewire.config import decode_key, encode_key, generate_private_key, public_key


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_a_key_survives_its_text(key: bytes) -> None:
    assert len(encode_key(key)) == 44
    assert decode_key(encode_key(key)) == key


@settings(deadline=None)
@given(st.text(max_size=60) | st.text("ABCDwxyz0189+/=", min_size=40, max_size=48))
def test_a_text_is_a_key_only_when_it_is_that_keys_text(text: str) -> None:
    try:
        key = decode_key(text)
    except ValueError:
        return
    assert encode_key(key) == text
    assert len(key) == 32


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_private_keys_are_clamped(random_bytes: bytes) -> None:
    key = generate_private_key(random_bytes)
    assert key[0] & 7 == 0
    assert key[31] & 0xC0 == 0x40
    assert key[1:31] == random_bytes[1:31]
    assert public_key(key) == public_key(random_bytes)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_private_key_of_another_length(length: int) -> None:
    with pytest.raises(ValueError, match="32"):
        generate_private_key(bytes(length))
    with pytest.raises(ValueError, match="32"):
        public_key(bytes(length))


@pytest.mark.skipif(not shutil.which("wg"), reason="needs wireguard-tools")
def test_wg_makes_the_same_public_key() -> None:
    private = generate_private_key(bytes(range(32)))
    ran = subprocess.run(["wg", "pubkey"], input=encode_key(private), capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == encode_key(public_key(private))
