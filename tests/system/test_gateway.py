"""A gateway that routes, masquerades, restricts and forwards by itself: two clients, a world that knows no way to them.

The gateway's host has Debian's nftables and iptables-nft rules, each with a FORWARD policy of drop.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from tests.system.host_lab import network_of

from lab.namespaces import Namespace, veth
from lab.stagewire import Gateway
from lab.traffic import ping
from lab.wait import until
from lab.wireguard_go import Peer, WireguardGo, new_key_pair

pytestmark = pytest.mark.system

PORT = 51820
WORLD = {4: "203.0.113.1", 6: "2001:db8:f::1"}
OURS = {4: "203.0.113.254", 6: "2001:db8:f::fe"}
"""The gateway's addresses towards the world."""
INNER = {"one": {4: "10.66.0.2", 6: "fd66::2"}, "two": {4: "10.66.0.3", 6: "fd66::3"}}
FAMILIES = (4, 6)
OPENED = "# stagewire: Exit = on\n# stagewire: Firewall = open"
DEBIAN = """table inet filter {
    chain input { type filter hook input priority filter; }
    chain forward { type filter hook forward priority filter; policy drop; }
    chain output { type filter hook output priority filter; }
}"""


def listening(namespace: Namespace, port: int) -> socket.socket:
    """A listener of both families."""
    return namespace.call(lambda: socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True))


class Server:
    """Tells each caller at some TCP ports of a namespace the caller's address, and then echoes."""

    def __init__(self, namespace: Namespace, *ports: int) -> None:
        self._listeners = [listening(namespace, port) for port in ports]
        for each in self._listeners:
            threading.Thread(target=self._serve, args=(each,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, place = listener.accept()
                threading.Thread(target=self._answer, args=(connection, place[0]), daemon=True).start()

    @staticmethod
    def _answer(connection: socket.socket, address: str) -> None:
        with suppress(OSError), connection:
            connection.sendall(address.removeprefix("::ffff:").encode() + b"\n")
            while data := connection.recv(4096):
                connection.sendall(data)

    def close(self) -> None:
        for each in self._listeners:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def called(namespace: Namespace, address: str, port: int, timeout: float = 5) -> socket.socket | None:
    """A connection from a namespace; None if none comes about."""

    def connect() -> socket.socket | None:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError:
            return None

    return namespace.call(connect)


def seen_as(namespace: Namespace, address: str, port: int, timeout: float = 5) -> str | None:
    """By which address a server sees a caller; None if no connection comes about."""
    connection = called(namespace, address, port, timeout)
    if connection is None:
        return None
    with connection, suppress(OSError):
        return connection.recv(100).decode().strip()
    return None


def refused(namespace: Namespace, address: str, port: int) -> bool:
    """Whether no connection to a port comes about; others have just come about in less time."""
    return seen_as(namespace, address, port, 0.8) is None


class House:
    """The gateway, its clients and the world."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self.host, self.world = (stack.enter_context(Namespace(f"gw-{each}")) for each in ("host", "world"))
        self.clients = {name: stack.enter_context(Namespace(f"gw-{name}")) for name in INNER}
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.host.sysctl(name, 0)
        veth(self.host, self.world, [f"{OURS[4]}/24", f"{OURS[6]}/64"], [f"{WORLD[4]}/24", f"{WORLD[6]}/64"])
        for program in ("iptables-nft", "ip6tables-nft"):
            self.host.run(program, "-P", "FORWARD", "DROP")
        self.host.run("nft", DEBIAN)
        self.before = self.state()
        self.keys = new_key_pair()
        self.sections: dict[str, str] = {}
        self.gateway = Gateway(self.host, "wg0", directory, "", workers=1)
        for number, (name, inner) in enumerate(INNER.items(), start=1):
            keys = new_key_pair()
            allowed = [f"{inner[4]}/32", f"{inner[6]}/128"]
            self.sections[name] = Peer(keys.public, allowed, name=name).section()
            veth(self.clients[name], self.host, [f"192.0.2.{4 * number + 1}/30"], [f"192.0.2.{4 * number + 2}/30"])
            everything = ["10.66.0.0/24", "fd66::/64", "203.0.113.0/24", "2001:db8:f::/64"]
            to_us = Peer(self.keys.public, everything, f"192.0.2.{4 * number + 2}:{PORT}")
            self.last = stack.enter_context(WireguardGo(self.clients[name], keys, allowed, [to_us], None))
        self.outer = stack.enter_context(closing(Server(self.world, 80, 443)))
        stack.enter_context(closing(Server(self.clients["one"], 80)))
        self.reloads = False
        stack.callback(self.gateway.close)

    def state(self) -> dict[str, object]:
        said = {
            name: self.host.run("sysctl", "-n", name).stdout
            for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
        }
        found = network_of(self.host)
        return {**said, "nft": found["nft"], "-4 rule": found["-4 rule"], "-6 rule": found["-6 rule"]}

    def has(self, interface: str, **peers: str) -> str:
        """Brings the gateway up with these lines, or applies them; returns what the command warns of."""
        lines = ["[Interface]", f"PrivateKey = {self.keys.private}", f"ListenPort = {PORT}"]
        lines += ["Address = 10.66.0.1/24, fd66::1/64", interface]
        lines += [f"{section}\n{peers.get(name, '')}" for name, section in self.sections.items()]
        self.gateway.write_config("\n".join([*lines, ""]))
        command, first, self.reloads = "reload" if self.reloads else "up", not self.reloads, True
        said = self.gateway.command(command, str(self.gateway.config_path), timeout=60).stderr
        if first:
            self.calls_from_clients()
        return said

    def down(self) -> None:
        self.gateway.command("down", "wg0", timeout=60)
        self.reloads = False

    def calls_from_clients(self) -> None:
        """Lets each client call, so that the gateway knows where it is: the file names no endpoints."""
        until(self._all_are_known, 20, "all to have called")

    def _all_are_known(self) -> bool:
        for client in self.clients.values():
            ping(client, "10.66.0.1", timeout=0.2)  # whether the rules let it pass or not
        return all(each["endpoint"] for each in self.gateway.status()["peers"])

    def denied(self, name: str) -> list[str]:
        """Returns the newest destination at which the rules have dropped packets of a peer, as `status` has it."""
        [peer] = [each for each in self.gateway.status()["peers"] if each["name"] == name]
        return [each["example"]["address"] for each in peer["reasons"] if each["reason"] == "access_denied"]

    def why(self, *words: str) -> dict[str, object]:
        found = json.loads(self.gateway.command("why", "--json", "--no-try", *words, "wg0", check=False).stdout)
        return {each["id"]: each for each in found["findings"]}


@pytest.fixture(scope="module")
def house(shared_directory: Path) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(stack, shared_directory)


@pytest.fixture
def clients(house: House) -> dict[str, Namespace]:
    return house.clients


def test_an_exit_names_what_keeps_its_packets_and_passes_once_it_may_open_it(
    house: House, clients: dict[str, Namespace]
) -> None:
    said = house.has("# stagewire: Exit = on")
    for command in (
        "iptables -I FORWARD -i wg0 -j ACCEPT",
        "ip6tables -I FORWARD -o wg0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "nft insert rule inet filter forward iifname wg0 accept", "`# stagewire: Firewall = open`",
    ):  # fmt: skip
        assert command in said
    assert refused(clients["one"], WORLD[4], 80)
    assert house.has(OPENED) == ""
    for client in clients.values():
        for family in FAMILIES:
            assert seen_as(client, WORLD[family], 80) == OURS[family]
    assert house.gateway.status()["warnings"] == []


OWN = """table inet own {
    chain mine { ct state established,related accept; iifname "lan0" accept; counter drop; }
    chain forw { type filter hook forward priority filter + 5; jump mine; }
    chain forw6 { type filter hook forward priority filter + 6; meta nfproto ipv6 drop; }
}""".replace("; }", "\n}").replace("; ", "\n")


def test_a_drop_in_a_chain_of_its_own_and_for_one_family_is_opened_and_left_as_it_was(
    house: House, clients: dict[str, Namespace]
) -> None:
    house.has("# stagewire: Isolation = on")
    house.host.run("nft", "-f", "-", input=f"{OWN}\n")
    try:
        before = house.host.run("nft", "-s", "list", "ruleset").stdout.partition("table inet own")[2]
        said = house.has("# stagewire: Exit = on")
        assert "chain forw of table inet own and chain forw6 of table inet own drop" in said
        assert ", then 3 more, which `status` names, or write" in said
        assert refused(clients["one"], WORLD[6], 80)
        assert house.has(OPENED) == ""
        for family in FAMILIES:
            assert seen_as(clients["one"], WORLD[family], 80) == OURS[family]
        house.has("# stagewire: Isolation = on")
        assert house.host.run("nft", "-s", "list", "table", "inet", "own").stdout.partition("own")[2] in before
    finally:
        house.host.run("nft", "delete", "table", "inet", "own")


def test_rules_of_iptables_legacy_are_seen_though_nftables_does_not_show_them(
    house: House, clients: dict[str, Namespace]
) -> None:
    house.has(OPENED)
    house.host.run("iptables-legacy", "-P", "FORWARD", "DROP")
    try:
        assert refused(clients["one"], WORLD[4], 80)
        said = house.has(f"{OPENED}\n# stagewire: Isolation = on")
        for way in ("-i wg0", "-o wg0 -m conntrack --ctstate RELATED,ESTABLISHED"):
            command = f"iptables-legacy -I FORWARD {way} -j ACCEPT"
            assert f"`{command}`" in said
            assert f"`{command}`" in house.gateway.command("doctor", "wg0", check=False).stdout
            house.host.run(*command.split())
        assert seen_as(clients["one"], WORLD[4], 80) == OURS[4]
        assert house.has(OPENED) == ""
    finally:
        house.host.run("iptables-legacy", "-P", "FORWARD", "ACCEPT")
        house.host.run("iptables-legacy", "-F", "FORWARD")


def test_tcps_segments_fit_the_tunnel(house: House, clients: dict[str, Namespace]) -> None:
    house.has(OPENED)
    for family, headers in ((4, 40), (6, 60)):
        with listening(house.world, 8000 + family) as listener:
            connection = called(clients["one"], WORLD[family], 8000 + family)
            assert connection is not None
            with connection, listener.accept()[0] as far:
                assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1420 - headers


def test_a_peer_a_group_and_the_rest_reach_what_they_may(house: House, clients: dict[str, Namespace]) -> None:
    one, two = clients["one"], clients["two"]
    house.has(OPENED)
    begun = called(one, WORLD[4], 80)
    assert begun is not None
    with begun:
        assert begun.recv(100)
        rules = "# stagewire: Allow = staff: 203.0.113.0/24 tcp 443\n# stagewire: Allow = staff: any icmp"
        own = f"# stagewire: Groups = staff\n# stagewire: Allow = {WORLD[6]} tcp 400-500"
        house.has(f"{OPENED}\n{rules}", one=own)
        begun.settimeout(1)
        begun.sendall(b"more")
        with pytest.raises(TimeoutError):
            begun.recv(100)
    for family in FAMILIES:
        assert seen_as(one, WORLD[family], 443) == OURS[family]
        assert ping(one, WORLD[family]).received == 1
        assert refused(one, WORLD[family], 80)
        assert seen_as(two, WORLD[family], 80) == OURS[family]
    assert ping(one, "10.66.0.1").received == 1
    denied = house.why("one")["not_allowed"]
    assert isinstance(denied, dict)
    assert WORLD[4] in denied["text"] or WORLD[6] in denied["text"]
    assert "not_allowed" not in house.why("two")
    until(lambda: house.denied("one"), 7, "the drops to be a reason of the peer")
    assert house.denied("one")[0] in WORLD.values()
    assert house.denied("two") == []
    told = json.loads(house.gateway.command("doctor", "--json", "wg0", check=False).stdout)
    assert "not_allowed" in {each["id"] for each in told["troubles"]}


def test_a_command_changes_what_a_peer_may_reach_at_once(house: House, clients: dict[str, Namespace]) -> None:
    house.has(OPENED)
    house.gateway.command("peer", "set", "two", "--allow", f"{WORLD[4]} tcp 443", "-i", "wg0")
    assert refused(clients["two"], WORLD[4], 80)
    assert seen_as(clients["two"], WORLD[4], 443) == OURS[4]
    assert refused(clients["two"], WORLD[6], 443)
    house.gateway.command("peer", "set", "two", "--allow", "", "-i", "wg0")
    assert seen_as(clients["two"], WORLD[6], 80) == OURS[6]


def test_isolated_peers_reach_the_world_and_not_one_another(house: House, clients: dict[str, Namespace]) -> None:
    house.has(OPENED)
    for family in FAMILIES:
        assert ping(clients["two"], INNER["one"][family]).received == 1
    house.has(f"{OPENED}\n# stagewire: Isolation = on")
    for family in FAMILIES:
        assert ping(clients["two"], INNER["one"][family], timeout=1).received == 0
        assert ping(clients["one"], INNER["two"][family], timeout=1).received == 0
        assert seen_as(clients["two"], WORLD[family], 80) == OURS[family]
    assert "isolated" in house.why("two")


def test_a_port_of_the_gateway_leads_to_a_peer(house: House) -> None:
    house.has(f"# stagewire: Firewall = open\n# stagewire: Forward = tcp 8081 [{INNER['one'][6]}]:80",
              one="# stagewire: Forward = tcp 8080 80")  # fmt: skip
    assert seen_as(house.world, OURS[4], 8080) == "10.66.0.1", "the peer answers through the tunnel"
    assert seen_as(house.world, OURS[6], 8080) == "fd66::1"
    assert seen_as(house.world, OURS[6], 8081) == "fd66::1"
    house.has(
        "# stagewire: Firewall = open",
        one="# stagewire: Forward = tcp 8080 80\n# stagewire: ClientAllowedIPs = 0.0.0.0/0",
    )
    assert seen_as(house.world, OURS[4], 8080) == WORLD[4], "such a client sees the sender"


class UdpServer:
    """Tells each caller at a UDP port of a namespace the caller's address."""

    def __init__(self, namespace: Namespace, port: int) -> None:
        self._socket = namespace.call(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._socket.bind(("::", port))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                data, place = self._socket.recvfrom(100)
                if not data:
                    return
                self._socket.sendto(place[0].removeprefix("::ffff:").encode(), place)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def udp_seen_as(namespace: Namespace, address: str, port: int, attempts: int = 5) -> str | None:
    """By which address a UDP server sees a caller; None without an answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as asking:
        asking.connect((address, port))
        asking.settimeout(0.8)
        for _ in range(attempts):
            with suppress(OSError):
                asking.send(b"?")
                return asking.recv(100).decode()
    return None


def test_udp_is_allowed_and_forwarded_by_port_and_tcp_beside_it_is_not(
    house: House, clients: dict[str, Namespace]
) -> None:
    with (
        closing(UdpServer(house.world, 80)),
        closing(UdpServer(house.world, 443)),
        closing(UdpServer(clients["one"], 80)),
    ):
        allowed = "\n".join(f"# stagewire: Allow = {WORLD[family]} udp 443" for family in FAMILIES)
        house.has(OPENED, one="# stagewire: Forward = udp 8080 80", two=allowed)
        for family in FAMILIES:
            assert udp_seen_as(clients["two"], WORLD[family], 443) == OURS[family]
            assert udp_seen_as(clients["two"], WORLD[family], 80, 1) is None
            assert refused(clients["two"], WORLD[family], 443)
            assert udp_seen_as(clients["one"], WORLD[family], 80) == OURS[family]
            assert udp_seen_as(house.world, OURS[family], 8080) in {
                WORLD[family],
                {4: "10.66.0.1", 6: "fd66::1"}[family],
            }
            assert udp_seen_as(house.world, OURS[family], 8081, 1) is None
            assert refused(house.world, OURS[family], 8080)


class Caller:
    """A peer's UDP flow to a port elsewhere, whose far end then sends by itself."""

    def __init__(self, stack: ExitStack, peer: Namespace, far: Namespace, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._near, self._far = (
            stack.enter_context(each.call(lambda: socket.socket(family, socket.SOCK_DGRAM))) for each in (peer, far)
        )
        self._far.bind((address, port))
        self._near.connect((address, port))
        self._near.send(b"begins")
        self._far.settimeout(5)
        self._place = self._far.recvfrom(100)[1]

    def hears(self) -> bool:
        """Whether what the far end sends arrives."""
        self._near.settimeout(0.5)
        for _ in range(2):
            with suppress(TimeoutError, PermissionError):  # a host may not send what its own rules drop
                self._far.sendto(b"by itself", self._place)
                return bool(self._near.recv(100))
        return False


def test_what_may_no_longer_be_reached_is_no_longer_heard_of(house: House, clients: dict[str, Namespace]) -> None:
    """A stream by UDP goes on at its far end, beyond the gateway or on it, while the peer's rules change."""
    house.has(OPENED)
    one, command = clients["one"], house.gateway.command
    with ExitStack() as stack:
        flows = [Caller(stack, one, house.world, WORLD[family], 5000) for family in FAMILIES]
        flows += [
            Caller(stack, one, house.host, "10.66.0.1", 5000),
            Caller(stack, one, clients["two"], "10.66.0.3", 5000),
        ]
        assert all(each.hears() for each in flows)
        command("peer", "set", "one", "--allow", "any tcp", "--allow", "any icmp", "--allow", "any udp 53", "-i", "wg0")
        assert not any(each.hears() for each in flows)
        assert ping(one, WORLD[4]).received == 1
        assert seen_as(one, WORLD[6], 80) == OURS[6]
        until(lambda: house.denied("one"), 7, "the drops to be a reason of the peer")
        command("peer", "set", "one", "--allow", "any udp 4000-5000", "-i", "wg0")
        assert all(each.hears() for each in flows)
        command("peer", "set", "one", "--allow", "any tcp", "-i", "wg0")
        command("peer", "set", "two", "--allow", "any udp 5000", "-i", "wg0")
        assert not any(each.hears() for each in flows)


def test_ipv6_goes_by_its_own_address_where_routers_know_the_way(house: House, clients: dict[str, Namespace]) -> None:
    house.has(OPENED.replace("on", "routed-ipv6", 1))
    house.world.run("ip", "-6", "route", "add", "fd66::/64", "via", OURS[6])
    assert seen_as(clients["one"], WORLD[6], 80) == INNER["one"][6]
    assert seen_as(clients["one"], WORLD[4], 80) == OURS[4]


def test_two_exits_of_one_host_leave_each_others_rules_alone(
    house: House, clients: dict[str, Namespace], lab_directory: Path
) -> None:
    house.has(OPENED)
    ours, theirs = new_key_pair(), new_key_pair()
    peer = Peer(theirs.public, ["10.67.0.2/32", "fd67::2/128"])
    lines = [f"PrivateKey = {ours.private}", f"ListenPort = {PORT + 1}", "Address = 10.67.0.1/24, fd67::1/64", OPENED]
    second = Gateway(
        house.host, "wg1", lab_directory, "\n".join(["[Interface]", *lines, peer.section(), ""]), workers=1
    )

    def table(name: str) -> str:
        return house.host.run("nft", "-s", "list", "table", "inet", f"stagewire-{name}/gateway").stdout

    first, forwarding = table("wg0"), house.state()["net.ipv4.ip_forward"]
    with Namespace("gw-three") as three, closing(Server(three, 80)):
        veth(three, house.host, ["192.0.2.33/30"], ["192.0.2.34/30"])
        everything = ["10.66.0.0/23", "fd66::/16", "fd67::/16", "203.0.113.0/24", "2001:db8:f::/64"]
        to_us = Peer(ours.public, everything, f"192.0.2.34:{PORT + 1}")
        with second, WireguardGo(three, theirs, peer.allowed_ips, [to_us], None):
            for family in FAMILIES:
                assert seen_as(three, WORLD[family], 80) == OURS[family]
                assert seen_as(clients["one"], WORLD[family], 80) == OURS[family]
            assert table("wg0") == first
            assert table("wg1").replace("wg1", "wg0") == first
    assert table("wg0") == first
    assert "wg1" not in house.host.run("nft", "list", "ruleset").stdout
    assert house.state()["net.ipv4.ip_forward"] == forwarding == "1\n"
    assert seen_as(clients["one"], WORLD[6], 80) == OURS[6]


def test_what_others_undo_is_put_back_and_down_leaves_nothing(house: House, clients: dict[str, Namespace]) -> None:
    house.has(f"{OPENED}\n# stagewire: Isolation = on", two=f"# stagewire: Allow = {WORLD[4]}")
    assert house.state() != house.before
    house.host.run("nft", "delete", "table", "inet", "stagewire-wg0/gateway")
    house.host.run("iptables-nft", "-F", "FORWARD")
    house.host.sysctl("net.ipv4.ip_forward", 0)
    until(lambda: seen_as(clients["one"], WORLD[4], 80, 1) == OURS[4], 15, "packets to pass again")
    assert refused(clients["two"], WORLD[6], 80)
    house.down()
    assert house.state() == house.before
