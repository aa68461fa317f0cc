"""Hash, HMAC, HKDF, X25519 and the running state, against published values and an independent formula."""

import hmac
import random
from hashlib import blake2s

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto import noise
from stagewire.proto.messages import BadMessage

P = 2**255 - 19
LOW_ORDER = {
    # The seven of the Linux kernel's netns.sh ...
    "0": bytes(32),
    "1": (1).to_bytes(32, "little"),
    "order 8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "order 8, other": bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    "p-1": (P - 1).to_bytes(32, "little"),
    "p": P.to_bytes(32, "little"),
    "p+1": (P + 1).to_bytes(32, "little"),
}
# ... and the same points with the bit set that X25519 ignores.
LOW_ORDER |= {f"{name}, top bit": key[:31] + bytes([key[31] | 0x80]) for name, key in LOW_ORDER.items()}


def test_initial_values_are_the_published_ones() -> None:
    chaining_key = "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
    initial_hash = "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"
    state = noise.initial_state(bytes(32))
    assert state.chaining_key.hex() == chaining_key
    assert state.hash == blake2s(bytes.fromhex(initial_hash) + bytes(32)).digest()


@pytest.mark.parametrize(
    ("key", "material", "outputs"),
    [
        (
            b"test-key",
            b"test-input",
            [
                "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
                "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
                "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
            ],
        ),
        (
            b"wireguard",
            b"wireguard",
            [
                "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
                "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
                "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
            ],
        ),
        (
            b"",
            b"",
            [
                "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
                "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
                "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
            ],
        ),
    ],
)
def test_kdf_gives_the_published_outputs(key: bytes, material: bytes, outputs: list[str]) -> None:
    for count in (1, 2, 3):
        assert [output.hex() for output in noise.kdf(key, material, count)] == outputs[:count]


@given(st.binary(max_size=100), st.binary(max_size=200))
def test_hmac_is_hmac_and_not_keyed_blake2s(key: bytes, data: bytes) -> None:
    padded = (blake2s(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = blake2s(bytes(b ^ 0x36 for b in padded) + data).digest()
    expected = blake2s(bytes(b ^ 0x5C for b in padded) + inner).digest()
    assert noise.hmac_(key, data) == expected == hmac.new(key, data, blake2s).digest()
    assert noise.hash_(key, data) == blake2s(key + data).digest()


def test_clamp() -> None:
    assert noise.clamp(b"\xff" * 32) == b"\xf8" + b"\xff" * 30 + b"\x7f"
    assert noise.clamp(bytes(32)) == bytes(31) + b"\x40"
    key = random.Random(1).randbytes(32)
    private, clamped = X25519PrivateKey.from_private_bytes(key), X25519PrivateKey.from_private_bytes(noise.clamp(key))
    assert noise.public_key_of(private) == noise.public_key_of(clamped)
    assert noise.clamp(noise.clamp(key)) == noise.clamp(key)


def test_dh_of_rfc_7748() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    product = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert noise.dh(X25519PrivateKey.from_private_bytes(scalar), noise.point_of(point)).hex() == product


@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER.keys())
def test_low_order_points_are_refused(point: bytes) -> None:
    private = X25519PrivateKey.from_private_bytes(random.Random(2).randbytes(32))
    with pytest.raises(BadMessage, match="low_order_key"):
        noise.dh(private, noise.point_of(point))


def test_non_canonical_point_of_great_order_is_the_same_as_its_canonical_form() -> None:
    private = X25519PrivateKey.from_private_bytes(random.Random(3).randbytes(32))
    odd, canonical = (noise.point_of(number.to_bytes(32, "little")) for number in (P + 9, 9))
    assert noise.dh(private, odd) == noise.dh(private, canonical) == noise.public_key_of(private)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_what_is_no_public_key_is_refused(length: int) -> None:
    with pytest.raises(BadMessage, match="low_order_key"):
        noise.point_of(bytes(length))


def test_a_copy_moves_on_alone() -> None:
    state = noise.initial_state(bytes(32))
    before = (state.chaining_key, state.hash)
    copy = state.copy()
    copy.mix_preshared_key(bytes(32))
    assert (state.chaining_key, state.hash) == before
    assert (copy.chaining_key, copy.hash) != before


def test_seal_and_open_move_both_sides_alike() -> None:
    one, other = noise.initial_state(bytes(32)), noise.initial_state(bytes(32))
    for each in (one, other):
        each.mix_key(b"secret")
    ciphertext = one.seal(b"text")
    assert other.open_untrusted(ciphertext, "no") == b"text"
    assert one == other
    assert one.split() == other.split()


def test_what_is_not_authentic_moves_nothing() -> None:
    state = noise.initial_state(bytes(32))
    state.mix_key(b"secret")
    ciphertext = state.copy().seal(b"text")
    before = (state.chaining_key, state.hash)
    for bad in (b"", ciphertext[:-1], ciphertext + b"\0", bytes([ciphertext[0] ^ 1]) + ciphertext[1:]):
        with pytest.raises(BadMessage, match="my_reason"):
            state.open_untrusted(bad, "my_reason")
        assert (state.chaining_key, state.hash) == before
    assert state.open_untrusted(ciphertext, "my_reason") == b"text"


def test_a_key_serves_once() -> None:
    state = noise.initial_state(bytes(32))
    with pytest.raises(RuntimeError, match="used up"):
        state.open_untrusted(bytes(16), "no")
    state.mix_key(b"secret")
    state.seal(b"text")
    with pytest.raises(RuntimeError, match="used up"):
        state.seal(b"text")


def test_secrets_hide_from_repr() -> None:
    state = noise.initial_state(bytes(32))
    assert repr(state) == "SymmetricState()"
