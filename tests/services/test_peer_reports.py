"""What key-service reports of peers: what has changed, a bounded part at a time, and all again to a new status-service."""

import random
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network

from key_service.peer_reports import MAX_TEXT, REPORTED, PeerReports
from key_service.registry import Registry, unconfigured
from stagewire.config import PeerConfig
from stagewire.control.telemetry import GatewayReport
from stagewire.loop import Loop
from stagewire.proto.handshaker import Handshaker

T = 1000.0


def made(
    count: int, prefixes: int = 1, before: Sequence[bytes] = ()
) -> tuple[PeerReports, Handshaker, list[GatewayReport]]:
    networks = tuple(ip_network(f"10.{number}.0.0/16") for number in range(prefixes))
    peers = tuple(
        PeerConfig(number.to_bytes(32), bytes(32), networks, None, 0, False, 0, f"peer {number}")
        for number in range(count)
    )
    handshaker = Handshaker(None, bytes(12), random.Random(1).randbytes, lambda: 0.0)
    for peer in peers:
        handshaker.add_peer(peer.public_key, bytes(32), 0)
    sent: list[GatewayReport] = []

    def send(report: GatewayReport) -> bool:
        sent.append(report)
        return True

    return PeerReports(Registry(replace(unconfigured(), peers=peers)), handshaker, send, before), handshaker, sent


def test_only_what_changed_is_reported_and_a_report_comes_all_the_same() -> None:
    reports, handshaker, sent = made(2)
    for _ in range(2):
        reports.report(T, ready=True)
    handshaker.peers[bytes(32)].rx_bytes = 5
    reports.report(T, ready=False)
    assert [(report.ready, [peer.name for peer in report.peers]) for report in sent] == [
        (True, ["peer 0", "peer 1"]), (True, []), (False, ["peer 0"])
    ]  # fmt: skip
    assert (sent[2].peers[0].rx_bytes, sent[2].peers[0].allowed_ips) == (5, "10.0.0.0/16")


def test_many_peers_take_several_reports_and_none_is_forgotten() -> None:
    reports, _, sent = made(10_000)
    for _ in range(60):
        reports.report(T, ready=True)
    assert max(len(report.peers) for report in sent) == REPORTED
    names = [peer.name for report in sent for peer in report.peers]
    assert sorted(names) == sorted(f"peer {number}" for number in range(10_000))


def test_a_peer_with_traffic_is_told_at_once_and_keeps_no_other_from_its_turn() -> None:
    reports, handshaker, sent = made(2000)
    for _ in range(10):
        reports.report(T, ready=True)
    del sent[:]
    keys = list(handshaker.peers)
    for key in (*keys[1000:1300], keys[1999]):
        handshaker.peers[key].tx_bytes += 1
        reports.touch(key)
    reports.touch(b"gone")
    handshaker.peers[keys[1500]].rx_bytes = 1  # nothing tells of it
    reports.report(T, ready=True)
    assert {f"peer {number}" for number in range(1000, 1192)} <= {peer.name for peer in sent[0].peers}
    for _ in range(4):
        reports.report(T, ready=True)
    names = [peer.name for report in sent for peer in report.peers]
    assert sorted(names) == sorted(f"peer {number}" for number in (*range(1000, 1300), 1500, 1999))


def test_a_round_ends_once_all_peers_were_seen() -> None:
    reports, handshaker, sent = made(5000)
    loop = Loop()

    def rests() -> bool:
        """Whether the next report may come late."""
        before = loop.worked
        reports.report_paced(loop, T, ready=True)
        return loop.worked == before

    while not rests():
        assert len(sent) < 30
    assert sum(len(report.peers) for report in sent) == 5000
    assert rests()
    handshaker.peers[bytes(32)].rx_bytes = 5
    loop.worked += 1
    before = len(sent)
    while not rests():
        assert len(sent) < before + 10
    assert [peer.rx_bytes for report in sent[before:] for peer in report.peers] == [5]


def test_a_new_status_service_hears_all_again_and_of_a_peer_that_is_gone() -> None:
    reports, handshaker, sent = made(3)
    reports.report(T, ready=True)
    handshaker.remove_peer(bytes(32))
    reports.report(T, ready=True)
    assert (sent[1].peers, sent[1].gone) == ((), (bytes(32),))
    reports.start_anew()
    reports.report(T, ready=True)
    assert [peer.name for peer in sent[2].peers] == ["peer 1", "peer 2"] or len(sent[2].peers) == 2


def test_a_peer_that_goes_before_it_was_told_of_is_reported_as_gone() -> None:
    """An earlier key-service, or an earlier life of status-service, may know it."""
    removed = b"\xff" * 32
    reports, handshaker, sent = made(3, before=[removed])
    handshaker.remove_peer(bytes(32))
    reports.report(T, ready=True)
    assert ({peer.name for peer in sent[0].peers}, {*sent[0].gone}) == ({"peer 1", "peer 2"}, {removed, bytes(32)})
    reports.start_anew()
    handshaker.remove_peer((1).to_bytes(32))
    reports.report(T, ready=True)
    assert ([peer.name for peer in sent[1].peers], sent[1].gone) == (["peer 2"], ((1).to_bytes(32),))


def test_a_label_is_bounded_and_no_peers_are_no_error() -> None:
    reports, _, sent = made(1, prefixes=200)
    reports.report(T, ready=True)
    text = sent[0].peers[0].allowed_ips
    assert len(text) <= MAX_TEXT + 2
    assert text.endswith(",…")
    reports, _, sent = made(0)
    reports.report(T, ready=True)
    assert sent == [GatewayReport(True, (), ())]


def test_the_last_report_leaves_nothing_out() -> None:
    reports, handshaker, sent = made(10_000)
    reports.report_rest(T, ready=True)
    assert sum(len(report.peers) for report in sent) == 10_000
    handshaker.peers[bytes(32)].rx_bytes = 5
    reports.report_rest(T, ready=True)
    assert [peer.rx_bytes for report in sent[-6:] for peer in report.peers].count(5) == 1
