"""Two full tunnels on one host: each has its own table, mark, rules and nftables table, and nothing leaves in clear."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.host_lab import PORT, Tunnel, in_clear, network_of, set_mark

from lab.capture import Capture
from lab.namespaces import Topology
from lab.traffic import ping
from lab.wait import until
from lab.wireguard_go import SOCKETS

pytestmark = pytest.mark.system

BEYOND = ("203.0.113.1", "203.0.113.2")
"""Somewhere beyond each tunnel's other end."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("h2") as topology:
        yield topology


def tunnels(network: Topology, directory: Path, *lines: str) -> tuple[Tunnel, Tunnel]:
    """The second with `lines` of its own."""
    first = Tunnel(network.b, directory, ["0.0.0.0/0", "::/0"])
    return first, Tunnel(network.b, directory, ["0.0.0.0/0"], *lines, number=1)


@pytest.mark.parametrize("line", ["", "FwMark = 0x9999"])
def test_the_second_goes_through_the_first_and_leaves_no_trace(
    network: Topology, lab_directory: Path, line: str
) -> None:
    first, second = tunnels(network, lab_directory, line)
    wire = Capture(network.b, network.link_b.a_interface)
    before = network_of(network.b)
    number = 0x9999 if line else 51821
    ends = first.other_end(network.a, f"{BEYOND[0]}/32"), second.other_end(network.a, f"{BEYOND[1]}/32")
    with ends[0], ends[1], wire, first.gateway:
        assert first.host()["mark"] == 51820
        alone = network_of(network.b)
        until(lambda: ping(network.b, BEYOND[0]).received, 10, "the first tunnel")
        with second.gateway:
            assert (first.host()["mark"], second.host()["mark"]) == (51820, number)
            for name in (first.name, second.name):
                assert f"table inet stagewire-{name}" in network.b.run("nft", "list", "tables").stdout
            # What the second sends enters the first; what the first sends enters neither.
            get = network.b.run("ip", "route", "get", Topology.A4, "mark", str(number)).stdout
            assert f"dev {first.name}" in get
            get = network.b.run("ip", "route", "get", Topology.A4, "mark", "51820").stdout
            assert f"dev {network.link_b.a_interface}" in get
            assert f"dev {second.name}" in network.b.run("ip", "route", "get", BEYOND[0]).stdout
            until(lambda: ping(network.b, BEYOND[1]).received, 15, "the second, within the first")
            assert not wire.datagrams(PORT + 1), "the second's datagrams are inside the first's"
        assert network_of(network.b) == alone, "the second took its own away, and nothing else"
        assert ping(network.b, BEYOND[0]).received == 1
        assert first.gateway.status()["ready"]
    for address in (*BEYOND, first.ours, second.ours):
        assert in_clear(wire, address) == 0
    assert network_of(network.b) == before


def test_the_others_mark_is_refused_and_its_own_stays(network: Topology, lab_directory: Path) -> None:
    first, second = tunnels(network, lab_directory)
    with first.other_end(network.a), second.other_end(network.a, f"{BEYOND[1]}/32"), first.gateway, second.gateway:
        until(lambda: ping(network.b, BEYOND[1]).received, 15, "the second tunnel")
        before = network_of(network.b)
        assert set_mark(second.gateway, 51820) == errno.EBUSY
        assert network_of(network.b) == before
        assert ping(network.b, BEYOND[1]).received == 1
        assert set_mark(second.gateway, 0x9999) == 0
        assert ping(network.b, BEYOND[1]).received == 1
        assert (first.host()["mark"], second.host()["mark"]) == (51820, 0x9999)


def test_the_first_may_go_first(network: Topology, lab_directory: Path) -> None:
    first, second = tunnels(network, lab_directory)
    before = network_of(network.b)
    with first.other_end(network.a), second.other_end(network.a, f"{BEYOND[1]}/32"):
        wire = Capture(network.b, network.link_b.a_interface)
        with first.gateway, wire:
            second.gateway.__enter__()
            first.gateway.down()
            until(lambda: ping(network.b, BEYOND[1]).received, 15, "the second, now by the host's own way")
            assert second.gateway.status()["ready"]
            get = network.b.run("ip", "route", "get", Topology.A4, "mark", "51821").stdout
            assert f"dev {network.link_b.a_interface}" in get
            # The next one takes what is free, and its packets go through the one that is there.
            first.gateway.up()
            assert first.host()["mark"] == 51820
            get = network.b.run("ip", "route", "get", Topology.A4, "mark", "51820").stdout
            assert f"dev {second.name}" in get
            get = network.b.run("ip", "route", "get", Topology.A4, "mark", "51821").stdout
            assert f"dev {network.link_b.a_interface}" in get
            second.gateway.down()
    assert in_clear(wire, BEYOND[1]) == in_clear(wire, second.ours) == in_clear(wire, first.ours) == 0
    assert network_of(network.b) == before


def test_beside_wg_quick_each_keeps_its_own(network: Topology, lab_directory: Path) -> None:
    ours, _ = tunnels(network, lab_directory)
    before = network_of(network.b)
    theirs = Tunnel(network.b, lab_directory, ["0.0.0.0/0"], number=2, name=f"swk{os.getpid() % 100000}")
    theirs.gateway.write_config(theirs.text)
    env = {"WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go"}

    def wg_quick(command: str) -> None:
        network.b.run("wg-quick", command, theirs.gateway.config_path, env=env, timeout=30)

    try:
        wg_quick("up")
        alone = network_of(network.b)
        with ours.gateway:
            assert ours.host()["mark"] == 51821
            get = network.b.run("ip", "route", "get", Topology.A4, "mark", "51821").stdout
            assert f"dev {theirs.name}" in get
            get = network.b.run("ip", "route", "get", Topology.A4, "mark", "51820").stdout
            assert f"dev {network.link_b.a_interface}" in get
        assert network_of(network.b) == alone
        wg_quick("down")
        with ours.gateway:
            alone = network_of(network.b)
            wg_quick("up")
            way = ("ip", "route", "get", Topology.A4, "mark")
            past = f"dev {network.link_b.a_interface}"
            until(lambda: past in network.b.run(*way, "51820").stdout, 5, "ours to go past the newer one")
            assert f"dev {ours.name}" in network.b.run(*way, "51821").stdout
            wg_quick("down")
            until(lambda: network_of(network.b) == alone, 5, "no rule for it to be left")
    finally:
        network.b.run("wg-quick", "down", theirs.gateway.config_path, env=env, timeout=30, check=False)
        (SOCKETS / f"{theirs.name}.sock").unlink(missing_ok=True)
    after = network_of(network.b)
    after["src_valid_mark"] = before["src_valid_mark"]  # which wg-quick leaves on
    assert after == before
