"""How fast a peer's bytes come and go, as key-service tells the commands."""

from key_service import rates
from stagewire.deadlines import IDLE_INTERVAL
from stagewire.proto.cookie import MacSealer
from stagewire.proto.peer import Peer
from stagewire.proto.timers import HandshakeTimers


def peer() -> Peer:
    return Peer(bytes(32), bytes(32), 0, False, MacSealer(bytes(32)), HandshakeTimers(lambda: 0.0))


def test_what_a_peer_sends_in_vain_adds_up_until_a_packet_goes_back() -> None:
    known = peer()
    for rx_bytes, tx_bytes, alone in ((96, 0, 96), (96, 32, 192), (32, 0, 192), (96, 48, 0), (96, 0, 96)):
        rates.take(known, rx_bytes, tx_bytes, 100.0)
        assert known.rx_alone == alone, "a keepalive, of 32 bytes, is no packet of anybody"


def test_a_rate_is_taken_between_two_reports_and_ends_without_another() -> None:
    known = peer()
    assert rates.of(known, 1.0) == (0.0, 0.0)
    rates.take(known, 1000, 0, 100.0)
    assert rates.of(known, 100.0) == (1000 / IDLE_INTERVAL, 0.0), "no worker is silent for longer"
    rates.take(known, 1000, 500, 101.0)
    assert rates.of(known, 102.0) == (1000.0, 500.0)
    rates.take(known, -5, 10, 101.01)
    assert rates.of(known, 101.01) == (1000.0, 500.0), "two reports at once would tell too high a rate"
    rates.take(known, 100, 0, 101.5)
    assert rates.of(known, 101.5) == (200.0, 20.0), "so they count together"
    assert rates.of(known, 105.0) == (0.0, 0.0)
