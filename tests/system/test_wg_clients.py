"""Other programs than `wg`: what wgctrl-go says and reads, and what exporters make of `wg show dump`, field by field.

No Debian package has wgctrl, so the client here does what its userspace half does: it looks for `*.sock`, asks `get=1`,
reads lines to the empty one without closing its half, and takes the answer to a set from a single read.
"""

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest

from lab.hub import Spoke
from lab.namespaces import Topology
from lab.traffic import ping
from lab.wg import GATEWAY, WgHub, hexadecimal
from lab.wireguard_go import SOCKETS, new_key_pair

pytestmark = pytest.mark.system

NO_KEY = "0" * 64
KEY = r"[A-Za-z0-9+/]{43}="
BOTH = {"psk": True, "keepalive": 25}


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("c") as topology:
        yield topology


@pytest.fixture(params=["up", "bare"])
def hub(request: pytest.FixtureRequest, both: dict[str, WgHub]) -> WgHub:
    return both[request.param]


@dataclass
class Seen:
    """A device as wgctrl has it, in the words of the protocol."""

    own: dict[str, str] = field(default_factory=dict)
    peers: list[dict[str, str]] = field(default_factory=list)
    allowed_ips: list[list[str]] = field(default_factory=list)


def get(path: Path) -> Seen:
    """Fails at whatever wgctrl fails at: a line that isn't one key and one value, an unknown key, an errno."""
    seen, ended = Seen(), False
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(10)
        line.connect(str(path))
        line.sendall(b"get=1\n\n")
        with line.makefile("r") as answer:
            for text in answer:
                if text == "\n":
                    break
                key, value = text.removesuffix("\n").split("=")
                if key == "errno":
                    assert value == "0"
                    ended = True
                elif key == "public_key":
                    seen.peers.append({key: value})
                    seen.allowed_ips.append([])
                elif key == "allowed_ip":
                    seen.allowed_ips[-1].append(str(ip_network(value)))
                elif seen.peers:
                    assert key in {
                        *(
                            "preshared_key",
                            "endpoint",
                            "last_handshake_time_sec",
                            "last_handshake_time_nsec",
                            "tx_bytes",
                        ),
                        *("rx_bytes", "persistent_keepalive_interval", "protocol_version"),
                    }
                    seen.peers[-1][key] = value
                else:
                    assert key in {"private_key", "listen_port", "fwmark"}
                    seen.own[key] = value
    assert ended
    return seen


def configure(path: Path, *lines: str) -> str:
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(10)
        line.connect(str(path))
        line.sendall("".join(f"{each}\n" for each in ("set=1", *lines, "")).encode())
        return line.recv(32).decode()


def test_a_client_that_finds_and_reads_as_wgctrl_does(network: Topology, both: dict[str, WgHub], hub: WgHub) -> None:
    found = {path.stem: path for path in SOCKETS.glob("*.sock")}
    assert {each.name for each in both.values()} <= set(found)
    four, six = hub.over(4), hub.over(6)
    with hub.wireguard_go(four, network.a, GATEWAY[4]), hub.wireguard_go(six, network.a, GATEWAY[6]):
        assert ping(network.a, four.gateway_inner[0]).received + ping(network.a, six.gateway_inner[1]).received == 2
        seen = get(found[hub.name])
    assert seen.own == {"private_key": hexadecimal(hub.keys.private), "listen_port": str(hub.port)}
    for spoke, place in ((four, f"{Topology.A4}:{four.port}"), (six, f"[{Topology.A6}]:{six.port}")):
        [at] = [at for at, peer in enumerate(seen.peers) if peer["public_key"] == hexadecimal(spoke.keys.public)]
        peer = seen.peers[at]
        assert peer["preshared_key"] == (hexadecimal(spoke.preshared_key) if spoke.psk else NO_KEY)
        assert peer["endpoint"] == place
        assert peer["persistent_keepalive_interval"] == str(spoke.keepalive or 0)
        assert peer["protocol_version"] == "1"
        assert int(peer["last_handshake_time_sec"]) > 1_600_000_000
        assert 0 <= int(peer["last_handshake_time_nsec"]) < 10**9
        assert seen.allowed_ips[at] == list(spoke.networks)


def test_a_client_that_sets_as_wgctrl_does(hub: WgHub) -> None:
    """Every key in its order, then an empty line; one read has all of the answer."""
    path, key = SOCKETS / f"{hub.name}.sock", hexadecimal(new_key_pair().public)
    shared, section = "ab" * 32, [f"public_key={key}"]
    made = [
        *section,
        *("update_only=true", f"preshared_key={shared}", "endpoint=[2001:db8::9]:7", "persistent_keepalive_interval=9"),
        *("replace_allowed_ips=true", "allowed_ip=10.90.0.0/16", "allowed_ip=fd90::/32"),
    ]
    own = [f"private_key={hexadecimal(hub.keys.private)}", f"listen_port={hub.port}", "fwmark=7"]
    assert configure(path, *own, *made) == "errno=0\n\n"
    assert key not in [peer["public_key"] for peer in get(path).peers], "update_only makes none"
    made.remove("update_only=true")
    assert configure(path, *made) == "errno=0\n\n"
    seen = get(path)
    assert seen.own["fwmark"] == "7"
    [at] = [at for at, peer in enumerate(seen.peers) if peer["public_key"] == key]
    peer = seen.peers[at]
    assert (peer["preshared_key"], peer["endpoint"]) == (shared, "[2001:db8::9]:7")
    assert (peer["persistent_keepalive_interval"], seen.allowed_ips[at]) == ("9", ["10.90.0.0/16", "fd90::/32"])
    assert configure(path, "fwmark=0", *section, "remove=true") == "errno=0\n\n"
    assert len(get(path).peers) == 2
    assert configure(path, "listen_port=no") == "errno=-22\n\n"


def test_dump_field_by_field(network: Topology, both: dict[str, WgHub], hub: WgHub) -> None:
    """As prometheus-wireguard-exporter and many scripts cut it: by tabs, the interface first, then a line for each peer."""
    four, six = hub.over(4), hub.over(6)
    with hub.wireguard_go(four, network.a, GATEWAY[4]):
        assert ping(network.a, four.gateway_inner[0]).received == 1
        hub.set("fwmark", "0x51")
        one = [line.split("\t") for line in hub.show("dump").splitlines()]
        every = [line.split("\t") for line in hub.wg("show", "all", "dump").stdout.splitlines()]
        hub.set("fwmark", "off")
    assert one[0] == [hub.keys.private, hub.keys.public, str(hub.port), "0x51"]
    peers = {line[0]: line[1:] for line in one[1:]}
    assert set(peers) == {four.keys.public, six.keys.public}
    for spoke, host in ((four, Topology.A4), (six, f"[{Topology.A6}]")):
        shared, endpoint, allowed, handshake, received, sent, keepalive = peers[spoke.keys.public]
        assert shared == (spoke.preshared_key if spoke.psk else "(none)")
        assert endpoint == f"{host}:{spoke.port}"
        assert allowed == ",".join(spoke.networks)
        assert all(number.isdecimal() for number in (handshake, received, sent))
        assert keepalive == (str(spoke.keepalive) if spoke.keepalive else "off")
    assert int(peers[four.keys.public][3]) > 1_600_000_000
    # All interfaces: the same with the interface's name before it; the first of each has four fields more, a peer's eight.
    for each in both.values():
        lines = [line[1:] for line in every if line[0] == each.name]
        assert [len(line) for line in lines] == [4, 8, 8]
        assert all(re.fullmatch(KEY, line[0]) for line in lines)
    assert next(line for line in every if line[0] == hub.name)[1:] == one[0]


def test_an_interface_without_anything(network: Topology, hub: WgHub) -> None:
    """What stands where there is nothing: `(none)`, `off`, 0."""
    bare = Spoke(50).keys.public
    hub.set("peer", bare)
    [line] = [line for line in hub.show("dump").splitlines() if line.startswith(bare)]
    assert line.split("\t")[1:] == ["(none)", "(none)", "(none)", "0", "0", "0", "off"]
    hub.set("peer", bare, "remove")
    hub.set("private-key", "/dev/null")
    assert hub.show("dump").splitlines()[0].split("\t") == ["(none)", "(none)", str(hub.port), "off"]
    hub.set("private-key", "/dev/stdin", data=hub.keys.private)
