"""Metrics and health: what Prometheus' own parser reads in them, and what a thousand bad clients do to them."""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from lab.wait import until
from stagewire.control.telemetry import Counters, GatewayReport, PeerReport, QueueReport, WaitReport
from stagewire.loop import Loop, boot_time
from stagewire.pipe.waits import BOUNDS
from stagewire.reasons import Incident
from status_service import http
from status_service.exposition import Metrics
from status_service.health import ENOUGH, Health
from status_service.http import MAX_CLIENTS, Server
from status_service.peers import MAX_PEERS, SILENT_AFTER, Peers
from status_service.tally import Tally

ANNA, KEY = bytes([1]) * 32, "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
T = 1000.0


class Gateway:
    def __init__(self) -> None:
        self.tally, self.peers = Tally(), Peers()
        self.health = Health(self.tally, self.peers)
        self.metrics = Metrics("wg0", self.tally, self.peers, self.health)

    def report(self, at: float, *peers: PeerReport, ready: bool = True, gone: tuple[bytes, ...] = ()) -> None:
        self.peers.take(GatewayReport(ready, peers, gone), at)

    def count(
        self, at: float, counters: dict[str, int], stage: str = "tun", incidents: tuple[Incident, ...] = ()
    ) -> None:
        self.tally.take(Counters(stage, 0, 1, 7, tuple(counters), tuple(counters.values()), incidents), at)

    def samples(self, at: float) -> dict[tuple[str, tuple[str, ...]], float]:
        found = {}
        for family in text_string_to_metric_families(self.metrics.text(at).decode()):
            for sample in family.samples:
                found[sample.name, tuple(sample.labels[label] for label in sorted(sample.labels))] = sample.value
        return found


def anna(rx: int = 7, name: str = "Anna's phone", at: float = 0.0) -> PeerReport:
    heard = 0.0 if rx else -1.0
    return PeerReport(ANNA, name, "10.0.0.2/32,fd00::2/128", 5, rx, at, "192.0.2.1:5", heard)


def test_a_peer_has_the_names_and_labels_that_dashboards_know() -> None:
    gateway, now = Gateway(), time.time()
    gateway.report(T, replace(anna(at=now), last_handshake=T - 7.5))
    text = gateway.metrics.text(T).decode()
    assert '\nwireguard_peers_total{interface="wg0"} 1.0\n' in text
    assert "# TYPE wireguard_peers_total gauge" in text
    labels = f'allowed_ips="10.0.0.2/32,fd00::2/128",friendly_name="Anna\'s phone",interface="wg0",public_key="{KEY}"'
    for name, value in (
        ("wireguard_sent_bytes_total", "5.0"), ("wireguard_received_bytes_total", "7.0"), ("wireguard_peer_up", "1.0"),
        ("wireguard_latest_handshake_delay_seconds", "7.0"),
    ):  # fmt: skip
        [line] = [line for line in text.splitlines() if line.startswith(name + "{")]
        assert sorted(line[len(name) + 1 :].partition("}")[0].split('",')) == sorted(labels.split('",'))
        assert line.endswith(f" {value}")
    key = ("10.0.0.2/32,fd00::2/128", "Anna's phone", "wg0", KEY)
    assert gateway.samples(T)["wireguard_latest_handshake_seconds", key] == int(now)
    assert "# TYPE wireguard_sent_bytes_total counter" in text


def test_a_peer_that_never_called_or_fell_silent_is_not_up() -> None:
    gateway, key = Gateway(), ("10.0.0.2/32,fd00::2/128", "Anna's phone", "wg0", KEY)
    gateway.report(T, anna(rx=0))
    assert gateway.samples(T)["wireguard_peer_up", key] == 0
    assert gateway.samples(T)["wireguard_latest_handshake_seconds", key] == 0
    assert abs(gateway.samples(T)["wireguard_latest_handshake_delay_seconds", key] - time.time()) < 60
    gateway.report(T, anna(rx=9, at=time.time()))
    assert gateway.samples(T + 179)["wireguard_peer_up", key] == 1
    gateway.report(T + 179, replace(anna(rx=9, at=time.time()), heard_s_ago=179.0))
    assert gateway.samples(T + 181)["wireguard_peer_up", key] == 0
    gateway.report(T + 181, replace(anna(rx=9, at=time.time()), heard_s_ago=-1.0))
    assert gateway.samples(T + 181)["wireguard_peer_up", key] == 0
    gateway.report(T + 182, gone=(ANNA,))
    assert not [name for name, _ in gateway.samples(T + 182) if name.startswith("wireguard_peer_up")]


def test_counters_of_stages_and_reasons_of_peers() -> None:
    gateway = Gateway()
    gateway.report(T, anna())
    gateway.count(T, {"datagrams_in": 3, "no_peer": 2})
    gave_up = tuple(Incident("gave_up", key, b"", 0, 4) for key in (ANNA, bytes([2]) * 32))
    gateway.count(T, {"gave_up": 8}, "key", gave_up)
    found = gateway.samples(T)
    assert found["stagewire_traffic_total", ("datagrams_in", "wg0", "0", "tun")] == 3
    assert found["stagewire_drops_total", ("wg0", "0", "no_peer", "tun")] == 2
    assert found["stagewire_failures_total", ("wg0", "0", "gave_up", "key")] == 8
    of_peers = {labels: value for (name, labels), value in found.items() if name == "stagewire_peer_incidents_total"}
    assert of_peers == {("Anna's phone", "wg0", KEY, "gave_up", "key"): 4}
    assert found["stagewire_lives_total", ("wg0", "0", "tun")] == 1
    assert found["stagewire_ready", ("wg0",)] == 1


def test_queues_waits_and_cpu_of_a_stage_and_its_take_overs() -> None:
    gateway = Gateway()
    counts = (3, 0, 2, *[0] * (len(BOUNDS) - 3), 1)
    for generation in (1, 2):
        gateway.tally.take(
            Counters(
                *("device", 1, generation, 7, (), (), ()),
                cpu=1.5,
                queues=(QueueReport("plain-in", 700, 90), QueueReport("made-up-by-the-stage", 1, 1)),
                waits=(WaitReport("cipher-in.1", counts, 0.5), WaitReport("plain-out.1", (1,), 0.5)),
            ),
            T,
        )
    found = gateway.samples(T)
    of_queue = ("wg0", "1", "plain-in", "device")
    assert found["stagewire_queue_bytes", of_queue] == 700
    assert found["stagewire_queue_held_bytes", of_queue] == 90
    assert found["stagewire_cpu_seconds_total", ("wg0", "1", "device")] == 1.5
    assert found["stagewire_takeovers_total", ("wg0", "1", "device")] == 1
    buckets = [
        found["stagewire_wait_seconds_bucket", ("wg0", str(bound), "1", "cipher-in.1", "device")] for bound in BOUNDS
    ]
    assert buckets == [3, 3, *[5] * (len(BOUNDS) - 2)]
    assert found["stagewire_wait_seconds_count", ("wg0", "1", "cipher-in.1", "device")] == 6
    assert found["stagewire_wait_seconds_sum", ("wg0", "1", "cipher-in.1", "device")] == 0.5
    assert {labels[2] for name, labels in found if name == "stagewire_queue_bytes"} == {"plain-in"}
    assert {labels[2] for name, labels in found if name == "stagewire_wait_seconds_count"} == {"cipher-in.1"}


@given(st.text(max_size=80), st.text(max_size=300))
def test_any_name_stays_one_label(name: str, allowed: str) -> None:
    gateway = Gateway()
    gateway.report(T, PeerReport(ANNA, name, allowed, 1, 2, 0.0))
    families = list(text_string_to_metric_families(gateway.metrics.text(T).decode(errors="surrogateescape")))
    [sent] = [sample for family in families for sample in family.samples if sample.name == "wireguard_sent_bytes_total"]
    assert (sent.labels["friendly_name"], sent.labels["allowed_ips"]) == (name, allowed)


def test_peers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("status_service.peers.MAX_PEERS", 3)
    gateway = Gateway()
    gateway.report(T, *(PeerReport(bytes([number]) * 32, "", "", 0, 0, 0.0) for number in range(9)))
    assert len(gateway.peers.known) == 3 < MAX_PEERS


# --- health -------------------------------------------------------------------------------------------------


def test_a_gateway_without_peers_and_traffic_is_ready() -> None:
    gateway = Gateway()
    gateway.report(T)
    gateway.health.look(T)
    assert (gateway.health.unwell(T), gateway.health.unready(T)) == ([], [])


def test_a_silent_key_service_is_unwell_and_a_missing_stage_unready() -> None:
    gateway = Gateway()
    assert gateway.health.unwell(T) == gateway.health.unready(T) == ["key-service does not report"]
    gateway.report(T, ready=False)
    assert gateway.health.unwell(T) == []
    assert gateway.health.unready(T) == ["not every process is at work, or the link is down"]
    gateway.report(T, ready=True)
    assert gateway.health.unready(T + SILENT_AFTER) == []
    assert gateway.health.unwell(T + SILENT_AFTER + 0.1) == ["key-service does not report"]


@pytest.mark.parametrize(
    ("counters", "stuck"),
    [
        ({"tun_packets_in": ENOUGH}, True),
        ({"tun_packets_in": ENOUGH - 1}, False),
        ({"tun_packets_in": 1000, "datagrams_out": 1}, False),
        ({"tun_packets_in": 1000, "no_peer": 700, "no_endpoint": 300}, False),
        ({"train_too_old": ENOUGH}, True),
        ({"train_too_old": ENOUGH, "tun_packets_out": 1}, False),
        ({"datagrams_in": 1000}, False),
    ],
)
def test_a_gateway_whose_packets_go_nowhere_is_not_ready(counters: dict[str, int], stuck: bool) -> None:
    gateway = Gateway()
    gateway.count(T, {"datagrams_out": 5, "tun_packets_out": 5})
    gateway.health.look(T)
    gateway.report(T + 5)
    gateway.count(T + 5, counters | {name: counters.get(name, 0) + 5 for name in ("datagrams_out", "tun_packets_out")})
    assert bool(gateway.health.unready(T + 5)) is stuck
    gateway.health.look(T + 20)
    gateway.report(T + 20)
    assert gateway.health.unready(T + 20) == []


# --- HTTP ---------------------------------------------------------------------------------------------------


class Page:
    def __init__(self, body: bytes = b"x" * 200_000) -> None:
        self.loop = Loop()
        listener = http.listen("127.0.0.1", 20000)
        assert isinstance(listener, socket.socket)
        self.listener, self.port = listener, listener.getsockname()[1]
        self.asked: list[str] = []
        self.server = Server(self.loop, listener, self._answer)
        self.body = body

    def _answer(self, path: str, _now: float) -> tuple[int, str, bytes]:
        self.asked.append(path)
        return 200, "text/plain", self.body

    def turn(self) -> bool:
        self.loop._serve(0.01)
        self.server.act(boot_time())
        return True

    def client(self, request: bytes = b"") -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        opened.sendall(request)
        return opened

    def read(self, opened: socket.socket) -> bytes:
        opened.setblocking(False)
        found = bytearray()

        def ended() -> bool:
            self.turn()
            try:
                data = opened.recv(1 << 20)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            found.extend(data)
            return not data

        until(ended, 10, "the answer")
        opened.close()
        return bytes(found)


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.listener.close()


def test_a_request_is_answered_whole(page: Page) -> None:
    said = page.read(page.client(b"GET /metrics?a=b HTTP/1.1\r\nHost: localhost:9586\r\n\r\n"))
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(page.body)}".encode() in head
    assert (body, page.asked) == (page.body, ["/metrics"])
    assert page.read(page.client(b"HEAD / HTTP/1.0\r\n\r\n")).endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [(b"POST / HTTP/1.1\r\n\r\n", b"405"), (b"nonsense\r\n\r\n", b"400"), (b"\xff\xfe / x\r\n\r\n", b"400")],
)
def test_what_is_no_question_gets_a_clear_answer(page: Page, request_: bytes, status: bytes) -> None:
    assert page.read(page.client(request_)).startswith(b"HTTP/1.1 " + status)
    assert page.asked == []


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1:9586", True), ("192.0.2.1", True), ("[::1]:9586", True), ("::1", True), ("[fe80::1%eth0]:1", True),
        ("LocalHost.", True), ("gw.example.net", True), ("GW.example.net.:9586", True), ("evil.example", False),
        ("127.0.0.1.evil.example:9586", False), ("localhost.evil.example", False), ("127.0.0.1@evil.example", False),
        ("", False), ("evil.example\r\nHost: localhost", False), ("localhost\r\nHOST : evil.example", False),
        ("localhost\nHost: evil.example", False), ("gw.example.net:9586:1", False),
    ],
)  # fmt: skip
def test_a_name_that_another_site_has_lead_here_gets_no_answer(host: str, answered: bool) -> None:
    request = f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    if answered:
        assert http.read_untrusted(request, {"gw.example.net"}) == ("/metrics", False)
        return
    with pytest.raises(http.BadRequest, match="STAGEWIRE_METRICS_NAMES") as refused:
        http.read_untrusted(request, {"gw.example.net"})
    assert refused.value.status == 403


def test_too_long_a_request_ends_the_connection(page: Page) -> None:
    assert page.read(page.client(b"GET / HTTP/1.1\r\n" + b"x" * 20_000)) == b""


def test_slow_clients_are_bounded_and_keep_no_one_out(page: Page) -> None:
    slow: list[Any] = []
    for _ in range(4 * MAX_CLIENTS):
        slow.append(page.client(b"GET /metrics HTTP/1.1\r\n"))
        page.turn()
    assert len(page.server._clients) <= MAX_CLIENTS
    assert page.read(page.client(b"GET /metrics HTTP/1.1\r\n\r\n")).endswith(page.body)
    for client in page.server._clients.values():
        client.until = 0.0
    page.turn()
    assert page.server._clients == {}
    for opened in slow:
        opened.close()


def test_the_next_free_port_is_taken_and_a_bad_address_is_said() -> None:
    one, other = http.listen("127.0.0.1", 21000), http.listen("127.0.0.1", 21000)
    assert isinstance(one, socket.socket)
    assert isinstance(other, socket.socket)
    with one, other:
        assert 21000 <= one.getsockname()[1] < other.getsockname()[1]
    assert http.listen("192.0.2.1", 80) != ""
    assert isinstance(http.listen("192.0.2.1", 80), str)
