"""`stagewire reload`: an edited file is put in force, whole or not at all, while an unchanged peer's packets flow."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.pulse import Pulse
from lab.stagewire import executable
from lab.traffic import ping
from lab.wait import until
from lab.wg import GATEWAY, WgHub
from lab.wireguard_go import new_key_pair, new_preshared_key

pytestmark = pytest.mark.system

STAYS, CHANGES, COMES = Spoke(1), Spoke(2), Spoke(3)


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("l") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[WgHub]:
    """Its resolvconf(8) and its hooks write down how they were called."""
    folder = shared_directory / "bin"
    folder.mkdir()
    stand_in = folder / "resolvconf"
    stand_in.write_text(f'#!/bin/sh\necho "$*" >> {shared_directory}/record\n[ "$1" = -a ] && cat >/dev/null; exit 0\n')
    stand_in.chmod(0o755)
    hooks = [f"{each} = echo {each} >> {shared_directory}/record" for each in ("PostUp", "PreDown", "PostDown")]
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    spokes = {"stays": STAYS, "changes": CHANGES}
    with WgHub(network.b, shared_directory / "h", spokes, *hooks, "MTU = 1400", "DNS = 192.0.2.53", env=env) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def _the_file_as_it_was(hub: WgHub) -> Iterator[None]:
    yield
    hub.gateway.write_config(hub.config)
    hub.gateway.command("reload", hub.name)
    record(hub)


def record(hub: WgHub) -> list[str]:
    path = hub.gateway.config_path.parent.parent / "record"
    lines = path.read_text().splitlines()
    path.write_text("")
    return lines


def edit(hub: Hub, *changes: tuple[str, str], peers: str = "") -> None:
    text = hub.config
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    hub.gateway.write_config(text + peers)


def addresses(hub: Hub) -> list[str]:
    lines = hub.namespace.run("ip", "-o", "address", "show", "dev", hub.name).stdout.splitlines()
    return [line.split()[3] for line in lines if not line.split()[3].startswith("fe80")]


def mtu(hub: Hub) -> int:
    words = hub.namespace.run("ip", "-o", "link", "show", hub.name).stdout.split()
    return int(words[words.index("mtu") + 1])


def state(hub: WgHub) -> tuple[object, ...]:
    """All that a file says, as it is in force."""
    dump = hub.dump()
    peers = {key: (peer.endpoint, peer.allowed_ips, peer.persistent_keepalive) for key, peer in dump.peers.items()}
    return dump.public_key, dump.listen_port, peers, mtu(hub), addresses(hub), routes(hub)


def routes(hub: Hub) -> str:
    return "".join(hub.namespace.run("ip", family, "route", "show", "dev", hub.name).stdout for family in ("-4", "-6"))


def test_everything_changes_and_no_packet_of_an_unchanged_peer_is_lost(network: Topology, hub: WgHub) -> None:
    psk = new_preshared_key()
    changed = CHANGES.peer().section()
    edit(
        hub,
        (f"Address = {STAYS.gateway_inner[0]}/24", f"Address = 10.99.0.1/24, {STAYS.gateway_inner[0]}/24"),
        ("MTU = 1400", "MTU = 1380"),
        ("DNS = 192.0.2.53", "DNS = 192.0.2.54"),
        ("echo PostDown", "echo another PostDown"),
        (
            changed,
            f"{changed}\nPresharedKey = {psk}\nPersistentKeepalive = 11".replace(CHANGES.networks[1], "fd99::/64"),
        ),
        peers=COMES.peer().section(),
    )
    with hub.wireguard_go(STAYS, network.a, GATEWAY[4]) as far, hub.wireguard_go(COMES, network.a, GATEWAY[4]):
        assert far.namespace is network.a
        assert ping(network.a, STAYS.gateway_inner[0]).received == 1
        handshake = hub.show("latest-handshakes")
        shown = hub.gateway.command("reload", "--dry-run", hub.name)
        assert mtu(hub) == 1400, "a dry run changes nothing"
        assert len(hub.dump().peers) == 2
        with Pulse(network.a, network.b, list(STAYS.gateway_inner), rate=400) as pulse:
            until(lambda: pulse.received > 100, 10, "packets to flow")
            applied = hub.gateway.command("reload", hub.name)
            assert mtu(hub) == 1380
            assert "10.99.0.1/24" in addresses(hub)
            hub.expect_whole(pulse.finish())
        assert applied.stdout == f"{shown.stdout}{hub.gateway.config_path} is in force\n"
        for line in (
            "+ Address 10.99.0.1/24", "~ MTU 1400 -> 1380", "- DNS 192.0.2.53", "+ DNS 192.0.2.54",
            f"~ peer {CHANGES.keys.public}", "    + PresharedKey", "    + PersistentKeepalive 11",
            f"    - AllowedIPs {CHANGES.networks[1]}", "    + AllowedIPs fd99::/64",
        ):  # fmt: skip
            assert line in applied.stdout.splitlines()
        assert f"+ peer {COMES.keys.public}  AllowedIPs {', '.join(COMES.networks)}" in applied.stdout
        assert psk not in applied.stdout
        assert handshake.splitlines()[0] in hub.show("latest-handshakes")
        dump = hub.dump()
        assert set(dump.peers) == {spoke.keys.public for spoke in (STAYS, CHANGES, COMES)}
        assert dump.peers[CHANGES.keys.public].allowed_ips == (CHANGES.networks[0], "fd99::/64")
        assert "fd99::/64" in routes(hub)
        hub.namespace.run("ip", "address", "show", "dev", hub.name)
        assert ping(network.a, STAYS.gateway_inner[0]).received == 1
        assert hub.gateway.status()["warnings"] == []
    assert [line for line in record(hub) if line.startswith(("-", "Post"))][-1:] == [f"-a {hub.name} -m 0 -x"]


def test_what_was_applied_outlives_key_service(network: Topology, hub: WgHub) -> None:
    edit(hub, ("MTU = 1400", "MTU = 1390"), peers=COMES.peer().section())
    hub.gateway.command("reload", hub.name)
    hub.set("peer", COMES.keys.public, "persistent-keepalive", "7")
    hub.gateway.command("restart", "key", hub.name)
    assert mtu(hub) == 1390
    assert hub.dump().peers[COMES.keys.public].persistent_keepalive == 7
    assert hub.gateway.status()["warnings"] == []
    # What `wg` alone has made goes, as with `wg syncconf`.
    hub.gateway.write_config(hub.config)
    shown = hub.gateway.command("reload", hub.name).stdout
    assert f"- peer {COMES.keys.public}" in shown
    assert COMES.keys.public not in hub.dump().peers


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("MTU = 1400", "MTU = 14x00", "MTU"),
        ("ListenPort = {port}", "ListenPort = 51999\nMTU = 1390", "Address already in use"),
        ("[Peer]", "[Pear]", "did you mean [Peer]?"),
    ],
)
def test_what_cannot_be_is_refused_whole(network: Topology, hub: WgHub, old: str, new: str, words: str) -> None:
    taken = network.b.udp_socket("0.0.0.0", 51999)
    before = state(hub)
    try:
        edit(
            hub,
            (old.format(port=hub.port), new),
            ("Address = ", "Address = 10.98.0.1/24, "),
            peers=COMES.peer().section(),
        )
        refused = hub.gateway.command("reload", hub.name, check=False)
        assert refused.returncode == 1
        assert words in refused.stderr
        assert state(hub) == before
        assert len(hub.gateway.status()["warnings"]) == 1
    finally:
        taken.close()


def test_a_route_that_is_taken_refuses_all(network: Topology, hub: WgHub) -> None:
    """It is host-service that finds out, when the addresses are set already: all is as before when it is said."""
    taken = "10.95.0.0/24"
    network.b.run("ip", "route", "add", taken, "dev", "lo", "proto", "static")
    before = state(hub)
    try:
        edit(
            hub,
            ("MTU = 1400", "MTU = 1390"),
            ("Address = ", "Address = 10.98.0.1/24, "),
            (CHANGES.networks[0], f"{CHANGES.networks[0]}, {taken}"),
            peers=COMES.peer().section(),
        )
        refused = hub.gateway.command("reload", hub.name, check=False)
        assert refused.returncode == 1
        assert refused.stderr == (
            f"stagewire: {hub.name}: nothing is changed: route {taken} is taken: dev lo proto static; "
            "remove that route, or the prefix from AllowedIPs\n"
        )
        assert state(hub) == before
        assert taken in network.b.run("ip", "route", "show", "dev", "lo").stdout
        until(lambda: hub.gateway.status()["healthy"], 5, "all to be well")
    finally:
        network.b.run("ip", "route", "del", taken, "dev", "lo")


@pytest.mark.parametrize("taken", [False, True])
def test_host_service_is_waited_for_however_slow_it_is(network: Topology, hub: WgHub, taken: bool) -> None:
    prefix = "10.93.0.0/24"
    if taken:
        network.b.run("ip", "route", "add", prefix, "dev", "lo", "proto", "static")
    before = state(hub)
    try:
        edit(hub, ("Address = ", "Address = 10.98.0.1/24, "), (CHANGES.networks[0], f"{CHANGES.networks[0]}, {prefix}"))
        stopped = hub.gateway.kill("host", signal.SIGSTOP)
        reloading = started(hub, "reload")
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                reloading.wait(2)
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert reloading.wait(10) == int(taken)
        assert (state(hub) == before) == taken
        assert ("10.98.0.1/24" in addresses(hub), prefix in routes(hub)) == (not taken, not taken)
    finally:
        network.b.run("ip", "route", "del", prefix, "dev", "lo", check=False)


def test_what_wg_sets_while_a_reload_waits_stays(hub: WgHub) -> None:
    """The reload comes second, and goes by what the first leaves."""
    edit(hub, peers=COMES.peer().section())
    stopped = hub.gateway.kill("host", signal.SIGSTOP)
    try:
        port, peer = str(hub.port + 7), ("peer", STAYS.keys.public, "persistent-keepalive", "9")
        setting = hub.namespace.popen("wg", "set", hub.name, "listen-port", port, *peer)
        asked = hub.gateway.run_directory / hub.name / "key"
        reloading = started(hub, "reload")
        until(lambda: list(asked.glob("*.new")), 5, "key-service to have read the file")
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert (setting.wait(10), reloading.wait(10)) == (0, 0)
    dump = hub.dump()
    assert dump.peers[STAYS.keys.public].persistent_keepalive == 9
    assert (COMES.keys.public in dump.peers, dump.listen_port) == (True, hub.port)


def started(hub: WgHub, command: str) -> "subprocess.Popen[bytes]":
    return hub.namespace.popen(executable("stagewire"), command, hub.name, env=hub.gateway.env)


def test_a_new_key_and_port_are_applied(network: Topology, hub: WgHub) -> None:
    fresh = new_key_pair()
    edit(hub, (hub.keys.private, fresh.private), (f"ListenPort = {hub.port}", f"ListenPort = {hub.port + 5}"))
    applied = hub.gateway.command("reload", hub.name).stdout
    assert applied.splitlines()[:-1] == ["~ PrivateKey is another", f"~ ListenPort {hub.port} -> {hub.port + 5}"]
    assert hub.show("public-key").strip() == fresh.public
    assert hub.dump().listen_port == hub.port + 5


def test_table_and_mark_are_applied_and_taken_back(network: Topology, hub: WgHub) -> None:
    allowed = "10.94.0.0/16"
    with_prefix = (CHANGES.networks[0], f"{CHANGES.networks[0]}, {allowed}")
    edit(hub, with_prefix)
    hub.gateway.command("reload", hub.name)
    until(lambda: allowed in routes(hub), 5, "the route")
    edit(hub, with_prefix, ("MTU = 1400", "MTU = 1400\nTable = 7123\nFwMark = 0x55"))
    applied = hub.gateway.command("reload", hub.name).stdout
    assert applied.splitlines()[:-1] == ["+ FwMark 85", "~ Table auto -> 7123"]
    in_the_table = ("ip", "route", "show", "table", "7123")
    until(lambda: allowed in network.b.run(*in_the_table, check=False).stdout, 5, "the route in its table")
    until(lambda: allowed not in routes(hub), 5, "the main table to be without it")
    assert hub.show("fwmark").strip() == "0x55"
    edit(hub, with_prefix)
    hub.gateway.command("reload", hub.name)
    until(lambda: allowed in routes(hub), 5, "the route where it was")
    until(lambda: not network.b.run(*in_the_table, check=False).stdout.strip(), 5, "the table to be empty")
    assert hub.show("fwmark").strip() == "off"


@pytest.mark.parametrize("text", ["", "\n# cut short\n"])
def test_an_empty_file_costs_nothing(hub: WgHub, text: str) -> None:
    before = state(hub)
    hub.gateway.write_config(text)
    refused = hub.gateway.command("reload", hub.name, check=False)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("is empty, so nothing is changed; `stagewire down` ends the interface")
    assert state(hub) == before


def test_nothing_to_do_is_said(hub: WgHub) -> None:
    hub.gateway.write_config(f"# only a comment\n{hub.config}")
    applied = hub.gateway.command("reload", hub.name)
    assert applied.stdout == f"nothing differs: {hub.gateway.config_path} is in force already\n"
    assert hub.gateway.status()["warnings"] == []


def test_another_file_is_not_taken(hub: WgHub, lab_directory: Path) -> None:
    other = lab_directory / f"{hub.name}.conf"
    other.write_text(hub.config)
    for command in ("reload", "save"):
        refused = hub.gateway.command(command, str(other), check=False)
        assert refused.returncode == 1
        assert f"{hub.name} was brought up with {hub.gateway.config_path}, not with {other}" in refused.stderr
    assert hub.gateway.command("reload", str(hub.gateway.config_path)).returncode == 0


def test_down_does_as_the_file_said_at_the_last_reload(hub: WgHub) -> None:
    edit(hub, ("echo PreDown", "echo other PreDown"), ("DNS = 192.0.2.53\n", ""))
    hub.gateway.command("reload", hub.name)
    assert record(hub) == [f"-d {hub.name} -f"]
    hub.gateway.write_config("broken")
    hub.gateway.down()
    assert record(hub) == ["other PreDown", "PostDown"]
    hub.gateway.write_config(hub.config)
    hub.gateway.up()


def test_doctor_says_that_dns_is_not_set_until_it_is(hub: WgHub) -> None:
    stand_in = hub.gateway.config_path.parent.parent / "bin" / "resolvconf"
    works = stand_in.read_text()
    stand_in.write_text("#!/bin/sh\ncat >/dev/null; echo no room >&2; exit 1\n")
    try:
        edit(hub, ("DNS = 192.0.2.53", "DNS = 192.0.2.54"))
        hub.gateway.command("reload", hub.name)
    finally:
        stand_in.write_text(works)
    examined = hub.gateway.command("doctor", hub.name, check=False)
    assert "wrong: DNS is not set: resolvconf says: no room" in examined.stdout
    assert examined.returncode == 4
    edit(hub, ("DNS = 192.0.2.53", "DNS = 192.0.2.55"))
    hub.gateway.command("reload", hub.name)
    assert "DNS" not in hub.gateway.command("doctor", hub.name, check=False).stdout


def test_sighup_has_a_stagewire_run_apply_the_file(network: Topology, lab_directory: Path) -> None:
    hub = Hub(network.b, lab_directory, {"one": Spoke(9)}, "MTU = 1400", name="wg9", port=51990)
    gateway, output = hub.gateway, lab_directory / "output"
    gateway.write_config(hub.config)
    with output.open("wb") as written:
        process = network.b.popen(
            executable("stagewire"), "run", str(gateway.config_path), env=gateway.env, output=written
        )
    try:
        until(lambda: gateway.command("status", "wg9", check=False).returncode == 0, 60, "it to be up")
        edit(hub, ("MTU = 1400", "MTU = 1380"))
        process.send_signal(signal.SIGHUP)
        until(lambda: mtu(hub) == 1380, 10, "the MTU")
        until(lambda: "~ MTU 1400 -> 1380" in output.read_text(), 5, "a word about it")
        edit(hub, ("MTU = 1400", "MTU = 13x00"))
        process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: nothing is changed:" in output.read_text(), 10, "a word about it")
        assert f"{gateway.config_path}:5: MTU" in output.read_text()
        assert mtu(hub) == 1380
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_name_is_put_in_force_and_shown_and_means_nothing_to_wg(hub: WgHub) -> None:
    section = STAYS.peer().section()
    named = section.replace("[Peer]", "# friendly_name = \x1b[1mAnna\u202e's phone\n[Peer]")
    title = f"[1mAnna's phone ({STAYS.keys.public[:10]})"
    before = state(hub)
    edit(hub, (section, named))
    assert f"~ peer {title}\n    + Name [1mAnna's phone" in hub.gateway.command("reload", hub.name).stdout
    assert state(hub) == before
    assert f"peer {title}  no handshake yet" in hub.gateway.command("status", hub.name, check=False).stdout
    names = {peer["public_key"]: peer["name"] for peer in hub.gateway.status()["peers"]}
    assert names == {STAYS.keys.public: "[1mAnna's phone", CHANGES.keys.public: ""}
    # Neither `wg` nor another life of key-service takes the name away.
    hub.namespace.run("wg", "set", hub.name, "peer", STAYS.keys.public, "remove")
    hub.gateway.kill("key", signal.SIGKILL)
    until(lambda: hub.gateway.status()["healthy"], 20, "the next key-service")
    assert list(hub.dump().peers) == [CHANGES.keys.public]
    allowed = ",".join(STAYS.networks)
    hub.namespace.run("wg", "set", hub.name, "peer", STAYS.keys.public, "allowed-ips", allowed)
    assert {peer["public_key"]: peer["name"] for peer in hub.gateway.status()["peers"]} == names
    hub.gateway.command("save", hub.name)
    assert "# friendly_name = \x1b[1mAnna\u202e's phone\n[Peer]" in hub.gateway.config_path.read_text()
