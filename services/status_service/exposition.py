"""Turns all that status-service knows into Prometheus' metrics.

A peer's metrics have the names and labels of the exporter that most dashboards for WireGuard expect. Ours begin with
`stagewire_`.
"""

import time
from base64 import b64encode
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stagewire import stats
from stagewire.pipe.waits import BOUNDS
from status_service.health import Health
from status_service.peers import Known, Peers
from status_service.tally import Service, Tally

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PEER: Final = ("interface", "public_key", "allowed_ips", "friendly_name")
_STAGE: Final = ("interface", "stage", "number")
_PIPE: Final = (*_STAGE, "pipe")
_BOUNDS: Final = (*map(str, BOUNDS), "+Inf")
_OF_KINDS: Final = {
    stats.TRAFFIC: ("stagewire_traffic", "Packets, datagrams and runs that a stage has handled", "counter"),
    stats.DROP: ("stagewire_drops", "Packets, datagrams and messages that a stage has thrown away", "reason"),
    stats.FAILURE: ("stagewire_failures", "Handshakes, look-ups and orders that came to nothing", "reason"),
    stats.REPAIR: ("stagewire_repairs", "Changes of other programs that host-service has undone", "what"),
}
"""Name, help and last label for each kind of counter."""


class Metrics(Collector):
    """Collects one interface's metrics, as of `now` (s, boot-time clock)."""

    def __init__(self, interface: str, tally: Tally, peers: Peers, health: Health) -> None:
        self._interface, self._tally, self._peers, self._health = interface, tally, peers, health
        self._now = 0.0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self, now: float) -> bytes:
        """Returns the metrics in Prometheus' text format."""
        self._now = now
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._of_peers()
        yield from self._of_stages()
        yield from self._of_pipes()
        counted = self._tally.status(self._now)
        drops = CounterMetricFamily(
            "stagewire_peer_incidents",
            "Drops and failed handshakes of a peer, by reason",
            labels=("interface", "stage", "public_key", "friendly_name", "reason"),
        )
        sums: dict[tuple[str, str, str], int] = {}
        for each in counted.reasons:
            if each.public_key:
                key = each.stage, each.public_key, each.reason
                sums[key] = sums.get(key, 0) + each.count
        names = {_text(key): known.report.name for key, known in self._peers.known.items()}
        for (stage, public_key, reason), count in sums.items():
            if public_key in names:
                drops.add_metric((self._interface, stage, public_key, names[public_key], reason), count)
        yield drops
        ready = GaugeMetricFamily("stagewire_ready", "Whether traffic can flow", labels=("interface",))
        ready.add_metric((self._interface,), float(not self._health.unready(self._now)))
        yield ready

    def _of_peers(self) -> Iterator[Metric]:
        sent = CounterMetricFamily("wireguard_sent_bytes", "Bytes sent to the peer", labels=_PEER)
        received = CounterMetricFamily("wireguard_received_bytes", "Bytes received from the peer", labels=_PEER)
        shaken = GaugeMetricFamily(
            "wireguard_latest_handshake_seconds", "UNIX time of the last handshake, 0 for never", labels=_PEER
        )
        delay = GaugeMetricFamily(
            "wireguard_latest_handshake_delay_seconds",
            "Seconds since the last handshake, or since 1970 for never",
            labels=_PEER,
        )
        peers = GaugeMetricFamily("wireguard_peers_total", "Total number of peers", labels=("interface",))
        peers.add_metric((self._interface,), len(self._peers.known))
        unix_s = time.time()
        up = GaugeMetricFamily(
            "wireguard_peer_up", "Whether the peer has sent anything authentic in the last 180 s", labels=_PEER
        )
        for key, known in self._peers.known.items():
            labels = self._labels(key, known)
            sent.add_metric(labels, known.report.tx_bytes)
            received.add_metric(labels, known.report.rx_bytes)
            shaken.add_metric(labels, int(known.report.last_handshake_unix_s))
            last = known.report.last_handshake
            delay.add_metric(labels, int(self._now - last if last else unix_s - known.report.last_handshake_unix_s))
            up.add_metric(labels, float(self._peers.is_up(known, self._now)))
        yield from (sent, received, shaken, delay, peers, up)

    def _labels(self, key: bytes, known: Known) -> tuple[str, ...]:
        return self._interface, _text(key), known.report.allowed_ips, known.report.name

    def _services(self) -> Iterator[tuple[tuple[str, ...], Service]]:
        for (stage, number), service in sorted(self._tally.services.items()):
            yield (self._interface, stage, str(number)), service

    def _of_stages(self) -> Iterator[Metric]:
        families = {
            kind: CounterMetricFamily(name, about, labels=(*_STAGE, label))
            for kind, (name, about, label) in _OF_KINDS.items()
        }
        lives = CounterMetricFamily("stagewire_lives", "Processes that a stage has had", labels=_STAGE)
        heard = GaugeMetricFamily("stagewire_heard_seconds", "Seconds since a stage's last report", labels=_STAGE)
        taken = CounterMetricFamily("stagewire_takeovers", "Times that a process has taken a stage over", labels=_STAGE)
        cpu = CounterMetricFamily("stagewire_cpu_seconds", "CPU time of a stage's present process", labels=_STAGE)
        for labels, service in self._services():
            for name, value in service.total().items():
                families[stats.kind_of(name)].add_metric((*labels, name), value)
            lives.add_metric(labels, service.lives)
            taken.add_metric(labels, service.lives - 1)
            cpu.add_metric(labels, service.cpu)
            heard.add_metric(labels, self._now - service.heard)
        yield from (*families.values(), lives, taken, cpu, heard)

    def _of_pipes(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("stagewire_queue_bytes", "Bytes that wait in a pipe for its reader", labels=_PIPE)
        held = GaugeMetricFamily(
            "stagewire_queue_held_bytes", "Most bytes that a stage held back for a full pipe in a second", labels=_PIPE
        )
        waits = HistogramMetricFamily(
            "stagewire_wait_seconds", "Time from a train's birth in one stage until the next one takes it", labels=_PIPE
        )
        for labels, service in self._services():
            for queue in service.queues:
                waiting.add_metric((*labels, queue.pipe), queue.waiting)
                held.add_metric((*labels, queue.pipe), queue.held)
            for each in service.waits:
                below = list(zip(_BOUNDS, map(float, accumulate(each.counts)), strict=True))
                waits.add_metric((*labels, each.pipe), below, each.total)
        yield from (waiting, held, waits)


def _text(key: bytes) -> str:
    return b64encode(key).decode()
