"""Debian's wg-quick upon Stagewire; and what wg-quick does, done by `stagewire up`, `save` and `down` themselves."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lab.hub import PORT
from lab.namespaces import Topology
from lab.stagewire import Gateway, executable
from lab.traffic import ping
from lab.wait import until
from lab.wg import GATEWAY, Bare, unique_name
from lab.wireguard_go import SOCKETS, Peer, WireguardGo, new_key_pair, parse_dump

pytestmark = pytest.mark.system

KEYS, FAR = new_key_pair(), new_key_pair()
OURS, THEIRS = ("10.71.0.1", "fd71::1"), ("10.71.0.2", "fd71::2")


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("q") as topology:
        yield topology


@pytest.fixture
def tools(lab_directory: Path) -> Mapping[str, str]:
    """A PATH with our commands, and with a resolvconf(8) that writes down how it was called."""
    folder = lab_directory / "bin"
    folder.mkdir()
    record = lab_directory / "resolvconf"
    stand_in = folder / "resolvconf"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {record}\n[ "$1" = -a ] && cat >> {record}\nexit 0\n')
    stand_in.chmod(0o755)
    return {"PATH": f"{folder}:{executable('stagewire').parent}:{os.environ['PATH']}"}


def configuration(directory: Path, *lines: str) -> str:
    """Of a gateway with one peer; hooks write down what they were called with."""
    hooks = [f"{each} = echo {each} %i >> {directory}/hooks" for each in ("PreUp", "PostUp", "PreDown", "PostDown")]
    return "\n".join(
        [
            "# A gateway",
            "[Interface]",
            f"PrivateKey = {KEYS.private}  # its own",
            f"Address = {OURS[0]}/24, {OURS[1]}/64",
            f"ListenPort = {PORT}",
            "DNS = 192.0.2.53, 2001:db8::53, example.com",
            "MTU = 1400",
            *hooks,
            *lines,
            "",
            "[Peer]",
            "# the only one",
            f"PublicKey = {FAR.public}",
            f"AllowedIPs = {THEIRS[0]}/32, {THEIRS[1]}/128, 10.72.0.0/16",
            "",
        ]
    )


def far_end(network: Topology, family: int = 4) -> WireguardGo:
    to_us = Peer(KEYS.public, [f"{OURS[0]}/32", f"{OURS[1]}/128"], f"{GATEWAY[family]}:{PORT}")
    return WireguardGo(network.a, FAR, [f"{THEIRS[0]}/32", f"{THEIRS[1]}/128"], [to_us], PORT + 1)


RESOLVCONF = ["nameserver 192.0.2.53", "nameserver 2001:db8::53", "search example.com"]


def test_wg_quick(network: Topology, lab_directory: Path, tools: Mapping[str, str]) -> None:
    """up, save, strip with syncconf, down: as with wireguard-go, and nothing is left."""
    bare = Bare(network.b, lab_directory, env=tools)
    for folder in (bare.run_directory, bare.state_directory, bare.log_directory):
        folder.mkdir()
    bare.write_config(configuration(lab_directory))
    env = {**bare.env, "WG_QUICK_USERSPACE_IMPLEMENTATION": "stagewire"}

    def wg_quick(command: str) -> str:
        return network.b.run("wg-quick", command, bare.config_path, env=env, timeout=30).stdout

    try:
        wg_quick("up")
        assert "mtu 1400" in network.b.run("ip", "link", "show", bare.name).stdout
        assert "10.72.0.0/16" in network.b.run("ip", "route", "show", "dev", bare.name).stdout
        assert (lab_directory / "resolvconf").read_text().splitlines()[1:] == RESOLVCONF
        with far_end(network, 6):
            assert ping(network.a, OURS[1]).received == 1
        with far_end(network):
            for address in OURS:
                assert ping(network.a, address, size=1372 - 40).received == 1
            assert ping(network.b, THEIRS[1]).received == 1
            stripped = wg_quick("strip")
            assert "Address" not in stripped
            assert f"PublicKey = {FAR.public}" in stripped
            network.b.run("wg", "set", bare.name, "peer", FAR.public, "persistent-keepalive", "33")
            wg_quick("save")
            assert "PersistentKeepalive = 33" in bare.config_path.read_text()
            handshake = network.b.run("wg", "show", bare.name, "latest-handshakes").stdout
            network.b.run("wg", "syncconf", bare.name, "/dev/stdin", input=wg_quick("strip"))
            assert network.b.run("wg", "show", bare.name, "latest-handshakes").stdout == handshake
            assert ping(network.a, OURS[0]).received == 1
        wg_quick("down")
        until(bare.gone, 10, "it to be gone")
        hooks = (lab_directory / "hooks").read_text().splitlines()
        assert hooks == [f"{each} {bare.name}" for each in ("PreUp", "PostUp", "PreDown", "PostDown")]
    finally:
        bare.close()


def test_stagewire_up_save_and_down(network: Topology, lab_directory: Path, tools: Mapping[str, str]) -> None:
    """The same by our own commands: DNS, hooks, and what is in force written back, comments and all."""
    name = unique_name()
    text = configuration(lab_directory, "SaveConfig = true")
    gateway = Gateway(network.b, name, lab_directory, text, env={"STAGEWIRE_WG_DIR": str(SOCKETS), **tools})
    record, added = lab_directory / "resolvconf", new_key_pair().public

    def dump() -> str:
        return network.b.run("wg", "show", name, "dump").stdout

    with gateway:
        first, *lines = record.read_text().splitlines()
        assert first.split() == ["-a", name, "-m", "0", "-x"]
        assert lines == RESOLVCONF
        for family, address in ((6, OURS[1]), (4, OURS[0])):
            with far_end(network, family):
                assert ping(network.a, address).received == 1
        gateway.command("save", name)
        assert gateway.config_path.read_text().count(f"Endpoint = {Topology.A4}:{PORT + 1}") == 1
        saved = gateway.config_path.read_text().replace(f"Endpoint = {Topology.A4}:{PORT + 1}\n", "")
        assert saved == text, "nothing else was changed"
        network.b.run("wg", "set", name, "listen-port", str(PORT + 7), "peer", added, "allowed-ips", "10.73.0.0/16")
        network.b.run("wg", "set", name, "peer", FAR.public, "allowed-ips", "10.74.0.0/16", "persistent-keepalive", "5")
        gateway.command("save", name)
        saved = gateway.config_path.read_text()
        for kept in ("# A gateway", "# its own", "# the only one", "MTU = 1400", "PostUp", "SaveConfig = true"):
            assert kept in saved
        for new in (f"ListenPort = {PORT + 7}", added, "10.73.0.0/16", "10.74.0.0/16", "PersistentKeepalive = 5"):
            assert new in saved
        assert "10.72.0.0/16" not in saved
        assert gateway.config_path.stat().st_mode & 0o777 == 0o600
        # What is in force when it goes down is what it comes up with.
        network.b.run("wg", "set", name, "fwmark", "0x99", "peer", added, "remove")
        before = parse_dump(dump())
        gateway.down()
        assert record.read_text().splitlines()[-1].split() == ["-d", name, "-f"]
        assert added not in gateway.config_path.read_text()
        gateway.up()
        after = parse_dump(dump())
        assert (
            (after.public_key, after.listen_port) == (KEYS.public, PORT + 7) == (before.public_key, before.listen_port)
        )
        assert after.peers[FAR.public].allowed_ips == before.peers[FAR.public].allowed_ips == ("10.74.0.0/16",)
        assert set(after.peers) == {FAR.public}
        assert network.b.run("wg", "show", name, "fwmark").stdout == "0x99\n"
        gateway.down()
    hooks = (lab_directory / "hooks").read_text().split("\n")
    assert hooks == [*[f"{each} {name}" for each in ("PreUp", "PostUp", "PreDown", "PostDown")] * 2, ""]
    assert not (SOCKETS / f"{name}.sock").exists()


def test_without_the_private_key_in_the_answer(network: Topology, lab_directory: Path) -> None:
    """What `STAGEWIRE_SHOW_PRIVATE_KEY=0` costs: the public key in `wg show`, the key in `wg showconf`, and nothing else."""
    name = unique_name()
    env = {"STAGEWIRE_WG_DIR": str(SOCKETS), "STAGEWIRE_SHOW_PRIVATE_KEY": "0"}
    text = re.sub("DNS.*\n", "", configuration(lab_directory))
    with Gateway(network.b, name, lab_directory, text, env=env) as gateway, far_end(network):
        assert ping(network.a, OURS[0]).received == 1
        assert network.b.run("wg", "show", name, "public-key").stdout == "(none)\n"
        assert network.b.run("wg", "show", name, "private-key").stdout == "(none)\n"
        shown = network.b.run("wg", "showconf", name).stdout
        assert "PrivateKey" not in shown
        assert FAR.public in shown
        network.b.run("wg", "set", name, "peer", FAR.public, "persistent-keepalive", "9")
        gateway.command("save", name)
        saved = gateway.config_path.read_text()
        assert KEYS.private in saved
        assert "PersistentKeepalive = 9" in saved
        network.b.run("wg", "syncconf", name, "/dev/stdin", input=f"[Interface]\nPrivateKey = {KEYS.private}\n")
        assert network.b.run("wg", "show", name, "peers").stdout == ""
