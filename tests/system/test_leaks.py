"""Nothing that belongs into the tunnel is seen outside, whatever is done to the gateway and to the host.

A capture looks at the host's own interface while packets are sent all the time, to the tunnel's prefixes and from its
addresses, in both families, with a default route through the tunnel ("full") and with the peer's prefixes alone ("split").
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from lab import leaks
from lab.hub import Hub, Spoke
from lab.leaks import Leaks
from lab.namespaces import Namespace, Topology
from lab.stagewire import Gateway
from lab.wait import until
from lab.wg import is_ready
from lab.wireguard_go import WireguardGo

pytestmark = pytest.mark.system

WORLD = ("203.0.113.7", "2001:db8:ff::7")
DEFAULT = ("0.0.0.0/0", "::/0")
STAGES = ("status", "resolver", "host", "key", "conn", "tun", "device")
OF_THE_KERNEL = (0, 32766, 32767)
"""The priorities of the rules that are there without us."""


class Scene:
    """A host with a tunnel, its peer beyond a router that takes in silence whatever else comes."""

    def __init__(self, directory: Path, full: bool) -> None:
        self.full, self._directory = full, directory
        self.network = Topology("l" if full else "m")
        self.host = self.network.b
        self.spoke = self.a_spoke(1)
        self.hub = self.gateway("wg0", self.spoke)
        self.peer: WireguardGo
        self._stack = ExitStack()

    def a_spoke(self, number: int) -> Spoke:
        return Spoke(number, Topology.A4, allowed_ips=DEFAULT if self.full else ())

    def gateway(self, name: str, spoke: Spoke, *lines: str) -> Hub:
        """One on the host, which isn't up yet."""
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        hub = Hub(self.host, directory, {"it": spoke}, *lines, name=name, port=51900 + spoke.number)
        hub.gateway = Gateway(self.host, name, directory, hub.config, workers=1, spares=0)
        return hub

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.network)
            for family in ("-4", "-6"):
                self.network.c.run("ip", family, "route", "add", "blackhole", "default")
            self.peer = self._stack.enter_context(self.hub.wireguard_go(self.spoke, self.network.a, Topology.B4))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def watched(self, expect: str = leaks.NEVER) -> Leaks:
        """Sends and looks; `expect` says what may be seen of what isn't from the tunnel's own address."""
        destinations = (*self.spoke.inner, *(WORLD if self.full else ()))
        return self.leaks(leaks.ways(self.spoke.gateway_inner, destinations, held=expect == leaks.NEVER), expect)

    def leaks(self, ways: Sequence[leaks.Way], expect: str) -> Leaks:
        return Leaks(self.host, self.network.link_b.a_interface, ways, expect)

    def whole(self) -> None:
        """Waits until every stage is at work and packets reach the peer."""
        until(lambda: is_ready(self.hub.gateway), 30, "every stage to be at work")
        before = self._received()
        until(lambda: self._received() > before, 30, "packets to reach the peer")

    def _received(self) -> int:
        return self.peer.dump().peers[self.hub.keys.public].received

    def make_folders(self) -> None:
        gateway = self.hub.gateway
        for directory in (gateway.run_directory, gateway.state_directory, gateway.log_directory):
            directory.mkdir(exist_ok=True)

    def down(self) -> None:
        """Whatever a test has left."""
        self.hub.gateway.write_config(self.hub.config)
        self.hub.gateway.close()

    def up(self) -> None:
        """Unless it is."""
        if not is_ready(self.hub.gateway):
            self.hub.gateway.__enter__()


@pytest.fixture(scope="module", params=[True, False], ids=["full", "split"])
def scene(request: pytest.FixtureRequest, shared_directory: Path) -> Iterator[Scene]:
    directory = shared_directory / ("f" if request.param else "s")
    directory.mkdir()
    with Scene(directory, request.param) as made:
        try:
            yield made
        finally:
            made.down()


@pytest.fixture
def down(scene: Scene) -> Iterator[Scene]:
    """The gateway isn't up, and isn't afterwards."""
    scene.down()
    scene.make_folders()
    yield scene
    scene.down()


@pytest.fixture
def up(scene: Scene) -> Scene:
    """The gateway is up."""
    scene.up()
    return scene


def test_up_and_down(down: Scene) -> None:
    with down.watched(leaks.UNTIL):
        down.hub.gateway.up()
        down.whole()
    with down.watched(leaks.FROM):
        down.hub.gateway.down()


def test_an_up_that_fails(down: Scene) -> None:
    """At its last step, when all is in place already."""
    down.hub.gateway.write_config(down.gateway("wg0", down.spoke, "PostUp = false").config)
    with down.watched(leaks.BUT_FOR_ONE_SPAN):
        assert (
            down.hub.gateway.command("up", str(down.hub.gateway.config_path), check=False, timeout=60).returncode == 1
        )


def test_up_after_a_crash(down: Scene) -> None:
    down.hub.gateway.up()
    with down.watched() as leaking:
        leaking.step("every process is killed")
        down.hub.gateway.cut_off()
        leaking.passing()
    with down.watched(leaks.ANY_BUT_AT_THE_END):
        down.hub.gateway.up()
        down.whole()


def test_a_name_that_is_not_resolved_yet(down: Scene) -> None:
    """A full tunnel holds back what it can't send yet."""
    hub = down.gateway("wg0", replace(down.spoke, host="vpn.example.net"))
    down.hub.gateway.write_config(hub.config.replace(hub.keys.private, down.hub.keys.private))
    with down.host.etc(hosts="127.0.0.1 localhost\n", resolv_conf="nameserver 127.0.0.1\n") as etc:
        with down.watched(leaks.UNTIL) as leaking:
            down.hub.gateway.up()
            leaking.passing(200)
        with down.watched():
            (etc / "hosts").write_text(f"127.0.0.1 localhost\n{Topology.A4} vpn.example.net\n")
            down.whole()
        down.hub.gateway.down()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_killed(up: Scene, stage: str) -> None:
    with up.watched():
        killed = up.hub.gateway.kill(stage, signal.SIGKILL)
        until(lambda: up.hub.gateway.held().get((stage, 0), killed) != killed, 20, "another process in its place")
        up.whole()


def test_supervisord_is_killed_and_then_every_stage(up: Scene) -> None:
    """None is there again."""
    with up.watched() as leaking:
        os.kill(up.hub.gateway.pid(), signal.SIGKILL)
        leaking.passing()
        leaking.step("the stages are killed")
        for pid in up.hub.gateway.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        leaking.passing(100)


def test_every_stage_is_replaced(up: Scene) -> None:
    with up.watched():
        up.hub.gateway.command("restart", "all", "wg0", timeout=90)
        up.whole()


def test_the_link_is_set_down_and_up(up: Scene) -> None:
    with up.watched() as leaking:
        up.host.run("ip", "link", "set", "wg0", "down")
        leaking.passing(100)
        leaking.step("set up")
        up.host.run("ip", "link", "set", "wg0", "up")
        up.whole()


def test_addresses_and_routes_are_flushed(up: Scene) -> None:
    with up.watched() as leaking:
        for family in ("-4", "-6"):
            up.host.run("ip", family, "address", "flush", "dev", "wg0")
        up.whole()
        leaking.step("routes")
        for family in ("-4", "-6"):
            for table in ("main", "51820"):
                up.host.run("ip", family, "route", "flush", "table", table, "dev", "wg0", check=False)
        up.whole()


def test_the_interface_visits_another_namespace(up: Scene) -> None:
    with Namespace("abroad") as abroad, up.watched() as leaking:
        up.host.run("ip", "link", "set", "wg0", "netns", abroad.name)
        leaking.passing(100)
        leaking.step("back")
        abroad.run("ip", "link", "set", "wg0", "netns", up.host.name)
        up.host.run("ip", "link", "set", "wg0", "up")
        up.whole()


def test_a_manager_flushes_foreign_rules(up: Scene) -> None:
    """What has the tunnel's own address as its source is held back even while there is no rule."""
    if not up.full:
        pytest.skip("a tunnel without a default route has no rules")

    def rules() -> dict[str, list[dict[str, Any]]]:
        return {family: json.loads(up.host.run("ip", "-j", family, "rule", "show").stdout) for family in ("-4", "-6")}

    before = rules()
    with up.watched(leaks.ANY_BUT_AT_THE_END) as leaking:
        for family, standing in before.items():
            for rule in standing:
                if rule["priority"] not in OF_THE_KERNEL:
                    up.host.run("ip", family, "rule", "delete", "priority", str(rule["priority"]))
        until(lambda: rules() == before, 10, "the rules to be back")
        leaking.passing(30)


def test_a_second_tunnel_comes_and_goes(up: Scene) -> None:
    spoke = up.a_spoke(2)
    hub = up.gateway("wg1", spoke)
    before = leaks.NEVER if up.full else leaks.BUT_FOR_ONE_SPAN
    with ExitStack() as stack:
        first = stack.enter_context(up.watched())
        second = stack.enter_context(up.leaks(leaks.ways(spoke.gateway_inner, spoke.inner), before))
        stack.enter_context(hub.wireguard_go(spoke, up.network.a, Topology.B4))
        hub.gateway.__enter__()
        stack.callback(hub.gateway.close)
        first.passing(100)
        second.passing(100)
    with up.watched():
        up.whole()
