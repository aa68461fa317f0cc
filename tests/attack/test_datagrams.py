"""Attacks by datagrams that need no network: what each costs us, and what leaves for it."""

import random
import time
from typing import Any

import pytest
from tests.attack.marks import Figure
from tests.proto import byhand
from tests.proto.far import ELSEWHERE, INDEX, PLACE, PSK, Far, T, receive, setup, stamp

from stagewire.loop import boot_time
from stagewire.proto import constants as c
from stagewire.proto import handshake, noise
from stagewire.proto.awaited import AWAITED_FOR
from stagewire.proto.cookie import MacSealer
from stagewire.proto.endpoint import place_of
from stagewire.proto.events import InstallSession, SendHandshake, WantHandshake
from stagewire.proto.gate import Gate
from stagewire.proto.messages import BadMessage, pack_initiation
from stagewire.proto.tunnel import Output
from stagewire.reasons import Reasons

STORM = 10_000
FLOOD = 2000
SLEEP = 8 * 3600.0


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A one for each X25519."""
    done: list[int] = []
    real = noise.dh

    def counted(*arguments: Any) -> bytes:
        done.append(1)
        return real(*arguments)

    for module in (noise, handshake):
        monkeypatch.setattr(module, "dh", counted, raising=False)
    return done


@pytest.mark.attack("M10")
def test_garbage_under_a_good_mac1_costs_one_exchange(
    exchanges: list[int], luck: random.Random, figure: Figure
) -> None:
    ours, far, _ = setup()
    sealer = MacSealer(ours.identity.public_key)
    worst = 0
    for _ in range(200):
        garbage = pack_initiation(INDEX, luck.randbytes(32), luck.randbytes(48), luck.randbytes(28))
        exchanges.clear()
        with pytest.raises(BadMessage):
            receive(ours, sealer.seal(garbage, T))
        worst = max(worst, len(exchanges))
    figure("X25519 for one initiation", worst, most=1)
    exchanges.clear()
    receive(ours, far.initiation(stamp()))
    assert len(exchanges) >= 3, "an authentic one needs more: they are counted"


@pytest.mark.attack("F4")
def test_a_peer_that_floods_limits_itself_alone(figure: Figure) -> None:
    """All its initiations are valid, and from its own place. Another peer of ours initiates beside them."""
    ours, flooder, _ = setup()
    other = Far(ours.identity, seed=1)
    ours.add_peer(other.identity.public_key, PSK, 5)
    drops = Reasons()
    gate = Gate(ours.identity.public_key, random.Random(1).randbytes, drops, T - AWAITED_FOR)
    opened = answered = 0

    def arrives(data: bytes, packed: bytes, now: float, *, known: bool) -> bool:
        nonlocal opened
        place = place_of(packed)
        if not gate.judge_untrusted(data, place, now, known=known)[0]:
            return False
        opened += 1
        try:
            effects = receive(ours, data, now, packed)
        except BadMessage:
            return False
        sent = [
            each
            for effect in effects if isinstance(effect, InstallSession)
            for each in ours.installed(effect.index, now) if isinstance(each, SendHandshake)
        ]  # fmt: skip
        for each in sent:
            gate.note_sent(each.data, place, now)
        return bool(sent)

    for number in range(FLOOD):
        now = T + number / FLOOD
        answered += arrives(flooder.initiation(stamp(number / FLOOD)), PLACE, now, known=True)
    figure("initiations that were opened", opened, "of 2,000", most=100)
    figure("answers in a second", answered, least=1, most=50)
    assert arrives(other.initiation(stamp()), ELSEWHERE, T + 1, known=False), "another gets in at once"


@pytest.mark.attack("F8")
def test_no_answer_is_longer_than_what_it_answers(figure: Figure) -> None:
    ours, far, _ = setup()
    came = left = 0
    for second in range(100):
        now = T + second
        data = far.initiation(stamp(second))
        came += len(data)
        for effect in receive(ours, data, now):
            if isinstance(effect, InstallSession):
                left += sum(
                    len(each.data) for each in ours.installed(effect.index, now) if isinstance(each, SendHandshake)
                )
    assert left, "it answers"
    figure("bytes out for each byte in", left / came, most=1)
    figure("a cookie reply for each byte of a response", c.COOKIE_REPLY_LENGTH / c.RESPONSE_LENGTH, most=1)


@pytest.mark.attack("A10")
@pytest.mark.parametrize("wide", [False, True], ids=["one by one", "in trains"])
def test_a_storm_of_keepalives_is_neither_delivered_nor_answered(wide: bool, figure: Figure) -> None:
    one = byhand.running()
    per_call = 64 if wide else 1
    out = Output()
    for start in range(0, STORM, per_call):
        train = [byhand.theirs(counter, b"") for counter in range(start, start + per_call)]
        out = one.inbound([(byhand.PLACE, train)], byhand.T + start / STORM)
        assert (out.packets, out.runs) == ([], [])
    one_second_later = one.act(byhand.T + c.KEEPALIVE_TIMEOUT + 1)
    figure("datagrams for 10,000 keepalives", len(one_second_later.runs), most=0)
    assert not one.drops


@pytest.mark.attack("P27")
def test_after_a_long_sleep_no_old_session_serves_and_one_handshake_begins(figure: Figure) -> None:
    one = byhand.running()
    assert byhand.receive(one, byhand.v4("10.1.0.5")).packets
    awake = byhand.T + SLEEP
    assert byhand.receive(one, byhand.v4("10.1.0.5"), now=awake).packets == []
    outs = [one.outbound([byhand.v4("10.9.9.9", "10.1.0.5")], awake + at / 100) for at in range(50)]
    assert [out.runs for out in outs if out.runs] == []
    wanted = [event for out in outs for event in out.events if isinstance(event, WantHandshake)]
    figure("handshakes wanted in half a second", len(wanted), least=1, most=1)


@pytest.mark.attack("P27")
def test_the_clock_goes_on_while_the_machine_sleeps() -> None:
    before, now, after = time.clock_gettime(time.CLOCK_BOOTTIME), boot_time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= now <= after


@pytest.mark.attack("M6")
@pytest.mark.parametrize("length", [16, 40, 1000])
def test_a_known_index_over_garbage_is_counted_and_moves_nothing(length: int, luck: random.Random) -> None:
    one = byhand.running()
    honest = byhand.theirs(0, byhand.v4("10.1.0.5"))
    for _ in range(500):
        forged = honest[:8] + luck.randbytes(length)
        assert one.inbound([(byhand.ELSEWHERE, [forged])], byhand.T) == Output()
    assert one.inbound([(byhand.PLACE, [honest])], byhand.T).packets == [byhand.v4("10.1.0.5")]
    assert byhand.tunnel_of(one).endpoint == byhand.PLACE
    assert one.drops == {"transport_not_authentic": 500}
