"""The UDP sockets are host-service's to open and conn-service's to use: who of the two dies or is new, packets go on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.pulse import Pulse
from lab.wait import until
from lab.wg import GATEWAY, WgHub, is_ready
from stagewire.control.socket_door import TUNNEL
from stagewire.linux import own_pages
from stagewire.process import slots

pytestmark = pytest.mark.system

SPOKE = Spoke(1, Topology.A4)
PRIVILEGED = 443


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("hs") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    with WgHub(network.b, shared_directory, {"one": SPOKE}, workers=1, spares=1, port=PRIVILEGED) as made:
        yield made


def contenders(hub: WgHub, stage: str) -> set[int]:
    return {*slots.contenders(hub.gateway.run_directory / hub.name, stage)}


def both_hold_the_sockets(hub: WgHub) -> bool:
    """Tells whether the death of either of the two leaves the sockets with the other."""
    listed = hub.namespace.run("ss", "-Hulnp", "sport", "=", f":{hub.dump().listen_port}").stdout.splitlines()
    held = hub.gateway.held()  # a place may have no holder for a moment
    pids = {f"pid={held.get((stage, 0))}," for stage in ("host", "conn")}
    return bool(listed) and all(pid in line for line in listed for pid in pids)


def kill(hub: WgHub, stages: tuple[str, ...], *, spares_too: bool) -> None:
    """Returns when all is ready again, with others in their places, a spare for each, and the sockets in both hands."""
    before = (
        {pid for stage in stages for pid in contenders(hub, stage)} if spares_too else {*map(hub.gateway.pid, stages)}
    )
    for pid in before:
        hub.gateway.namespace.run("kill", "-KILL", str(pid))

    def back() -> bool:
        here = {stage: contenders(hub, stage) for stage in stages}
        renewed = all(len(pids) == 2 and not pids & before for pids in here.values())
        return renewed and is_ready(hub.gateway) and both_hold_the_sockets(hub)

    until(back, 20, f"{stages} to be back")


def test_conn_service_can_change_nothing_of_the_host(hub: WgHub) -> None:
    for pid in contenders(hub, "conn") & {hub.gateway.pid("conn")}:
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        held = {line.split()[0]: int(line.split()[1], 16) for line in status if line.startswith("Cap")}
        assert held["CapPrm:"] == held["CapEff:"] == held["CapInh:"] == 0


@pytest.mark.parametrize(
    ("stages", "spares_too", "lost"),
    [
        (("host",), False, 0),
        (("host",), True, 0),
        (("conn",), False, 2),
        # Nobody reads while supervisord starts another, and what has come waits in sockets that host-service has too.
        (("conn",), True, None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_death_costs_what_it_may(
    network: Topology, hub: WgHub, stages: tuple[str, ...], spares_too: bool, lost: int | None
) -> None:
    with hub.wireguard_go(SPOKE, network.a, GATEWAY[4], keepalive=5):
        destinations = [SPOKE.gateway_inner[0]]
        with (
            Pulse(network.a, network.b, destinations, rate=300) as pulse,
            Pulse(network.b, network.a, [SPOKE.inner[0]], rate=300) as back,
        ):
            kill(hub, stages, spares_too=spares_too)
            reports = pulse.finish(), back.finish()
        if lost is not None:
            hub.expect_whole(*reports, lost=lost)
        assert all(report.received and not report.duplicates for report in reports)
        assert hub.dump().listen_port == PRIVILEGED


def test_sockets_outlive_each_of_the_two(hub: WgHub) -> None:
    """They are the same ones after all of host-service, or all of conn-service, is new."""

    def inodes() -> list[str]:
        listed = hub.namespace.run("ss", "-Hulne", f"sport = :{PRIVILEGED}").stdout
        return sorted(word for word in listed.split() if word.startswith("ino:"))

    before = inodes()
    assert len(before) == len(TUNNEL)
    for stage in ("host", "conn", "host"):
        kill(hub, (stage,), spares_too=True)
        assert inodes() == before


def shared_pages(hub: WgHub, stage: str) -> int:
    """How many pages a stage's holder has of its own that its spare still shares with other processes."""
    holder = hub.gateway.pid(stage)
    (spare,) = contenders(hub, stage) - {holder}
    with Path(f"/proc/{holder}/pagemap").open("rb") as has, Path(f"/proc/{spare}/pagemap").open("rb") as lacks:
        return sum(
            len(own_pages.lacking(lacks.fileno(), has.fileno(), begin, end, of_file=of_file))
            for begin, end, of_file in own_pages.writable(Path(f"/proc/{spare}/maps"))
        )


@pytest.mark.parametrize("stage", ["conn", "tun"])
def test_a_spare_has_the_pages_that_its_holder_has_written_to(network: Topology, hub: WgHub, stage: str) -> None:
    """Else it would copy a thousand of them while packets wait."""
    with (
        hub.wireguard_go(SPOKE, network.a, GATEWAY[4]),
        Pulse(network.a, network.b, [SPOKE.gateway_inner[0]], rate=300) as pulse,
    ):
        until(lambda: shared_pages(hub, stage) < 100, 20, "the spare to have its pages")
        pulse.finish()


def test_port_and_mark_are_changed_while_packets_flow(network: Topology, hub: WgHub) -> None:
    with network.b.udp_socket("0.0.0.0", 4321), hub.wireguard_go(SPOKE, network.a, GATEWAY[4]) as peer:
        with Pulse(network.a, network.b, [SPOKE.gateway_inner[0]], rate=200) as pulse:
            refused = hub.wg("set", hub.name, "listen-port", "4321", check=False)
            assert refused.returncode != 0
            assert "Address already in use" in refused.stderr
            hub.set("fwmark", "0x31")
            hub.expect_whole(pulse.finish())
        assert hub.dump().listen_port == PRIVILEGED
        kill(hub, ("host",), spares_too=True)
        kill(hub, ("conn",), spares_too=True)
        marks = hub.namespace.run("ss", "-Hulnm", "-e", f"sport = :{PRIVILEGED}").stdout
        assert marks.count("fwmark:0x31") == len(TUNNEL)
        hub.set("listen-port", "4322", "fwmark", "0")
        peer.set("peer", hub.keys.public, "endpoint", f"{GATEWAY[4]}:4322")
        with Pulse(network.a, network.b, [SPOKE.gateway_inner[0]], rate=200) as pulse:
            kill(hub, ("host",), spares_too=False)
            hub.expect_whole(pulse.finish())
        hub.set("listen-port", str(PRIVILEGED))
