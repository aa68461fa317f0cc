"""How fast a peer's bytes come and go, as key-service tells the commands."""

from key_service import rates
from stagewire.loop import IDLE_INTERVAL
from stagewire.proto.cookie import MacSealer
from stagewire.proto.peer import Peer
from stagewire.proto.timers import HandshakeTimers


def test_a_rate_is_taken_between_two_reports_and_ends_without_another() -> None:
    peer = Peer(bytes(32), bytes(32), 0, False, MacSealer(bytes(32)), HandshakeTimers(lambda: 0.0))
    assert rates.of(peer, 1.0) == (0.0, 0.0)
    rates.take(peer, 1000, 0, 100.0)
    assert rates.of(peer, 100.0) == (1000 / IDLE_INTERVAL, 0.0), "no worker is silent for longer"
    rates.take(peer, 1000, 500, 101.0)
    assert rates.of(peer, 102.0) == (1000.0, 500.0)
    rates.take(peer, -5, 10, 101.01)
    assert rates.of(peer, 101.01) == (0.0, 20.0), "two reports at once would tell too high a rate"
    assert rates.of(peer, 105.0) == (0.0, 0.0)
