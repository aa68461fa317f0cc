"""Networks, ports and files that an operator can't have meant: refused in one line, or taken with a warning."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.services.commands import folders, stagewire
from tests.services.test_peer_commands import PLACE, Files, values

from stagewire import config

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="these commands need root")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.run("init", str(made.conf), *PLACE)
    return made


def warned(files: Files, *words: str) -> str:
    done = stagewire("peer", *words, "-i", str(files.conf), env=folders(files.folder))
    assert done.returncode == 0, done.stderr
    return "".join(f"{line}\n" for line in done.stderr.splitlines() if line.startswith("stagewire: warning: "))


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("0.0.0.0/0", "holds 127.0.0.0/8, which is this host's own loopback"),
        ("::/0", "holds ::1/128"),
        ("127.5.0.0/16", "is this host's own loopback"),
        ("224.0.0.0/24", "is multicast"),
        ("ff05::/64", "is multicast"),
        ("169.254.7.0/24", "is link-local"),
        ("fe80::/64", "is link-local"),
        ("0.0.0.0/24", "is no address of a host"),
        ("240.0.0.0/24", "is reserved"),
        ("10.8.0.2/31", "has no room for clients"),
        ("10.8.0.2/32", "has no room for clients"),
        ("fd00::1/127", "has no room for clients"),
    ],
)
def test_init_takes_no_network_that_no_tunnel_can_have(tmp_path: Path, network: str, why: str) -> None:
    done = stagewire("init", tmp_path / "wg0.conf", *PLACE[:3], network, env=folders(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert why in done.stderr
    assert list(tmp_path.glob("*.conf")) == []


@pytest.mark.parametrize(
    ("endpoint", "network", "said"),
    [
        (
            "vpn.example.org",
            "10.9.0.7/24",
            "10.9.0.7/24 is taken as 10.9.0.0/24, and the gateway's own address is 10.9.0.1",
        ),
        ("vpn.example.org", "8.8.8.0/24", "8.8.8.0/24 belongs to hosts of the internet"),
        ("127.0.0.1", "10.8.0.0/24", "127.0.0.1 is this host's own loopback"),
        ("192.168.7.9", "10.8.0.0/24", "192.168.7.9 is a private address"),
        ("[fd07::1]:5", "10.8.0.0/24", "fd07::1 is a private address"),
        ("9.9.9.9", "10.8.0.0/24, fd08:9::/64", ""),
        ("vpn.example.org", "10.9.0.1/24", ""),
    ],
)
def test_init_says_what_may_surprise(tmp_path: Path, endpoint: str, network: str, said: str) -> None:
    done = stagewire("init", tmp_path / "wg0.conf", "--endpoint", endpoint, "--network", network, env=folders(tmp_path))
    assert done.returncode == 0
    assert said in done.stderr
    assert done.stderr.startswith("stagewire: warning: ") == bool(said)


@pytest.mark.parametrize("endpoint", ["0.0.0.0", "[::]:51820", "224.0.0.1", "ff02::1"])
def test_init_takes_no_endpoint_that_nobody_can_call(tmp_path: Path, endpoint: str) -> None:
    done = stagewire("init", tmp_path / "wg0.conf", "--endpoint", endpoint, *PLACE[2:], env=folders(tmp_path))
    assert done.returncode == 1
    assert "is no address that a client can call" in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--address", "10.8.0.0"), "10.8.0.0/32 is the address of the network 10.8.0.0/24 itself"),
        (("--address", "10.8.0.255"), "10.8.0.255/32 is the broadcast address of the network 10.8.0.0/24"),
        (("--address", "fd00:8::"), "fd00:8::/128 is the address of the network fd00:8::/64 itself"),
        (("--network", "127.0.0.0/8"), "127.0.0.0/8 is this host's own loopback"),
        (("--network", "::1/128"), "::1/128 is this host's own loopback"),
        (("--network", "0.0.0.0/32"), "0.0.0.0/32 is no address of a host"),
        (("--network", "255.255.255.255"), "is reserved"),
    ],
)
def test_no_peer_gets_what_no_host_can_have(files: Files, words: tuple[str, str], why: str) -> None:
    assert why in files.refused("peer", "add", "a", *words, "-i", str(files.conf))
    files.peer("add", "a")
    assert why in files.refused("peer", "set", "a", "--allowed-ips", f"10.8.0.2, {words[1]}", "-i", str(files.conf))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("0.0.0.0/0", "0.0.0.0/0 of peer a makes this gateway send all its own packets to the peer"),
        ("10.8.0.0/24", "holds the tunnel's own network 10.8.0.0/24"),
        ("10.0.0.0/8", "holds the tunnel's own network 10.8.0.0/24"),
        ("10.8.0.64/31", "lies in the tunnel's own network 10.8.0.0/24"),
        ("224.0.0.5/32", "is multicast"),
        ("fe80::/64", "is link-local"),
    ],
)
def test_a_prefix_that_may_surprise_is_taken_with_a_warning(files: Files, network: str, said: str) -> None:
    assert said in warned(files, "add", "a", "--network", network)
    assert warned(files, "set", "a", "--mtu", "1300") == ""
    assert said in warned(files, "add", "b") + warned(files, "set", "a", "--allowed-ips", "10.8.0.2") + warned(
        files, "set", "a", "--allowed-ips", f"10.8.0.2, {network}"
    )
    assert warned(files, "add", "c", "--network", "192.168.7.0/24") == ""


def test_what_exclude_takes_away_is_said(files: Files) -> None:
    add = ("peer", "add", "a", "--full-tunnel", "--exclude")
    assert "leaves nothing of IPv4" in files.refused(*add, "0.0.0.0/0", "-i", str(files.conf))
    assert "leaves nothing of IPv6" in files.refused(*add, "::/0", "-i", str(files.conf))
    said = warned(files, "add", "a", "--full-tunnel", "--exclude", "10.0.0.0/8", "--dns", "10.9.0.1, 9.9.9.9")
    assert "--exclude takes in 10.8.0.1, the gateway's own address" in said
    assert "--exclude takes in 10.9.0.1, the client's DNS server" in said
    assert "9.9.9.9" not in said
    assert "exclude" not in warned(files, "add", "b", "--full-tunnel", "--exclude", "192.168.0.0/16")


def test_an_empty_value_removes_each_setting(files: Files) -> None:
    bare = files.peer("add", "a") and files.peer("show", "a")
    given = {
        "--dns": "10.8.0.1", "--mtu": "1300", "--keepalive": "25", "--expires": "30d", "--rate": "1M", "--quota": "5G",
        "--endpoint": "a.example:1", "--group": "staff", "--allow": "any", "--forward": "tcp 80 80",
    }  # fmt: skip
    files.peer("set", "a", *(word for pair in given.items() for word in pair))
    assert files.peer("show", "a") != bare
    for option in given:
        files.peer("set", "a", option, "")
    assert files.peer("show", "a") == bare


def test_warnings_name_the_file_where_it_lies(files: Files) -> None:
    assert warned(files, "add", "a", "--group", "staff").startswith(f"stagewire: warning: {files.conf}:")
    assert warned(files, "set", "a", "--group", "guests").startswith(f"stagewire: warning: {files.conf}:")


def test_a_port_on_which_this_host_listens_is_said(files: Files) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server, socket.create_server(("127.0.0.1", 0)) as inner:
        port, hidden = server.getsockname()[1], inner.getsockname()[1]
        said = warned(files, "add", "a", "--forward", f"tcp {port} 80", "--forward", f"tcp {hidden} 81")
        assert f"a program of this host listens on TCP port {port}" in said
        assert str(hidden) not in said
        assert warned(files, "set", "a", "--rate", "1M") == ""
        assert warned(files, "set", "a", "--forward", "") == ""
        assert f"TCP port {port}" in warned(files, "set", "a", "--forward", f"tcp {port} 80")


def test_a_killed_command_leaves_no_file(files: Files) -> None:
    out = files.folder / "phone.conf"
    code = (
        "import os, signal, sys; from stagewire_cli import client_config; from stagewire_cli.__main__ import main;"
        "client_config.text = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        "sys.argv = ['stagewire', 'peer', 'add', 'phone', '--output', sys.argv[1], '-i', sys.argv[2]]; main()"
    )
    before = {*files.folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), str(files.conf)], env=os.environ | folders(files.folder), check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert files.names() == ["phone"], "it was killed after the change"
    assert {*files.folder.iterdir()} - before <= {files.folder / "state", files.folder / "run"}


def test_many_configurations_are_written_at_once(files: Files) -> None:
    table, out = files.folder / "new.csv", files.folder / "out"
    out.mkdir()
    files.conf.write_text(files.conf.read_text().replace("10.8.0.1/24", "10.8.0.1/20"))
    table.write_text("\n".join(["name", *(f"p{number}" for number in range(1500))]))
    files.run("peer", "add", "--from", str(table), "--output", str(out), "-i", str(files.conf))
    assert len(list(out.iterdir())) == 1500
    assert config.load(files.conf).peers[1499].name == "p1499"
    assert values((out / "p1499.conf").read_text())["PrivateKey"]
