"""Tests the example of docs/PIPES.md: a tap between tun-service and a worker of a live gateway, with either transport."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.stagewire import executable
from lab.traffic import ping
from lab.wait import until

pytestmark = pytest.mark.system

PEER = Spoke(1, Topology.A4)
TAP = Path(__file__).parents[2] / "deploy/examples/tap.py"
BACK_WITHIN = 20.0


class Tapped:
    """A gateway with one worker, a peer, and the pipe between tun-service and the worker."""

    def __init__(self, network: Topology, hub: Hub) -> None:
        self.network, self.gateway = network, hub.gateway
        self.pipe = hub.gateway.run_directory / hub.name / "device/plain-out.0"
        self.behind = self.pipe.with_name("plain-out.0.behind")

    def passes(self) -> bool:
        return ping(self.network.b, PEER.inner[0], timeout=1).received == 1

    def wait_until_it_passes(self) -> None:
        until(self.passes, BACK_WITHIN, "a ping to come back")

    @contextmanager
    def tap(self, output: Path) -> Iterator["subprocess.Popen[bytes]"]:
        """The example, from when trains go through it."""
        with output.open("wb") as file:
            process = subprocess.Popen([sys.executable, TAP, self.pipe], stdout=file, stderr=file)
        try:
            until(lambda: self.behind.exists() and self.pipe.exists(), BACK_WITHIN, "the tap to listen")
            self.gateway.command("restart", "tun", self.gateway.name, timeout=60)
            until(lambda: self.passes() and "1 packets" in output.read_text(), BACK_WITHIN, "a train in the tap")
            yield process
        finally:
            process.kill()
            process.wait()

    def spare_worker(self) -> int:
        """Starts the only spare of the gateway: a spare of each stage would make every start and restart slower.

        Returns its pid.
        """
        env = {**self.gateway.env, "STAGEWIRE_INTERFACE": self.gateway.name}
        pid = self.network.b.popen(executable("device-service"), env=env).pid
        until(lambda: pid in self.gateway.processes(), BACK_WITHIN, "the spare to wait")
        return pid


@pytest.fixture(scope="module", params=["direct", "libzmq"])
def tapped(request: pytest.FixtureRequest, shared_directory: Path) -> Iterator[Tapped]:
    with Topology("t") as network:
        hub = Hub(network.b, shared_directory / request.param, {"peer": PEER})
        hub.gateway.env |= {"STAGEWIRE_PIPES": request.param, "STAGEWIRE_WORKERS": "1"}
        with hub, hub.wireguard_go(PEER, network.a):
            made = Tapped(network, hub)
            made.wait_until_it_passes()
            yield made


def test_a_tap_prints_what_passes_and_leaves_the_pipe_as_it_was(tapped: Tapped, tmp_path: Path) -> None:
    file = tapped.pipe.stat().st_ino
    with tapped.tap(tmp_path / "said") as tap:
        assert tapped.behind.stat().st_ino == file
        tap.send_signal(signal.SIGINT)
        assert tap.wait(5) == 0
    assert tapped.pipe.stat().st_ino == file
    assert not tapped.behind.exists()
    tapped.wait_until_it_passes()


def test_a_worker_that_takes_over_goes_on_with_or_without_the_tap(tapped: Tapped, tmp_path: Path) -> None:
    spare = tapped.spare_worker()
    with tapped.tap(tmp_path / "said") as tap:
        tapped.gateway.kill("device", signal.SIGKILL)
        until(lambda: tapped.gateway.held().get(("device", 0)) == spare, BACK_WITHIN, "the spare to take over")
        tapped.wait_until_it_passes()
        tap.send_signal(signal.SIGTERM)
        # A tap whose reader was away too long ends by itself, perhaps at this moment.
        assert tap.wait(5) in {0, -signal.SIGTERM}
    assert not tapped.behind.exists()
    tapped.wait_until_it_passes()
