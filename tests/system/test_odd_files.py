"""A file as real life has them, brought up: what is odd in it is said or taken, packets flow, and saving keeps its bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

import pytest

from lab.hub import PORT
from lab.namespaces import Topology
from lab.stagewire import Gateway
from lab.traffic import ping
from lab.wg import GATEWAY, unique_name
from lab.wireguard_go import SOCKETS, Peer, WireguardGo, new_key_pair
from stagewire.config import load

from .conftest import short_directory

pytestmark = pytest.mark.system

KEYS, FAR, OTHER = new_key_pair(), new_key_pair(), new_key_pair()
OURS, THEIRS = ("10.71.0.1", "fd71::1"), ("10.71.0.2", "fd71::2")

ODD = f"""\
\ufeff# B\udcfcro
[Interface]
Address = {OURS[0]}/255.255.255.0 , {OURS[1]}/64
ListenPort = 1
listenport = {PORT}
MTU =
DNS =
PreUp =\t
PostUp = wg set %i private-key KEYFILE; echo '\udce4' > /dev/null # caf\udce9
Table = main

[Peer]
Public Key = {FAR.public}
AllowedIPs = {THEIRS[0]} / 32
Endpoint = 192.0.2.1 : 1
[Peer]
# ourselves
PublicKey = {KEYS.public}
AllowedIPs = 10.75.0.0/16
[Peer]
PublicKey = {OTHER.public}
AllowedIPs = 10.72.0.0/16, 10.73.0.0/16

[Interface]
SaveConfig = false
[Peer]
PublicKey = {FAR.public}
AllowedIPs = {THEIRS[0]}/32, {THEIRS[1]}/64,10.72.0.0/16
# the end""".replace("\n", "\r\n")


@dataclass(frozen=True, slots=True)
class Odd:
    """The gateway that was brought up with it, and what `up` said."""

    network: Topology
    gateway: Gateway
    data: bytes
    said: str


@pytest.fixture(scope="module")
def odd() -> Iterator[Odd]:
    with Topology("odd") as network, short_directory() as directory:
        (directory / "key").write_text(KEYS.private)
        data = ODD.replace("KEYFILE", f"{directory}/key").encode("utf-8", "surrogateescape")
        gateway = Gateway(network.b, unique_name(), directory, "", env={"STAGEWIRE_WG_DIR": str(SOCKETS)})
        for folder in (gateway.run_directory, gateway.state_directory, gateway.log_directory):
            folder.mkdir()
        gateway.config_path.write_bytes(data)
        gateway.config_path.chmod(0o644)
        try:
            up = gateway.command("up", str(gateway.config_path), timeout=60)
            yield Odd(network, gateway, data, up.stderr)
        finally:
            gateway.close()


def test_what_is_odd_is_said_in_a_line_each(odd: Odd) -> None:
    path = odd.gateway.config_path
    lines = [line.removeprefix("stagewire: warning: ") for line in odd.said.splitlines()]
    assert [line.partition(": ")[0] for line in lines] == [str(path), *(f"{path}:{n}" for n in (2, 5, 24, 27, 28))]
    checked, strictly = (
        odd.gateway.command("check", *option, str(path), check=False) for option in ((), ("--strict",))
    )
    assert (checked.returncode, strictly.returncode) == (0, 1)
    assert len(checked.stderr.splitlines()) == len(lines)


def test_it_works_with_the_key_that_its_hook_sets(odd: Odd) -> None:
    """Over both families; the peer that is there twice has the prefixes of its later section."""
    name, namespace = odd.gateway.name, odd.network.b
    allowed = dict(line.split("\t") for line in namespace.run("wg", "show", name, "allowed-ips").stdout.splitlines())
    assert set(allowed[FAR.public].split()) == {f"{THEIRS[0]}/32", "fd71::/64", "10.72.0.0/16"}
    assert allowed[OTHER.public] == "10.73.0.0/16"
    assert KEYS.public not in allowed
    assert "10.72.0.0/16" in namespace.run("ip", "route", "show", "table", "main", "dev", name).stdout
    to_us = Peer(KEYS.public, [f"{OURS[0]}/32", f"{OURS[1]}/128"], f"{GATEWAY[4]}:{PORT}")
    with WireguardGo(odd.network.a, FAR, [f"{THEIRS[0]}/32", f"{THEIRS[1]}/128"], [to_us], PORT + 1):
        for address in OURS:
            assert ping(odd.network.a, address).received == 1


def test_saving_keeps_every_byte_of_what_it_does_not_change(odd: Odd) -> None:
    """Line ends, the byte order mark, Latin-1, what doesn't count.

    What was heard from elsewhere has another endpoint, and our own key is no peer any more.
    """
    path, name = odd.gateway.config_path, odd.gateway.name
    odd.network.b.run("wg", "set", name, "peer", OTHER.public, "persistent-keepalive", "33")
    odd.gateway.command("save", name)
    before, after = odd.data.split(b"\r\n"), path.read_bytes().split(b"\r\n")
    changes = [
        before[start:stop]
        for what, start, stop, _, _ in SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        if what in ("replace", "delete")
    ]
    ourselves = [b"[Peer]", b"# ourselves", f"PublicKey = {KEYS.public}".encode(), b"AllowedIPs = 10.75.0.0/16"]
    assert sorted(line for lines in changes for line in lines) == sorted([b"Endpoint = 192.0.2.1 : 1", *ourselves])
    config = load(path)
    assert {peer.persistent_keepalive for peer in config.peers} == {0, 33}
    assert len(config.peers) == 2
    odd.network.b.run("wg", "set", name, "peer", FAR.public, "remove")
    odd.gateway.command("save", name)
    assert FAR.public.encode() not in path.read_bytes()
    [other] = load(path).peers
    assert list(map(str, other.allowed_ips)) == ["10.73.0.0/16"]
