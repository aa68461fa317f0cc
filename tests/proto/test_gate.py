"""The gate: what is refused with public data alone, and when an address must be proven."""

import itertools
import pickle
import random
from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from stagewire.proto import cookie, messages
from stagewire.proto.admission import SOURCE_ALLOWANCE
from stagewire.proto.awaited import AWAITED_FOR, MAX_ANSWERS
from stagewire.proto.cookie import MacSealer
from stagewire.proto.gate import DROP, LOADED_AT, PASS, PASS_FIRST, Gate
from stagewire.proto.messages import CookieReply
from stagewire.reasons import Reasons

T = 1000.0
OURS, THEIRS = bytes(range(32)), bytes(range(32, 64))


numbers = itertools.count()
COOKIE_REPLY = messages.pack_cookie_reply(8, bytes(24), bytes(32))
PASSED, DROPPED = (PASS, b""), (DROP, b"")
FIRST = (PASS_FIRST, b"")


def place(address: str = "192.0.2.1", port: int = 51820) -> bytes:
    return ip_address(address).packed + port.to_bytes(2, "big")


def new_gate(*, stamped: bool = False, settled: bool = True) -> tuple[Gate, Counter[str]]:
    drops = Reasons()
    return Gate(OURS, random.Random(1).randbytes, drops, T - AWAITED_FOR if settled else T, stamped=stamped), drops


def initiation(sealer: MacSealer | None = None, now: float = T) -> bytes:
    """Another one each time."""
    sealer = sealer or MacSealer(OURS)
    ephemeral = next(numbers).to_bytes(32, "little")
    return sealer.seal(messages.pack_initiation(7, ephemeral, bytes(48), bytes(28)), now)


def response(payload: int = 16) -> bytes:
    return MacSealer(OURS).seal(messages.pack_response(7, 8, bytes(32), bytes(payload)), T)


def load(gate: Gate) -> None:
    gate.note_queue(LOADED_AT)


def await_answers(gate: Gate, index: int = 8, now: float = T) -> None:
    """As we do after an initiation of ours."""
    gate.note_sent(messages.pack_initiation(index, bytes(32), bytes(48), bytes(28)), place(), now)


def proven(gate: Gate, source: bytes, now: float = T) -> MacSealer:
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
            expected = {1: "bad_mac1", 2: "unknown_response", 3: "unknown_cookie_reply"}[kind]
        passed, answer = gate.judge_untrusted(datagram, place(), T)
        assert answer == b""
        assert not passed
        assert drops == {expected: 1}
        drops.clear()


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_reserved_bytes_are_part_of_the_type(kind: int, at: int) -> None:
    gate, drops = new_gate()
    datagram = bytearray({1: initiation(), 2: response(), 3: b"\3" + bytes(63)}[kind])
    datagram[at] = 1
    assert gate.judge_untrusted(bytes(datagram), place(), T) == DROPPED
    assert drops == {"bad_type": 1}


def test_a_stamped_response_passes_only_where_one_is_wanted() -> None:
    plain, _ = new_gate()
    stamped, _ = new_gate(stamped=True)
    for gate in (plain, stamped):
        await_answers(gate)
        assert gate.judge_untrusted(response(16), place(), T) == FIRST
    assert plain.judge_untrusted(response(28), place(), T) == DROPPED
    assert stamped.judge_untrusted(response(28), place(), T) == FIRST


# --- mac1 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [initiation(), response()], ids=["initiation", "response"])
def test_every_bit_counts_but_those_of_mac2(message: bytes) -> None:
    for at in range(len(message)):
        gate, drops = new_gate()
        await_answers(gate)
        bad = message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]
        verdict, answer = gate.judge_untrusted(bad, place(), T)
        assert (verdict > 0, answer) == (at >= len(message) - 16, b"")
        assert bool(drops) == (at < len(message) - 16)


def test_a_message_for_another_is_refused() -> None:
    gate, drops = new_gate()
    message = MacSealer(THEIRS).seal(messages.pack_initiation(7, bytes(32), bytes(48), bytes(28)), T)
    assert gate.judge_untrusted(message, place(), T) == DROPPED
    assert drops == {"bad_mac1": 1}


def test_mac1_key_is_of_our_public_key() -> None:
    message = initiation()
    assert cookie.mac1(cookie.mac1_key(OURS), message[:-32]) == message[-32:-16]


# --- answers to our own messages ---------------------------------------------------------------------------


@pytest.mark.parametrize("message", [response(), COOKIE_REPLY], ids=["response", "cookie reply"])
def test_an_answer_passes_only_while_a_message_of_ours_awaits_it(message: bytes) -> None:
    gate, drops = new_gate()
    reason = "unknown_response" if message[0] == 2 else "unknown_cookie_reply"
    load(gate)
    assert gate.judge_untrusted(message, place(), T) == DROPPED
    await_answers(gate, 9)
    assert gate.judge_untrusted(message, place(), T) == DROPPED
    await_answers(gate)
    assert gate.judge_untrusted(message, place(), T) == FIRST
    await_answers(gate, 10, T + AWAITED_FOR)
    assert gate.judge_untrusted(message, place(), T + AWAITED_FOR) == DROPPED
    assert drops == {reason: 3}


@pytest.mark.parametrize("message", [response(), COOKIE_REPLY], ids=["response", "cookie reply"])
def test_few_answers_to_one_message_are_looked_at(message: bytes) -> None:
    gate, _ = new_gate()
    await_answers(gate)
    verdicts = [gate.judge_untrusted(message, place(), T) for _ in range(MAX_ANSWERS + 2)]
    assert verdicts == [FIRST] * MAX_ANSWERS + [DROPPED] * 2


def test_answers_to_messages_of_the_service_before_pass_at_first_but_not_many() -> None:
    gate, drops = new_gate(settled=False)
    verdicts = [gate.judge_untrusted(COOKIE_REPLY, place(), T) for _ in range(400)]
    assert verdicts.count(FIRST) == 256
    assert verdicts.count(DROPPED) == drops["unknown_cookie_reply"] == 400 - 256
    assert gate.judge_untrusted(COOKIE_REPLY, place(), T + AWAITED_FOR) == DROPPED


def test_an_answer_that_is_not_awaited_costs_no_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, _ = new_gate()
    message = response()
    monkeypatch.setattr(cookie, "blake2s", None)
    assert gate.judge_untrusted(message, place(), T) == DROPPED
    assert gate.judge_untrusted(COOKIE_REPLY, place(), T) == DROPPED


# --- load --------------------------------------------------------------------------------------------------


def test_load_is_an_eighth_of_the_queue() -> None:
    gate, _ = new_gate()
    gate.note_queue(LOADED_AT - 1)
    assert gate.judge_untrusted(initiation(), place(), T) == PASSED
    gate.note_queue(LOADED_AT)
    assert gate.judge_untrusted(initiation(), place(), T)[1] != b""
    gate.note_queue(LOADED_AT - 1)
    assert gate.judge_untrusted(initiation(), place(), T) == PASSED


def test_under_load_a_cookie_is_demanded() -> None:
    gate, drops = new_gate()
    load(gate)
    message = initiation()
    passed, answer = gate.judge_untrusted(message, place(), T)
    assert not passed
    assert len(answer) == 64 <= len(message)
    assert answer[:8] == b"\3\0\0\0\7\0\0\0"
    assert drops == {"cookie_demanded": 1}


def test_under_load_a_place_that_we_send_to_needs_no_cookie() -> None:
    gate, _ = new_gate()
    load(gate)
    assert gate.judge_untrusted(initiation(), place(), T, known=True) == FIRST


def test_with_the_cookie_it_passes_first() -> None:
    gate, _ = new_gate()
    load(gate)
    sealer = proven(gate, place())
    assert gate.judge_untrusted(initiation(sealer), place(), T) == FIRST


def test_a_bad_mac1_gets_no_cookie() -> None:
    gate, drops = new_gate()
    load(gate)
    message = initiation()
    bad = message[:-17] + bytes([message[-17] ^ 1]) + message[-16:]
    assert gate.judge_untrusted(bad, place(), T) == DROPPED
    assert drops == {"bad_mac1": 1}


@pytest.mark.parametrize(
    "other", [place("192.0.2.2"), place(port=51821), place("2001:db8::1")], ids=["address", "port", "family"]
)
def test_a_cookie_is_good_for_its_address_and_port_alone(other: bytes) -> None:
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
    assert gate.judge_untrusted(message, place(), T + 119.5) == FIRST
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
    assert verdicts == [FIRST] * 5 + [DROPPED] * 3
    assert drops == {"source_rate_exceeded": 3}
    assert gate.judge_untrusted(initiation(other), place("192.0.2.9"), T) == FIRST
    assert gate.judge_untrusted(initiation(sealer), place(), T + 0.05) == FIRST


def test_without_load_mac2_is_ignored() -> None:
    gate, drops = new_gate()
    message = initiation()[:-16] + b"\xff" * 16
    assert gate.judge_untrusted(message, place(), T) == PASSED
    assert not drops


# --- floods ------------------------------------------------------------------------------------------------


def flood(gate: Gate, sources: Iterable[bytes], rate: int = 20_000) -> Counter[int]:
    """Initiations with a good mac1, a second long; returns how many met each verdict."""
    verdicts: Counter[int] = Counter()
    for number, source in zip(range(rate), itertools.cycle(sources), strict=False):
        verdicts[gate.judge_untrusted(FLOOD[number], source, T + number / rate)[0]] += 1
    return verdicts


FLOOD = [MacSealer(OURS).seal(messages.pack_initiation(n, bytes(32), bytes(48), bytes(28)), T) for n in range(20_000)]
NEW = place("198.51.100.7", 7)


def test_a_flood_from_one_source_takes_nothing_from_others() -> None:
    gate, drops = new_gate()
    assert flood(gate, [place()])[PASS] <= 2 * SOURCE_ALLOWANCE
    assert gate.judge_untrusted(initiation(), NEW, T + 1) == PASSED
    assert gate.judge_untrusted(initiation(), place(port=7), T + 1) == PASSED  # and behind the same address
    assert drops["cookie_demanded"] > 19_000


def test_a_flood_from_one_address_leaves_half_to_others() -> None:
    gate, _ = new_gate()
    assert flood(gate, [place(port=port) for port in range(1, 60_000)])[PASS] < 1500
    assert [gate.judge_untrusted(initiation(), NEW, T + 1) for _ in range(20)] == [PASSED] * 20


def test_a_flood_from_everywhere_buys_few_and_a_cookie_goes_first() -> None:
    gate, _ = new_gate()
    assert flood(gate, [place(str(ip_address(0x0A000000 + 977 * n))) for n in range(20_000)])[PASS] < 1500
    sealer = MacSealer(OURS)
    verdict, answer = gate.judge_untrusted(initiation(sealer, T + 1), NEW, T + 1)
    if not verdict:
        reply = messages.parse_handshake_untrusted(answer)
        assert isinstance(reply, CookieReply)
        sealer.accept_cookie_reply(reply, T + 1)
        assert gate.judge_untrusted(initiation(sealer, T + 1), NEW, T + 1) == FIRST


def test_beside_a_flood_from_everywhere_a_peer_gets_in_at_once_with_a_new_address_of_its_network() -> None:
    gate, _ = new_gate()
    gate.note_sent(response(), place("198.51.100.200"), T)
    sources = [place(str(ip_address(0x0A000000 + 977 * n))) for n in range(20_000)]
    assert flood(gate, sources)[PASS] < 1500
    assert gate.judge_untrusted(initiation(), NEW, T + 1) == PASSED


def test_strangers_that_wait_for_key_service_keep_no_peer_of_a_known_network_out() -> None:
    gate, _ = new_gate()
    gate.note_sent(response(), place("198.51.100.200"), T)
    load(gate)
    assert gate.judge_untrusted(initiation(), place("203.0.113.1"), T)[0] == DROP
    assert gate.judge_untrusted(initiation(), NEW, T) == PASSED


def test_unproven_sources_leave_no_trace() -> None:
    gate, _ = new_gate()
    load(gate)
    before = len(pickle.dumps(vars(gate._admission), -1))
    flood(gate, [place(str(ip_address(0x0A000000 + 977 * n))) for n in range(20_000)], 20_000)
    assert len(gate._limiter._buckets) == 0
    assert len(pickle.dumps(vars(gate._admission), -1)) == before


def test_cookie_replies_to_a_flood_never_share_a_nonce() -> None:
    gate, _ = new_gate()
    load(gate)
    nonces = {gate.judge_untrusted(initiation(), place(), T + number)[1][8:32] for number in range(300)}
    assert len(nonces) == 300
