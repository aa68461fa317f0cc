"""What the tests of host-service share: gateways with one peer, and the host's network as it is."""

import json
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.capture import Capture
from lab.namespaces import Namespace, Topology
from lab.stagewire import Gateway
from lab.wireguard_go import KeyPair, Peer, WireguardGo, new_key_pair

PORT = 51820


class Tunnel:
    """A gateway in B, made by `number`, and what its one peer in A is told. Outer addresses are Topology's."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        allowed_ips: Sequence[str],
        *lines: str,
        number: int = 0,
        name: str = "",
        endpoint: str = Topology.A4,
        addresses: Sequence[str] = (),
        spares: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.number, self.name = number, name or f"wg{number}"
        self.keys, self.far = new_key_pair(), new_key_pair()
        self.ours, self.theirs = f"10.9.{number}.1", f"10.9.{number}.2"
        self.addresses = list(addresses) or [f"{self.ours}/24"]
        host = f"[{endpoint}]" if ":" in endpoint else endpoint
        self.peer = Peer(self.far.public, list(allowed_ips), f"{host}:{PORT + 100 + number}")
        interface = ["[Interface]", f"PrivateKey = {self.keys.private}", f"ListenPort = {PORT + number}"]
        self.text = "\n".join([*interface, f"Address = {', '.join(self.addresses)}", *lines, self.peer.section(), ""])
        self.gateway = Gateway(namespace, self.name, directory, self.text, workers=1, spares=spares, env=env)

    def other_end(self, namespace: Namespace, *inner: str, keys: KeyPair | None = None) -> WireguardGo:
        """The peer, with addresses of its own and `inner` ones beyond the tunnel."""
        to_us = Peer(self.keys.public, [f"{self.ours}/32"], None)
        addresses = [f"{self.theirs}/32", *inner]
        return WireguardGo(namespace, keys or self.far, addresses, [to_us], PORT + 100 + self.number)

    def host(self) -> dict[str, Any]:
        """What `status` says of host-service."""
        found = self.gateway.status()["host"]
        assert isinstance(found, dict)
        return found

    def counted(self, name: str) -> int:
        """A counter of host-service's."""
        services = self.gateway.status()["services"]
        return sum(each["counters"].get(name, 0) for each in services if each["service"] == "host-service")


def set_mark(gateway: Gateway, mark: int) -> int:
    """Does as `wg set` does; returns the errno."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(gateway.wg_directory / f"{gateway.name}.sock"))
        line.sendall(f"set=1\nfwmark={mark}\n\n".encode())
        line.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    return abs(int(answer.removeprefix(b"errno=")))


def refused(tunnel: Tunnel) -> str:
    """`stagewire up` fails; returns the one line that it says."""
    tunnel.gateway.write_config(tunnel.text)
    done = tunnel.gateway.command("up", str(tunnel.gateway.config_path), check=False, timeout=60)
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def network_of(namespace: Namespace) -> dict[str, Any]:
    """All that a tunnel changes on a host."""
    found: dict[str, Any] = {}
    for family in ("-4", "-6"):
        for what in (("route", "show", "table", "all"), ("rule",)):
            said = namespace.run("ip", family, *what, check=False).stdout
            found[" ".join((family, *what))] = sorted(line.strip() for line in said.splitlines())
    links = json.loads(namespace.run("ip", "-json", "address").stdout)
    found["links"] = {
        link["ifname"]: (link["flags"], sorted(str(each["local"]) for each in link["addr_info"])) for link in links
    }
    found["nft"] = namespace.run("nft", "list", "ruleset").stdout
    found["src_valid_mark"] = namespace.run("sysctl", "-n", "net.ipv4.conf.all.src_valid_mark").stdout
    return found


def reached(namespace: Namespace, address: str, timeout: float = 0.5) -> bool:
    """Whether an address answers; one that the host itself calls unreachable doesn't."""
    done = namespace.run("ping", "-n", "-c", "1", "-W", str(timeout), address, check=False)
    return done.returncode == 0


def mtu_of(namespace: Namespace, interface: str) -> int:
    """An interface's MTU."""
    found = re.search(r"mtu (\d+)", namespace.run("ip", "link", "show", interface).stdout)
    assert found is not None
    return int(found[1])


def in_clear(capture: Capture, address: str) -> int:
    """How many frames on the wire begin with a packet from or to an inner address."""
    packed = bytes(map(int, address.split("."))) if "." in address else None
    assert packed is not None
    return sum(
        frame.data[12:14] == b"\x08\x00" and packed in (frame.data[26:30], frame.data[30:34])
        for frame in capture.frames()
    )
