"""Wycheproof's vectors through the calls that handshakes, sessions and cookies make.

A shared secret of zeros is refused at every door that computes one: otherwise everybody would know the keys.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.proto.far import Far, T, new_handshaker, setup, stamp

from stagewire.proto import handshake, noise
from stagewire.proto.cookie import MacSealer, xchacha20poly1305_open, xchacha20poly1305_seal
from stagewire.proto.handshake import Identity, Remote
from stagewire.proto.messages import BadMessage, CookieReply, parse_handshake_untrusted

FOLDER = Path(__file__).parent / "wycheproof"
Vector = dict[str, Any]


def vectors(name: str, count: int) -> list[Vector]:
    found: list[Vector] = json.loads((FOLDER / f"{name}.json").read_text())["tests"]
    assert len(found) == count
    return found


def raw(vector: Vector, *names: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(vector[name]) for name in names)


X25519 = vectors("x25519", 518)
ZEROS = [vector for vector in X25519 if not any(bytes.fromhex(vector["shared"]))]


def test_every_shared_secret_is_the_vectors_or_refused_where_it_is_zeros() -> None:
    for vector in X25519:
        public, private, shared = raw(vector, "public", "private", "shared")
        key, point = X25519PrivateKey.from_private_bytes(private), noise.point_of(public)
        if any(shared):
            assert noise.dh(key, point) == shared, vector["tcId"]
            assert Remote.of(Identity.from_private_bytes(private), public).static_shared == shared
        else:
            assert "ZeroSharedSecret" in vector["flags"]
            with pytest.raises(BadMessage, match="low_order_key"):
                noise.dh(key, point)
    assert len(ZEROS) > 20


def test_no_door_takes_a_key_whose_secret_is_zeros() -> None:
    """As a peer's static key, and as the ephemeral key of an initiation and of a response."""
    ours, far, peer = setup()
    initiation = far.initiation(stamp(1))
    sent = handshake.initiate(ours.identity, peer.remote(ours.identity), 5, bytes(range(32)), stamp(1))
    response = far.respond(far.macs.seal(sent[0], T))
    for vector in ZEROS:
        (public,) = raw(vector, "public")
        with pytest.raises(BadMessage, match="low_order_key"):
            Remote.of(ours.identity, public)
        forged = parse_handshake_untrusted(initiation[:8] + public + initiation[40:])
        with pytest.raises(BadMessage, match="low_order_key"):
            handshake.open_initiation_untrusted(ours.identity, forged)  # type: ignore[arg-type]
        forged = parse_handshake_untrusted(response[:12] + public + response[44:])
        with pytest.raises(BadMessage, match="low_order_key"):
            handshake.read_response_untrusted(
                ours.identity, peer.remote(ours.identity), sent[1], forged, stamped=False  # type: ignore[arg-type]
            )  # fmt: skip


def test_chacha20_poly1305_as_a_session_calls_it() -> None:
    for vector in vectors("chacha20_poly1305", 325):
        key, nonce, extra, plain, cipher, tag = raw(vector, "key", "iv", "aad", "msg", "ct", "tag")
        chacha = ChaCha20Poly1305(key)
        if vector["result"] == "valid":
            assert chacha.encrypt(nonce, plain, extra) == cipher + tag, vector["tcId"]
            assert chacha.decrypt(nonce, cipher + tag, extra) == plain
            continue
        expected = InvalidTag if len(nonce) == 12 else ValueError
        with pytest.raises(expected):
            chacha.decrypt(nonce, cipher + tag, extra)


def test_xchacha20_poly1305_as_cookies_use_it() -> None:
    cookies = 0
    for vector in vectors("xchacha20_poly1305", 315):
        key, nonce, extra, plain, cipher, tag = raw(vector, "key", "iv", "aad", "msg", "ct", "tag")
        is_valid, is_cookie = vector["result"] == "valid", len(plain) == 16 and len(nonce) == 24
        if is_valid:
            assert xchacha20poly1305_seal(key, nonce, plain, extra) == cipher + tag, vector["tcId"]
            assert xchacha20poly1305_open(key, nonce, cipher + tag, extra) == plain
        else:
            with pytest.raises(InvalidTag if len(nonce) == 24 else ValueError):
                xchacha20poly1305_open(key, nonce, cipher + tag, extra)
        if is_cookie:
            cookies += 1
            sealer = MacSealer(bytes(32))
            sealer._cookie_key, sealer._outstanding_mac1 = key, extra
            reply = CookieReply(5, nonce, cipher + tag)
            if is_valid:
                sealer.accept_cookie_reply(reply, T)
                assert sealer._cookie == plain
            else:
                with pytest.raises(BadMessage, match="bad_cookie_reply"):
                    sealer.accept_cookie_reply(reply, T)
    assert cookies > 20


def test_far_is_the_other_side() -> None:
    """What the forged messages above are made of passes as it was."""
    ours = new_handshaker()
    far = Far(ours.identity)
    opened = handshake.open_initiation_untrusted(ours.identity, parse_handshake_untrusted(far.initiation(stamp(1))))  # type: ignore[arg-type]
    assert opened.public_key == far.identity.public_key
