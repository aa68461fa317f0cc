"""The gate: what is refused with public data alone, and when an address must be proven."""

import random
from collections import Counter
from ipaddress import ip_address

import pytest

from stagewire.proto import cookie, messages
from stagewire.proto.cookie import MacSealer
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.gate import LOADED_AT, QUEUE_LIMIT, Gate
from stagewire.proto.messages import CookieReply

T = 1000.0
OURS, THEIRS = bytes(range(32)), bytes(range(32, 64))


def place(address: str = "192.0.2.1", port: int = 51820) -> Endpoint:
    return Endpoint(ip_address(address).packed, port)


def new_gate(*, stamped: bool = False) -> tuple[Gate, Counter[str]]:
    drops: Counter[str] = Counter()
    return Gate(OURS, random.Random(1).randbytes, drops, stamped=stamped), drops


def initiation(sealer: MacSealer | None = None, now: float = T) -> bytes:
    sealer = sealer or MacSealer(OURS)
    return sealer.seal(messages.pack_initiation(7, bytes(32), bytes(48), bytes(28)), now)


def response(payload: int = 16) -> bytes:
    return MacSealer(OURS).seal(messages.pack_response(7, 8, bytes(32), bytes(payload)), T)


def load(gate: Gate, now: float = T) -> None:
    gate.note_queue(LOADED_AT, now)


def proven(gate: Gate, source: Endpoint, now: float = T) -> MacSealer:
    """A sealer that has got its cookie."""
    sealer = MacSealer(OURS)
    passed, answer = gate.judge_untrusted(initiation(sealer, now), source, now)
    assert not passed
    reply = messages.parse_handshake_untrusted(answer)
    assert isinstance(reply, CookieReply)
    sealer.accept_cookie_reply(reply, now)
    return sealer


# --- size and type (M1 to M5, M8) --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(256))
def test_every_type_at_every_length(kind: int) -> None:
    gate, drops = new_gate()
    right = {1: 148, 2: 92, 3: 64}.get(kind)
    for length in range(401):
        datagram = (bytes([kind]) + bytes(400))[:length]
        expected = "too_short" if length < 4 else "bad_type" if right is None else "bad_length"
        if length == right:
            expected = "bad_mac1"
        passed, answer = gate.judge_untrusted(datagram, place(), T)
        assert answer == b""
        assert passed == (kind == 3 and length == 64)
        assert drops == ({} if passed else {expected: 1})
        drops.clear()


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_reserved_bytes_are_part_of_the_type(kind: int, at: int) -> None:
    gate, drops = new_gate()
    datagram = bytearray({1: initiation(), 2: response(), 3: b"\3" + bytes(63)}[kind])
    datagram[at] = 1
    assert gate.judge_untrusted(bytes(datagram), place(), T) == (False, b"")
    assert drops == {"bad_type": 1}


def test_a_stamped_response_passes_only_where_one_is_wanted() -> None:
    plain, _ = new_gate()
    stamped, _ = new_gate(stamped=True)
    assert plain.judge_untrusted(response(28), place(), T) == (False, b"")
    assert stamped.judge_untrusted(response(28), place(), T) == (True, b"")
    for gate in (plain, stamped):
        assert gate.judge_untrusted(response(16), place(), T) == (True, b"")


# --- mac1 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [initiation(), response()], ids=["initiation", "response"])
def test_every_bit_counts_but_those_of_mac2(message: bytes) -> None:
    gate, _ = new_gate()
    assert gate.judge_untrusted(message, place(), T) == (True, b"")
    for at in range(len(message)):
        bad = message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]
        assert gate.judge_untrusted(bad, place(), T) == (at >= len(message) - 16, b"")


def test_a_message_for_another_is_refused() -> None:
    gate, drops = new_gate()
    message = MacSealer(THEIRS).seal(messages.pack_initiation(7, bytes(32), bytes(48), bytes(28)), T)
    assert gate.judge_untrusted(message, place(), T) == (False, b"")
    assert drops == {"bad_mac1": 1}


def test_a_cookie_reply_passes_without_macs() -> None:
    gate, _ = new_gate()
    load(gate)
    assert gate.judge_untrusted(messages.pack_cookie_reply(1, bytes(24), bytes(32)), place(), T) == (True, b"")


# --- load --------------------------------------------------------------------------------------------------


def test_load_is_an_eighth_of_the_queue_and_lasts_a_second() -> None:
    gate, _ = new_gate()
    gate.note_queue(QUEUE_LIMIT // 8 - 1, T)
    assert not gate.loaded(T)
    gate.note_queue(QUEUE_LIMIT // 8, T)
    gate.note_queue(0, T + 0.5)
    assert gate.loaded(T + 0.99)
    assert not gate.loaded(T + 1)


@pytest.mark.parametrize("message", [initiation(), response()], ids=["initiation", "response"])
def test_under_load_a_cookie_is_demanded_of_both_kinds(message: bytes) -> None:
    gate, drops = new_gate()
    load(gate)
    passed, answer = gate.judge_untrusted(message, place(), T)
    assert not passed
    assert len(answer) == 64 <= len(message)
    assert answer[:8] == b"\3\0\0\0\7\0\0\0"
    assert drops == {"cookie_demanded": 1}


def test_with_the_cookie_it_passes() -> None:
    gate, _ = new_gate()
    load(gate)
    sealer = proven(gate, place())
    assert gate.judge_untrusted(initiation(sealer), place(), T) == (True, b"")


def test_a_bad_mac1_gets_no_cookie() -> None:
    gate, drops = new_gate()
    load(gate)
    message = initiation()
    bad = message[:-17] + bytes([message[-17] ^ 1]) + message[-16:]
    assert gate.judge_untrusted(bad, place(), T) == (False, b"")
    assert drops == {"bad_mac1": 1}


@pytest.mark.parametrize(
    "other", [place("192.0.2.2"), place(port=51821), place("2001:db8::1")], ids=["address", "port", "family"]
)
def test_a_cookie_is_good_for_its_address_and_port_alone(other: Endpoint) -> None:
    gate, drops = new_gate()
    load(gate)
    sealer = proven(gate, place())
    drops.clear()
    passed, answer = gate.judge_untrusted(initiation(sealer), other, T)
    assert not passed
    assert len(answer) == 64
    assert drops == {"cookie_demanded": 1}


def test_a_cookie_is_not_good_for_long() -> None:
    gate, _ = new_gate()
    load(gate)
    sealer = proven(gate, place())
    message = initiation(sealer, T + 114)
    load(gate, T + 119)
    assert gate.judge_untrusted(message, place(), T + 119.5) == (True, b"")
    load(gate, T + 120)
    passed, answer = gate.judge_untrusted(message, place(), T + 120)
    assert not passed
    assert len(answer) == 64
    # The secret is another now, so the old cookie stays bad.
    assert not gate.judge_untrusted(message, place(), T + 120)[0]


def test_under_load_a_proven_source_has_twenty_a_second_and_leaves_others_theirs() -> None:
    gate, drops = new_gate()
    load(gate)
    sealer, other = proven(gate, place()), proven(gate, place("192.0.2.9"))
    drops.clear()
    verdicts = [gate.judge_untrusted(initiation(sealer), place(), T) for _ in range(8)]
    assert verdicts == [(True, b"")] * 5 + [(False, b"")] * 3
    assert drops == {"source_rate_exceeded": 3}
    assert gate.judge_untrusted(initiation(other), place("192.0.2.9"), T) == (True, b"")
    assert gate.judge_untrusted(initiation(sealer), place(), T + 0.05) == (True, b"")


def test_without_load_nothing_is_limited_and_mac2_ignored() -> None:
    gate, drops = new_gate()
    message = initiation()[:-16] + b"\xff" * 16
    assert all(gate.judge_untrusted(message, place(), T) == (True, b"") for _ in range(100))
    assert not drops


def test_unproven_sources_leave_no_trace() -> None:
    gate, _ = new_gate()
    load(gate)
    for number in range(500):
        gate.judge_untrusted(initiation(), place(str(ip_address(0x0A000000 + number))), T)
    assert len(gate._limiter) == 0


def test_mac1_key_is_of_our_public_key() -> None:
    message = initiation()
    assert cookie.mac1(cookie.mac1_key(OURS), message[:-32]) == message[-32:-16]


def test_cookie_replies_carry_no_mac_and_are_few_from_one_source() -> None:
    drops: Counter[str] = Counter()
    gate = Gate(bytes(32), bytes, drops)
    reply = b"\x03\0\0\0" + bytes(60)
    one, other = Endpoint(bytes([192, 0, 2, 1]), 7), Endpoint(bytes([192, 0, 2, 2]), 7)
    assert [gate.judge_untrusted(reply, one, 5.0)[0] for _ in range(6)] == [True] * 5 + [False]
    assert gate.judge_untrusted(reply, other, 5.0) == (True, b"")
    assert gate.judge_untrusted(reply, one, 5.05) == (True, b"")
    assert drops == {"source_rate_exceeded": 1}
