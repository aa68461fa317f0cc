"""Without ListenPort any port that is free, as with `wg`: two clients side by side, and it stays whatever is restarted."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import Spoke, together
from lab.namespaces import Topology
from lab.stagewire import Gateway
from lab.traffic import ping
from lab.wait import until
from lab.wg import GATEWAY, Bare, WgHub, is_ready
from lab.wireguard_go import SOCKETS, WireguardGo, new_key_pair, parse_dump

pytestmark = pytest.mark.system

SPOKES = (Spoke(1, Topology.A4), Spoke(2, f"[{Topology.A6}]"))
STAGES = ("conn", "host", "key")


class Client(WgHub):
    """A gateway whose file has no ListenPort, with one peer in A."""

    def __init__(self, network: Topology, directory: Path, spoke: Spoke, spares: int) -> None:
        super().__init__(network.b, directory, {"one": spoke}, port=0)
        self.network, self.spoke = network, spoke
        self.config = self.config.replace("ListenPort = 0\n", "")
        assert "ListenPort" not in self.config
        self.gateway = Gateway(
            network.b, self.name, directory, self.config, 1, spares, {"STAGEWIRE_WG_DIR": str(SOCKETS)}
        )

    def shown(self) -> int:
        """The port as `wg` shows it, and `status`."""
        port = self.dump().listen_port
        assert self.gateway.status()["listen_port"] == port
        return port

    def opened(self) -> list[int]:
        """The ports that its conn-service has, one for each family."""
        pid = self.gateway.pid("conn")
        lines = self.network.b.run("ss", "-Hulnp").stdout.splitlines()
        places = {line.split()[3] for line in lines if f"pid={pid}," in line}
        return [int(place.rpartition(":")[2]) for place in places]


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("fp") as topology:
        yield topology


@pytest.fixture(scope="module")
def clients(network: Topology, shared_directory: Path) -> Iterator[list[Client]]:
    """One with spares, one without."""
    made = [Client(network, shared_directory / str(spares), SPOKES[spares], spares) for spares in (0, 1)]
    with together(*made):
        yield made


def reached(client: Client) -> bool:
    """From A, at the port that is shown."""
    family = 6 if "[" in (client.spoke.host or "") else 4
    with client.wireguard_go(client.spoke, client.network.a) as far:
        far.set("peer", client.keys.public, "endpoint", f"{GATEWAY[family]}:{client.shown()}")
        return ping(client.network.a, client.spoke.gateway_inner[0], timeout=10).received == 1


def test_two_files_without_a_port_are_up_together(clients: list[Client]) -> None:
    ports = [client.shown() for client in clients]
    assert len({*ports, 0, 51820}) == 4
    for client, port in zip(clients, ports, strict=True):
        assert client.opened() == [port, port]
        assert reached(client)


def kill(client: Client, *stages: str) -> None:
    """Both processes of each, where there are two; returns when all is ready again."""
    before = client.gateway.held()
    for stage in stages:
        client.gateway.kill(stage, signal.SIGKILL)

    def back() -> bool:
        held = client.gateway.held()
        others = all(held.get((stage, 0), before[stage, 0]) != before[stage, 0] for stage in stages)
        return others and is_ready(client.gateway)

    until(back, 20, f"{stages} to be back")


@pytest.mark.parametrize("stages", [*((stage,) for stage in STAGES), ("conn", "host"), STAGES], ids="-".join)
def test_it_stays_when_stages_are_killed(clients: list[Client], stages: tuple[str, ...]) -> None:
    for client in clients:
        port = client.shown()
        kill(client, *stages)
        assert client.shown() == port
        assert client.opened() == [port, port]


def test_it_stays_when_all_are_restarted(clients: list[Client]) -> None:
    client = clients[1]
    port = client.shown()
    client.gateway.command("restart", "all", client.gateway.name, timeout=90)
    assert client.shown() == port
    assert client.opened() == [port, port]
    assert reached(client)


def test_a_port_that_is_set_and_taken_back(clients: list[Client]) -> None:
    """`wg set listen-port 0` picks another, as wireguard-go does."""
    client = clients[0]
    before = client.shown()
    client.set("listen-port", "5000")
    kill(client, "key", "host")
    assert client.shown() == 5000
    client.set("listen-port", "0")
    chosen = client.shown()
    assert chosen not in {0, 5000}
    kill(client, "key", "host", "conn")
    assert client.shown() == chosen
    assert reached(client)
    assert before  # and no file says anything of all that
    assert "ListenPort" not in client.gateway.config_path.read_text()


def test_a_bare_interface_has_a_port_as_with_wireguard_go(network: Topology, shared_directory: Path) -> None:
    def port_of(name: str) -> int:
        return parse_dump(network.b.run("wg", "show", name, "dump").stdout).listen_port

    directory = shared_directory / "b"
    directory.mkdir()
    with WireguardGo(network.b, new_key_pair(), []) as judge, Bare(network.b, directory) as bare:
        assert port_of(judge.interface) > 0
        until(lambda: port_of(bare.name) > 0, 5, "a port")
        port = port_of(bare.name)
        bare.kill("host", signal.SIGKILL)
        bare.kill("conn", signal.SIGKILL)
        until(lambda: {("host", 0), ("conn", 0)} <= bare.held().keys() and is_ready(bare), 20, "both to be back")
        assert port_of(bare.name) == port
