"""What was done to a host is undone where it was done, whichever network namespace a command is given in."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.system.host_lab import Tunnel, network_of

from lab.namespaces import Namespace, stop
from lab.stagewire import executable
from lab.wait import until
from stagewire_cli.done import DoneList

pytestmark = pytest.mark.system

ALL = ["0.0.0.0/0", "::/0", "10.66.0.0/16"]


@contextmanager
def host(label: str) -> Iterator[Namespace]:
    """A host with a way to the peer."""
    with Namespace(label) as made:
        made.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "far")
        made.run("ip", "address", "add", "192.0.2.254/24", "dev", "e0")
        made.run("ip", "link", "set", "e0", "up")
        yield made


@pytest.fixture
def here() -> Iterator[Namespace]:
    with host("here") as made:
        yield made


@pytest.fixture
def there() -> Iterator[Namespace]:
    with host("there") as made:
        yield made


@pytest.fixture
def tunnel(here: Namespace, lab_directory: Path) -> Tunnel:
    return Tunnel(here, lab_directory, ALL, addresses=["10.9.0.1/24"])


def given_in(namespace: Namespace, tunnel: Tunnel, *words: str | Path) -> str:
    """What `stagewire` says there, which has to succeed."""
    return namespace.run(executable("stagewire"), *words, timeout=60, env=tunnel.gateway.env).stderr


def links(namespace: Namespace) -> set[str]:
    return {each["ifname"] for each in json.loads(namespace.run("ip", "-json", "link").stdout)}


@pytest.mark.parametrize("then", ["down", "up"])
def test_after_everything_was_killed(here: Namespace, there: Namespace, tunnel: Tunnel, then: str) -> None:
    before, elsewhere = network_of(here), network_of(there)
    with tunnel.gateway:
        tunnel.gateway.cut_off()
        assert given_in(there, tunnel, then, tunnel.gateway.config_path if then == "up" else "wg0") == ""
        assert network_of(here) == before
        if then == "up":
            given_in(there, tunnel, "down", "wg0")
        assert network_of(there) == elsewhere


def test_a_namespace_without_a_name_is_found_by_a_process(here: Namespace, there: Namespace, tunnel: Tunnel) -> None:
    stays = here.popen("sleep", "infinity")
    inside = ("nsenter", f"--net=/proc/{stays.pid}/ns/net")
    with tunnel.gateway:
        tunnel.gateway.cut_off()
        subprocess.run(["ip", "netns", "delete", here.name], check=True)
        try:
            assert "51820" in there.run(*inside, "ip", "rule").stdout
            assert given_in(there, tunnel, "down", "wg0") == ""
            assert "51820" not in there.run(*inside, "ip", "rule").stdout
            assert there.run(*inside, "nft", "list", "ruleset").stdout == ""
            assert "wg0" not in there.run(*inside, "ip", "link").stdout
        finally:
            stop(stays)


def test_a_namespace_that_is_gone_is_said_and_another_with_its_inode_left_alone(
    here: Namespace, there: Namespace, tunnel: Tunnel
) -> None:
    with tunnel.gateway:
        tunnel.gateway.cut_off()
        done = DoneList(tunnel.gateway.run_directory / "wg0")
        noted = done.read()
        assert noted is not None
        assert noted.network is not None
        # As if the kernel had given its inode to the other namespace since.
        done.place(replace(noted.network, inode=there.call(Path("/proc/thread-self/ns/net").stat).st_ino))
        here.close()
        there.run("ip", "rule", "add", "pref", "5000", "fwmark", "0x77", "lookup", "77", "protocol", "87")
        other = network_of(there)
        said = given_in(there, tunnel, "down", "wg0")
        assert said == "stagewire: wg0: its network namespace is gone, with all that was made in it\n"
        assert network_of(there) == other


def test_an_interface_that_was_moved_away_goes_with_its_gateway(
    here: Namespace, there: Namespace, tunnel: Tunnel
) -> None:
    before, elsewhere = network_of(here), network_of(there)
    with tunnel.gateway:
        here.run("ip", "link", "set", "wg0", "netns", there.name, "name", "other")
        assert "other" in links(there)
        assert given_in(here, tunnel, "down", "wg0") == ""
        assert network_of(here) == before
        assert network_of(there) == elsewhere


def test_an_interface_that_was_renamed_goes_with_its_gateway(here: Namespace, tunnel: Tunnel) -> None:
    before = network_of(here)
    with tunnel.gateway:
        here.run("ip", "link", "set", "wg0", "down")
        here.run("ip", "link", "set", "wg0", "name", "other")
        assert given_in(here, tunnel, "down", "wg0") == ""
        assert network_of(here) == before


def test_one_that_was_moved_away_and_can_not_be_found_is_said(
    here: Namespace, there: Namespace, tunnel: Tunnel
) -> None:
    before = network_of(here)
    with tunnel.gateway:
        here.run("ip", "link", "set", "wg0", "netns", there.name)
        ledger = tunnel.gateway.run_directory / "wg0/host/ledger"
        until(lambda: "LinkMoved" in ledger.read_text(), 10, "host-service to have noticed")
        tunnel.gateway.cut_off()
        down = here.run(executable("stagewire"), "down", "wg0", timeout=60, env=tunnel.gateway.env, check=False)
        text = "wg0 was moved to another network namespace; `ip -n NAMESPACE link delete wg0` removes it there"
        assert (down.returncode, down.stderr) == (1, f"stagewire: wg0: not undone: {text}\n")
        assert network_of(here) == before
        there.run("ip", "link", "delete", "wg0")
