"""`stagewire peer`: what it prints brings a client up, what it changes holds at once, and nobody else loses a packet."""

import base64
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.memory import in_memory
from tests.system.qr import decoded

from lab import wait
from lab.hub import PORT, Spoke
from lab.namespaces import Topology
from lab.pulse import Pulse
from lab.stagewire import Gateway, executable
from lab.traffic import ping
from lab.wait import until
from lab.wg import WgHub, unique_name
from lab.wireguard_go import KeyPair, Peer, WireguardGo, new_key_pair
from stagewire.config import decode_key

pytestmark = pytest.mark.system


class Single(Spoke):
    """A peer with nothing but its own addresses, so that others of the network are free."""

    @property
    def networks(self) -> tuple[str, str]:
        return f"{self.inner[0]}/32", f"{self.inner[1]}/128"


STAYS = Single(1)
GATEWAY = STAYS.gateway_inner[0]
OFF = "# stagewire off: [Peer]"


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("p") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    line = f"# stagewire: ClientEndpoint = {Topology.B4}:{PORT}"
    with WgHub(network.b, shared_directory / "h", {"stays": STAYS}, line, spares=1) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def _the_file_as_it_was(hub: WgHub) -> Iterator[None]:
    yield
    hub.gateway.write_config(hub.config)
    hub.gateway.command("reload", hub.name)


@dataclass(frozen=True, slots=True)
class Client:
    """What a client's configuration says."""

    text: str
    values: dict[str, str]

    @classmethod
    def read(cls, text: str) -> "Client":
        pairs = (line.split(" = ", 1) for line in text.splitlines() if " = " in line and not line.startswith("#"))
        return cls(text, {words[0]: words[1] for words in pairs})

    @property
    def address(self) -> str:
        return self.values["Address"].split("/")[0]

    def runs(self, network: Topology) -> WireguardGo:
        """wireguard-go in C, by this configuration alone; the peer that stays is in A."""
        said = self.values
        private = said["PrivateKey"]
        peer = Peer(
            said["PublicKey"], said["AllowedIPs"].split(", "), said["Endpoint"], said.get("PresharedKey"),
            int(said.get("PersistentKeepalive", "0")) or None,
        )  # fmt: skip
        return WireguardGo(network.c, KeyPair(private, ""), said["Address"].split(", "), [peer], None)


def peer(hub: WgHub, *words: str, check: bool = True) -> str:
    done = hub.gateway.command("peer", *words, "-i", hub.name, check=check)
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


def add(hub: WgHub, name: str, *options: str) -> Client:
    return Client.read(peer(hub, "add", name, *options))


def listed(hub: WgHub) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(peer(hub, "list", "--json"))["peers"]}


def files_with(hub: WgHub, text: str) -> list[Path]:
    """The gateway's files, logs and its configuration, where a key is in the text, as text or as bytes."""
    tops = (hub.gateway.log_directory, hub.gateway.run_directory, hub.gateway.state_directory)
    files = [each for top in tops for each in top.rglob("*") if each.is_file() and not each.is_symlink()]
    forms = (text.encode(), base64.b64decode(text))
    return [each for each in (*files, hub.gateway.config_path) if any(form in each.read_bytes() for form in forms)]


def passes(network: Topology) -> bool:
    """Whether the gateway answers the client."""
    return ping(network.c, GATEWAY, timeout=1).received == 1


def test_what_peer_add_prints_brings_a_client_up(network: Topology, hub: WgHub) -> None:
    began = time.monotonic()
    client = add(hub, "Anna's phone")
    with client.runs(network):
        until(lambda: passes(network), 10, "traffic")
        assert time.monotonic() - began < 10 * wait.slack
        assert client.values["PresharedKey"]
        assert files_with(hub, client.values["PrivateKey"]) == []
        assert files_with(hub, client.values["PresharedKey"]), "the search finds what is there"
        secrets = {each: decode_key(client.values[each]) for each in ("PrivateKey", "PresharedKey")}
        assert set().union(*(in_memory(pid, secrets) for pid in (hub.gateway.pid(), *hub.gateway.processes()))) == {
            "PresharedKey"
        }
        again = Client.read(peer(hub, "config", "Anna"))
        assert again.text == client.text.replace(client.values["PrivateKey"], "PUT-THE-PRIVATE-KEY-HERE")
        row = listed(hub)["Anna's phone"]
        assert row["state"] == "enabled"
        assert client.values["Address"] == ", ".join(row["allowed_ips"])  # type: ignore[arg-type]
        assert hub.gateway.status()["warnings"] == []


def test_three_commands_make_a_first_gateway_and_its_first_phone(
    network: Topology, hub: WgHub, lab_directory: Path
) -> None:
    """README's commands, without a terminal, beside a gateway that has the usual port."""
    assert hub.port == PORT
    gateway = Gateway(network.b, unique_name(), lab_directory, "")
    gateway.command("init", str(gateway.config_path))
    try:
        gateway.command("up", str(gateway.config_path), timeout=60)
        client = Client.read(gateway.command("peer", "add", "phone").stdout)
        assert client.values["Endpoint"] == f"{Topology.B4}:{PORT + 1}"
        with client.runs(network):
            inner = client.values["AllowedIPs"].replace("0/24", "1").split(", ")[0]
            until(lambda: ping(network.c, inner, timeout=1).received == 1, 10, "traffic")
    finally:
        gateway.down()


def test_the_qr_code_says_the_same(network: Topology, hub: WgHub) -> None:
    shown = peer(hub, "add", "phone", "--qr", "--dns", "192.0.2.53")
    text = shown[: next(place for place, letter in enumerate(shown) if letter in "\x1b▀▄█")]
    read = decoded(shown[len(text) :])
    assert read == text
    client = Client.read(read)
    with client.runs(network):
        until(lambda: passes(network), 10, "traffic")


@pytest.mark.parametrize("how", ["disable", "remove", "rotate", "expires"])
def test_traffic_ends_within_a_second_and_no_other_peer_loses_a_packet(network: Topology, hub: WgHub, how: str) -> None:
    client = add(hub, "goes")
    with hub.wireguard_go(STAYS, network.a, Topology.B4), client.runs(network):
        until(lambda: passes(network), 10, "traffic")
        assert ping(network.a, GATEWAY).received == 1
        with Pulse(network.a, network.b, [GATEWAY], rate=400) as pulse:
            until(lambda: pulse.received > 100, 10, "packets to flow")
            if how == "expires":
                peer(hub, "set", "goes", "--expires", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2)))
                until(lambda: client.values["PresharedKey"] not in hub.show("preshared-keys"), 4, "the expiry")
                until(lambda: OFF in hub.gateway.config_path.read_text(), 3, "the file to have the peer as a comment")
            else:
                peer(hub, how, "goes")
            assert not passes(network)  # by the very next packet
            hub.expect_whole(pulse.finish())
        if how == "disable":
            peer(hub, "enable", "goes")
            until(lambda: passes(network), 15, "traffic again")


def test_no_command_for_others_costs_a_peer_a_packet(network: Topology, hub: WgHub, tmp_path: Path) -> None:
    """One steady stream beside all of them. At their end a client runs by the configuration that `rotate` printed."""
    table, many = tmp_path / "many.csv", [f"m{number}" for number in range(100)]
    table.write_text("\n".join(["name,rate,allow", *(f"{each},1M,any icmp" for each in many)]))
    with hub.wireguard_go(STAYS, network.a, Topology.B4):
        until(lambda: ping(network.a, GATEWAY).received == 1, 10, "the tunnel")
        with Pulse(network.a, network.b, [GATEWAY], rate=400) as pulse:
            until(lambda: pulse.received > 100, 10, "packets to flow")
            add(hub, "goes")
            peer(hub, "set", "goes", "--rate", "2M", "--quota", "1G", "--allow", "any", "--expires", "30d")
            peer(hub, "rename", "goes", "moves")
            peer(hub, "disable", "moves")
            peer(hub, "enable", "moves")
            client = Client.read(peer(hub, "rotate", "moves"))
            peer(hub, "add", "--from", str(table), "--output", str(tmp_path))
            assert len(listed(hub)) == 102
            with client.runs(network):
                until(lambda: passes(network), 10, "traffic of the client with new keys")
                peer(hub, "remove", *many)
                assert passes(network)
            peer(hub, "remove", "moves")
            hub.expect_whole(pulse.finish())
    assert len(hub.dump().peers) == 1


def test_a_peer_ends_and_reaches_no_more_though_the_host_refuses_its_rules(network: Topology, hub: WgHub) -> None:
    client, table = add(hub, "goes", "--allow", "any"), f"inet stagewire-{hub.name}/gateway"
    with client.runs(network):
        until(lambda: passes(network), 10, "traffic")
        network.b.run("nft", f"delete table {table}; add table {table}")  # another program has the name now
        until(lambda: hub.gateway.command("status", hub.name, check=False).returncode == 4, 5, "the fault to be said")
        assert (
            "is not ours"
            in hub.gateway.command("peer", "set", "goes", "--allow", "192.0.2.0/24", "-i", hub.name).stderr
        )
        assert not passes(network), "the rules that nft did not take hold"
        wider = hub.gateway.command("peer", "set", "goes", "--allow", "any", "-i", hub.name, check=False)
        assert (wider.returncode, "is not ours" in wider.stderr) == (1, True), "what widens waits"
        assert f"nftables table {table} is not ours" in hub.gateway.command("doctor", hub.name, check=False).stdout
        peer(hub, "disable", "goes")
        assert listed(hub)["goes"]["state"] == "disabled"
        until(lambda: hub.gateway.command("status", hub.name, check=False).returncode == 0, 5, "no need of rules")
        assert hub.gateway.command("events", hub.name).stdout.count("rules_refused") == 1
        network.b.run("nft", f"delete table {table}")


def test_bad_input_and_the_same_file_again_cost_the_tunnel_nothing(
    network: Topology, hub: WgHub, tmp_path: Path
) -> None:
    table = tmp_path / "new.csv"
    names = [f"p{number}" for number in range(500)]
    table.write_text("\n".join(["name", *names[:398], "p7", *names[399:]]))
    with hub.wireguard_go(STAYS, network.a, Topology.B4):
        until(lambda: ping(network.a, GATEWAY).received == 1, 10, "the tunnel")
        with Pulse(network.a, network.b, [GATEWAY], rate=400) as pulse:
            until(lambda: pulse.received > 100, 10, "packets to flow")
            assert f"{table}:400: " in peer(hub, "add", "--from", str(table), "--output", str(tmp_path), check=False)
            assert "no peer has the name" in peer(hub, "rotate", "nobody", check=False)
            add(hub, "beside")
            hub.gateway.command("apply", hub.name)
            hub.gateway.write_config(f"{hub.gateway.config_path.read_text()}[Peer]\nAllowedIPs = nowhere\n")
            assert hub.gateway.command("apply", hub.name, check=False).returncode == 1
            assert len(hub.dump().peers) == 2
            hub.expect_whole(pulse.finish())


def test_two_at_once_never_get_one_address(hub: WgHub) -> None:
    with ThreadPoolExecutor(4) as pool:
        clients = list(pool.map(lambda number: add(hub, f"racer {number}"), range(12)))
    addresses = [address for client in clients for address in client.values["Address"].split(", ")]
    assert len(set(addresses)) == len(addresses) == 24
    assert {row["name"] for row in listed(hub).values()} >= {f"racer {number}" for number in range(12)}
    assert len(hub.dump().peers) == 13


def test_a_peer_out_of_use_is_a_comment_for_wg(network: Topology, hub: WgHub) -> None:
    client = add(hub, "rests")
    peer(hub, "disable", "rests")
    text = hub.gateway.config_path.read_text()
    read = network.b.run("wg-quick", "strip", hub.gateway.config_path).stdout.splitlines()
    assert client.values["PresharedKey"] in text
    assert [line for line in read if line.startswith("PublicKey")] == [f"PublicKey = {STAYS.keys.public}"]
    assert listed(hub)["rests"]["state"] == "disabled"
    hub.gateway.command("restart", "key", hub.name)
    assert len(hub.dump().peers) == 1
    run = hub.gateway.run_directory / hub.name / "key"
    assert not any(client.values["PresharedKey"] in each.read_text(errors="replace") for each in run.glob("accepted*"))
    for word in ("rests", client.address):
        said = hub.gateway.command("why", word, "-i", hub.name, check=False)
        assert said.returncode == 4
        assert re.search("the peer is disabled since 2", said.stdout), said.stdout
        assert "`stagewire peer enable rests -i" in said.stdout
    other = add(hub, "other")
    assert other.address != client.address, "a peer out of use keeps its address"
    peer(hub, "enable", "rests")
    assert len(hub.dump().peers) == 3


def test_a_peer_that_expires_by_itself_is_a_comment_in_the_file_at_once(network: Topology, hub: WgHub) -> None:
    """No command runs: key-service asks, and a writer of root's changes the file, which `wg` and `peer` take as before."""
    client = add(hub, "guest", "--expires", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3)))
    path = hub.gateway.config_path
    mode = path.stat().st_mode
    assert OFF not in path.read_text()
    until(lambda: OFF in path.read_text(), 6, "the file to have the peer as a comment")
    until(lambda: hub.gateway.status()["warnings"] == [], 5, "the file to be in force")
    assert path.stat().st_mode == mode
    read = network.b.run("wg-quick", "strip", path).stdout.splitlines()
    assert [line for line in read if line.startswith("PublicKey")] == [f"PublicKey = {STAYS.keys.public}"]
    assert listed(hub)["guest"]["state"] == "expired"
    why = hub.gateway.command("why", "guest", "-i", hub.name, check=False).stdout
    assert "the peer has expired at 2" in why
    assert "`stagewire peer set guest --expires 30d -i" in why
    assert [each.name for each in path.parent.iterdir() if each.name.startswith(".")] == []
    peer(hub, "set", "guest", "--expires", "never")
    assert OFF not in path.read_text()
    assert client.values["PresharedKey"] in hub.show("preshared-keys")


def test_a_file_that_waits_for_a_reload_keeps_its_expired_peer(hub: WgHub) -> None:
    add(hub, "guest", "--expires", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3)))
    edited = hub.gateway.config_path.read_text().replace("[Interface]", "[Interface]\nMTU = 1300")
    hub.gateway.write_config(edited)
    until(
        lambda: "expired peers stay in the file for now" in "".join(hub.gateway.logs().values()),
        10,
        "a line in the log",
    )
    assert hub.gateway.config_path.read_text() == edited
    hub.gateway.command("reload", hub.name)
    until(lambda: OFF in hub.gateway.config_path.read_text(), 30, "another attempt")


def test_what_wg_alone_has_made_stays(hub: WgHub) -> None:
    keys = new_key_pair()
    hub.set("peer", keys.public, "allowed-ips", "10.66.1.3/32", "persistent-keepalive", "7")
    client = add(hub, "beside")
    assert client.address == "10.66.1.4"
    assert keys.public in hub.dump().peers
    assert "10.66.1.3/32 belongs to peer" in peer(hub, "add", "thief", "--address", "10.66.1.3", check=False)
    hub.gateway.command("restart", "key", hub.name)
    assert hub.dump().peers[keys.public].persistent_keepalive == 7


def test_an_edited_file_refuses_every_change(hub: WgHub) -> None:
    hub.gateway.write_config(hub.config.replace("[Interface]", "[Interface]\nMTU = 1300"))
    before = hub.gateway.config_path.read_text()
    assert "has changed since it was read" in peer(hub, "add", "phone", check=False)
    assert hub.gateway.config_path.read_text() == before


def test_who_did_what_is_written_down(hub: WgHub) -> None:
    client = add(hub, "noted")
    lines = (hub.gateway.state_directory / hub.name / "audit").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["uid"], last["what"]) == (0, "peer add")
    assert any("noted" in change for change in last["changes"])
    assert client.values["PresharedKey"] not in "".join(lines)
    assert client.values["PrivateKey"] not in "".join(lines)


def test_a_killed_key_service_leaves_the_change_whole(hub: WgHub) -> None:
    """Killed at any moment of an `add`: the peer is in the file and in force, or the command failed and it is in neither."""
    for number in range(6):
        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(hub.gateway.command, "peer", "add", f"k{number}", "-i", hub.name, check=False)
            time.sleep(0.25 + number * 0.04)
            hub.gateway.kill("key", 9)
            done = doing.result()
        until(lambda: hub.wg("show", hub.name, check=False).returncode == 0, 10, "key-service")
        in_file = f"k{number}" in listed(hub)
        rows = listed(hub)
        in_force = in_file and rows[f"k{number}"]["public_key"] in hub.dump().peers
        assert (done.returncode == 0) == in_file == in_force, f"{done} {hub.gateway.status()['warnings']}"


def test_a_change_that_cuts_the_tunnel_goes_back_in_time(network: Topology, hub: WgHub) -> None:
    """The operator is at the far end: the peer that the file no longer names is the way to the gateway."""
    hub.set("peer", new_key_pair().public, "allowed-ips", "10.66.1.9/32")
    before = sorted(hub.dump().peers)
    with hub.wireguard_go(STAYS, network.a, Topology.B4), ThreadPoolExecutor(1) as pool:
        until(lambda: ping(network.a, GATEWAY).received == 1, 10, "the tunnel")
        hub.gateway.write_config(hub.config[: hub.config.index("[Peer]")])
        assert f"- peer {STAYS.keys.public[:10]}" in hub.gateway.command("plan", hub.name).stdout
        assert sorted(hub.dump().peers) == before, "a plan changes nothing"
        doing = pool.submit(hub.gateway.command, "apply", "--confirm", "4", hub.name, check=False)
        until(lambda: not hub.dump().peers, 4, "the change")
        assert ping(network.a, GATEWAY, timeout=0.5).received == 0
        hub.gateway.kill("key", 9)  # the next one knows what to go back to
        refused = hub.gateway.command("reload", hub.name, check=False)
        until(lambda: ping(network.a, GATEWAY).received == 1, 12, "the tunnel again")
        assert sorted(hub.dump().peers) == before
        done = doing.result()
    assert (done.returncode, "no confirmation came" in done.stderr) == (1, True)
    assert refused.returncode == 1
    assert hub.gateway.status()["warnings"], "the file differs from what is in force"
    assert not (hub.gateway.run_directory / hub.name / "key" / "unconfirmed").exists()


def test_what_is_confirmed_holds(network: Topology, hub: WgHub) -> None:
    hub.gateway.write_config(hub.config.replace("[Interface]", "[Interface]\nMTU = 1300"))
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(hub.gateway.command, "apply", "--confirm", "5", hub.name)
        until(lambda: hub.gateway.command("confirm", hub.name, check=False).returncode == 0, 5, "a confirmation")
        assert "confirmed: what was applied" in doing.result().stdout
    assert "mtu 1300" in network.b.run("ip", "link", "show", hub.name).stdout
    assert hub.gateway.status()["warnings"] == []
    assert hub.gateway.command("confirm", hub.name, check=False).returncode == 1
    again = hub.gateway.command("apply", "--confirm", "60", hub.name, timeout=20)
    assert again.stdout.startswith("nothing differs"), "and waits for nothing"


def test_what_was_applied_on_trial_and_went_down_is_not_confirmed(network: Topology, hub: WgHub) -> None:
    hub.gateway.write_config(hub.config.replace("[Interface]", "[Interface]\nMTU = 1310"))
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(hub.gateway.command, "apply", "--confirm", "60", hub.name, check=False)
        until(lambda: "1310" in network.b.run("ip", "link", "show", hub.name).stdout, 10, "the change")
        starts = [_restarted(hub), _restarted(hub)]
        done = doing.result()
    assert (done.returncode, "not confirmed" in done.stderr) == (1, True)
    assert ["never confirmed" in said for said in starts] == [True, False], "the start that puts it in force says so"


def _restarted(hub: WgHub) -> str:
    hub.gateway.down()
    return hub.gateway.command("up", str(hub.gateway.config_path), timeout=60).stderr


def test_an_interrupted_trial_goes_on_and_its_confirmation_is_complete(network: Topology, hub: WgHub) -> None:
    """The operator's line was cut: another command confirms, and `down` will run the new PostDown."""
    noted = hub.gateway.config_path.with_suffix(".gone")
    hub.gateway.write_config(hub.config.replace("[Interface]", f"[Interface]\nMTU = 1320\nPostDown = touch {noted}"))
    command = executable("stagewire"), "apply", "--confirm", "60", hub.name
    with network.b.popen(*command, output=subprocess.PIPE, env=hub.gateway.env) as doing:
        until(lambda: "1320" in network.b.run("ip", "link", "show", hub.name).stdout, 10, "the change")
        doing.send_signal(signal.SIGINT)
        said, _ = doing.communicate(timeout=20)
    assert (doing.returncode, b"interrupted" in said, b"stagewire confirm" in said) == (1, True, True), said
    until(lambda: any("goes back in" in line for line in hub.gateway.status()["warnings"]), 10, "status to say it")
    hub.gateway.command("confirm", hub.name)
    assert hub.gateway.status()["warnings"] == []
    hub.gateway.down()
    assert noted.exists()
    hub.gateway.up()
