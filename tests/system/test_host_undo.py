"""What was done to the host is undone exactly: after a kill, after a failed `up`, without a run folder, beside others'."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.host_lab import Tunnel, network_of, refused

from lab.namespaces import Namespace
from lab.stagewire import executable
from lab.wait import until
from lab.wg import is_ready
from stagewire.linux import privileges

pytestmark = pytest.mark.system

ALL = ["0.0.0.0/0", "::/0", "10.66.0.0/16", "fd66::/64"]


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    """A host on which others have rules, routes and tables of their own, some with our protocol's number."""
    with Namespace("hu") as namespace:
        namespace.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "far")
        for command in (
            "address add 192.0.2.1/24 dev e0",
            "link set e0 up",
            "link set far up",
            "route add default via 192.0.2.2",
            "rule add pref 100 fwmark 0x51 lookup 77",
            "rule add pref 101 from 192.0.2.1 lookup 78 protocol 87",
            "route add 10.5.0.0/16 via 192.0.2.2 table 77",
            "route add unreachable 10.67.0.0/16 proto 87 metric 4294967295",
            "route add blackhole 10.68.0.0/16 proto 87",
            "-6 route add unreachable fd68::/64",
        ):
            namespace.run("ip", *command.split())
        namespace.run("nft", "add", "table", "inet", "wg-quick-wg0")
        yield namespace


@pytest.fixture
def tunnel(host: Namespace, lab_directory: Path) -> Tunnel:
    return Tunnel(host, lab_directory, ALL, addresses=["10.9.0.1/24", "fd09::1/64"])


def test_down_removes_all_that_up_made(host: Namespace, tunnel: Tunnel) -> None:
    before = network_of(host)
    with tunnel.gateway:
        during = network_of(host)
        assert during["src_valid_mark"] == "1\n"
        assert {key for key in during if during[key] != before[key]} == {*before}
        ledger = tunnel.gateway.run_directory / "wg0/host/ledger"
        assert ledger.stat().st_uid == privileges.uid_of("host")
        assert ledger.stat().st_mode & 0o777 == 0o600
    assert network_of(host) == before


@pytest.mark.parametrize("then", ["down", "up"])
def test_after_everything_was_killed(host: Namespace, tunnel: Tunnel, then: str) -> None:
    before = network_of(host)
    with tunnel.gateway:
        tunnel.gateway.cut_off()
        assert "default dev wg0" in host.run("ip", "route", "show", "table", "51820").stdout
        if then == "up":
            tunnel.gateway.up()
            assert tunnel.gateway.status()["ready"]
    assert network_of(host) == before


def test_supervisord_told_to_end_undoes_it_and_may_start_again(
    host: Namespace, tunnel: Tunnel, lab_directory: Path
) -> None:
    before, hooks = network_of(host), lab_directory / "hooks"
    tunnel.text = tunnel.text.replace("[Peer]", f"PostDown = echo down >> {hooks}\n[Peer]")
    gateway = tunnel.gateway
    gateway._config_text = tunnel.text
    with gateway:
        during = network_of(host)
        for again in (True, False):
            os.kill(gateway.pid(), signal.SIGTERM)
            until(lambda: host.pids() == [], 10, "all to have ended")
            assert network_of(host) == before
            if again:
                configuration = gateway.run_directory / "wg0/supervisord.conf"
                host.run(executable("supervisord"), "-c", configuration, env=gateway.env)
                until(lambda: gateway.status()["ready"], 30, "it to be ready again")
                for each in ("-4 rule", "-6 rule", "links", "nft", "src_valid_mark"):  # the link has another number
                    assert network_of(host)[each] == during[each]
        assert not hooks.exists()
        gateway.down()
        assert hooks.read_text() == "down\n"
    assert network_of(host) == before


def test_a_failed_up_leaves_nothing(host: Namespace, tunnel: Tunnel) -> None:
    before = network_of(host)
    tunnel.text = tunnel.text.replace("[Peer]", "PostUp = false\n[Peer]")
    assert "PostUp" in refused(tunnel)
    assert network_of(host) == before


def test_without_the_run_folder_the_kernel_tells_what_is_ours(host: Namespace, tunnel: Tunnel) -> None:
    before = network_of(host)
    with tunnel.gateway:
        tunnel.gateway.cut_off()
        shutil.rmtree(tunnel.gateway.run_directory / "wg0")
        host.run(executable("host-service"), "--undo", env={**tunnel.gateway.env, "STAGEWIRE_INTERFACE": "wg0"})
    assert network_of(host) == before


def test_what_a_wiped_folder_said_is_known_to_those_at_work(host: Namespace, tunnel: Tunnel) -> None:
    before = network_of(host)
    with tunnel.gateway:
        pid = tunnel.gateway.held()[("host", 0)]
        shutil.rmtree(tunnel.gateway.run_directory / "wg0", ignore_errors=True)  # it is made again meanwhile
        until(lambda: tunnel.gateway.held().get(("host", 0), pid) != pid, 20, "another host-service")
        until(lambda: is_ready(tunnel.gateway), 30, "it to be ready again")
    assert network_of(host) == before


def test_down_from_another_network_namespace(host: Namespace, tunnel: Tunnel, lab_directory: Path) -> None:
    before = network_of(host)
    with Namespace("hv") as elsewhere:
        elsewhere.run("ip", "link", "set", "lo", "up")
        there = Tunnel(elsewhere, lab_directory, ALL, number=1)
        with there.gateway, tunnel.gateway:
            during = network_of(elsewhere)
            elsewhere.run(executable("stagewire"), "down", "wg0", env=tunnel.gateway.env)
            assert network_of(host) == before
            assert network_of(elsewhere) == during
            assert there.host()["put_back"] == []


def test_a_gateway_of_that_name_with_another_run_folder_is_left_alone(host: Namespace, lab_directory: Path) -> None:
    with Tunnel(host, lab_directory, ALL).gateway as standing:
        before = network_of(host)
        (lab_directory / "o").mkdir()
        said = refused(Tunnel(host, lab_directory / "o", ["10.70.0.0/16"], addresses=["10.71.0.1/24"]))
        assert said == "stagewire: wg0: interface wg0 is in use by another program; stop it or choose another name"
        assert network_of(host) == before
        assert standing.status()["ready"]


def test_a_link_of_that_name_that_is_not_ours_stays(host: Namespace, tunnel: Tunnel) -> None:
    with tunnel.gateway:
        tunnel.gateway.cut_off()
        host.run("ip", "link", "delete", "wg0")
        host.run("ip", "tuntap", "add", "dev", "wg0", "mode", "tun", "user", "1000")
        host.run("ip", "address", "add", "10.55.0.1/24", "dev", "wg0")
        tunnel.gateway.command("down", "wg0")
        assert "10.55.0.1/24" in host.run("ip", "address", "show", "wg0").stdout
        host.run("ip", "link", "delete", "wg0")
    assert "proto 87" not in "".join(line for line in host.run("ip", "rule").stdout.splitlines(True) if "51820" in line)


THEIRS = "nft 'add table inet {0}; add chain inet {0} theirs; add rule inet {0} theirs accept'".format("stagewire-wg0")


@pytest.fixture
def theirs(host: Namespace) -> Iterator[dict[str, Any]]:
    """A host on which another's nftables table has the name of ours."""
    host.run("sh", "-c", THEIRS)
    yield network_of(host)
    host.run("nft", "delete", "table", "inet", "stagewire-wg0")


def test_an_nftables_table_of_our_name_that_is_not_ours_is_named_and_stays(
    host: Namespace, tunnel: Tunnel, theirs: dict[str, Any]
) -> None:
    assert "nftables table inet stagewire-wg0 is not ours; remove it, or choose another name" in refused(tunnel)
    assert network_of(host) == theirs
    with Tunnel(host, tunnel.gateway.config_path.parent, ["10.66.0.0/16"]).gateway:
        pass  # needs none
    assert network_of(host) == theirs
    host.run(executable("host-service"), "--undo", env={**tunnel.gateway.env, "STAGEWIRE_INTERFACE": "wg0"})
    assert network_of(host) == theirs


@pytest.mark.parametrize("end", ["down", "kill", "wipe"])
def test_one_that_was_made_instead_of_ours_stays(host: Namespace, tunnel: Tunnel, end: str) -> None:
    before = network_of(host)
    with tunnel.gateway:
        host.run("sh", "-c", f"nft delete table inet stagewire-wg0; {THEIRS}")
        until(lambda: tunnel.host()["warnings"], 5, "the warning")
        assert "nftables table inet stagewire-wg0 is not ours" in tunnel.host()["warnings"][0]
        assert tunnel.gateway.status()["ready"]
        if end != "down":
            tunnel.gateway.cut_off()
        if end == "wipe":
            shutil.rmtree(tunnel.gateway.run_directory / "wg0")
            host.run(executable("host-service"), "--undo", env={**tunnel.gateway.env, "STAGEWIRE_INTERFACE": "wg0"})
    assert "accept" in host.run("nft", "list", "table", "inet", "stagewire-wg0").stdout
    host.run("nft", "delete", "table", "inet", "stagewire-wg0")
    assert network_of(host) == before


@pytest.mark.parametrize("folder", ["", "other"])
def test_the_sysctl_goes_back_with_the_last_that_needs_it(host: Namespace, lab_directory: Path, folder: str) -> None:
    """Whether or not the two have one folder for their run folders."""
    (lab_directory / folder).mkdir(exist_ok=True)
    first = Tunnel(host, lab_directory, ["0.0.0.0/0"])
    second = Tunnel(host, lab_directory / folder, ["0.0.0.0/0"], number=1)
    before = network_of(host)
    assert before["src_valid_mark"] == "0\n"
    with second.gateway:
        with first.gateway:
            second.gateway.down()
            assert network_of(host)["src_valid_mark"] == "1\n"
        assert network_of(host) == before


def test_a_value_that_the_operator_had_stays(host: Namespace, tunnel: Tunnel) -> None:
    host.sysctl("net.ipv4.conf.all.src_valid_mark", 1)
    try:
        with tunnel.gateway:
            pass
        assert network_of(host)["src_valid_mark"] == "1\n"
    finally:
        host.sysctl("net.ipv4.conf.all.src_valid_mark", 0)


def test_a_host_service_killed_in_the_middle_of_up(host: Namespace, tunnel: Tunnel) -> None:
    """Again and again, at whatever it is: what it began is finished or undone."""
    before = network_of(host)
    tunnel.gateway.write_config(tunnel.text)
    for directory in (tunnel.gateway.run_directory, tunnel.gateway.state_directory, tunnel.gateway.log_directory):
        directory.mkdir(exist_ok=True)
    starting = host.popen(executable("stagewire"), "up", tunnel.gateway.config_path, env=tunnel.gateway.env)
    try:
        ledger = tunnel.gateway.run_directory / "wg0/host/ledger"
        for lines in (1, 4, 8):
            until(lambda n=lines: _length(ledger) >= n or starting.poll() is not None, 30, "the work to go on")  # type: ignore[misc]
            pid = tunnel.gateway.held().get(("host", 0))
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        assert starting.wait(60) == 0
        # `up` may have seen all at work before the last of the kills.
        until(lambda: tunnel.gateway.status()["ready"], 10, "the gateway to be ready")
    finally:
        tunnel.gateway.close()
    assert network_of(host) == before


def _length(ledger: Path) -> int:
    try:
        return len(ledger.read_text().splitlines())
    except FileNotFoundError:
        return 0
