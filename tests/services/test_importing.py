"""`stagewire import`: peers of each other program come over whole, and a line says what doesn't.

The files have the fields that the programs' own sources document: wg-easy 14's `wg0.json`, wg-easy 15's tables, WireGuard
Portal's tables and API, and the comments of scripts that write wg-quick files.
"""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.services.commands import folders, stagewire

from stagewire import config
from stagewire.config import InterfaceConfig, PeerConfig, encode_key, generate_private_key, public_key, roster

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="this command needs root")

PRIVATE = encode_key(generate_private_key(bytes([7]) * 32))
PSK = encode_key(bytes([9]) * 32)
KEYS = [encode_key(public_key(generate_private_key(bytes([number]) * 32))) for number in range(1, 6)]
FUTURE = "2099-01-31T00:00:00"


class Place:
    """A folder with the other program's files and our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "wg0.conf"

    def run(self, *words: str | Path, status: int = 0) -> str:
        done = stagewire("import", *words, "-i", self.conf, env=folders(self.folder))
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def written(self, name: str, content: object) -> Path:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def database(self, name: str, tables: dict[str, list[dict[str, Any]]]) -> Path:
        path = self.folder / name
        with closing(sqlite3.connect(path)) as made:
            for table, rows in tables.items():
                columns = list(rows[0])
                made.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
                for row in rows:
                    marks = ", ".join("?" * len(row))
                    made.execute(f"INSERT INTO {table} VALUES ({marks})", list(row.values()))  # noqa: S608 - ours
            made.commit()
        return path

    def whole(self) -> roster.Roster:
        return roster.read(self.conf.read_text(), str(self.conf))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def by_name(interface: InterfaceConfig) -> dict[str, PeerConfig]:
    return {peer.name: peer for peer in interface.peers}


def allowed(peer: PeerConfig) -> list[str]:
    return [str(prefix) for prefix in peer.allowed_ips]


def easy_14() -> dict[str, Any]:
    times = {"createdAt": "2024-01-01T00:00:00.000Z", "updatedAt": "2024-01-01T00:00:00.000Z"}
    phone = {"id": "a", "name": "phone", "address": "10.8.0.2", "privateKey": PRIVATE, "publicKey": KEYS[1]}
    desk = {"name": "desk", "address": "10.8.0.3", "privateKey": PRIVATE, "publicKey": KEYS[2]}
    return {
        "server": {"privateKey": PRIVATE, "publicKey": KEYS[0], "address": "10.8.0.1"},
        "clients": {
            "a": {**phone, "preSharedKey": PSK, **times, "enabled": True, "expiredAt": f"{FUTURE}.000Z"},
            "b": {**desk, "preSharedKey": PSK, **times, "enabled": False},
        },
    }


def test_wg_easy_14(place: Place) -> None:
    said = place.run(place.written("wg0.json", easy_14()), "--endpoint", "vpn.example:51820")
    found = place.whole()
    peers = by_name(found.whole)
    assert encode_key(found.whole.private_key or b"") == PRIVATE
    assert found.whole.listen_port == 51820, "the port that it says"
    assert [str(each) for each in found.whole.addresses] == ["10.8.0.1/24"]
    assert allowed(peers["phone"]) == ["10.8.0.2/32"]
    assert encode_key(peers["phone"].preshared_key) == PSK
    assert config.parse_text(f"[Peer]\nPublicKey={KEYS[1]}\n# stagewire: Expires={FUTURE}Z", place.conf).peers[
        0
    ].expires == (peers["phone"].expires)
    assert found.off == {peers["desk"].public_key}
    assert "wg-easy 14 has them in environment variables" in said
    assert PRIVATE not in said


def easy_15() -> dict[str, list[dict[str, Any]]]:
    own = {"name": "wg0", "device": "eth0", "port": 51999, "private_key": PRIVATE, "public_key": KEYS[0]}
    hooks = {"pre_up": "", "post_up": "iptables -A FORWARD -i wg0 -j ACCEPT", "pre_down": "", "post_down": ""}
    none = {"pre_up": "", "post_up": "", "pre_down": "", "post_down": ""}
    client = {"user_id": 1, "interface_id": "wg0", **none, "private_key": PRIVATE, "pre_shared_key": PSK}
    phone = {
        "id": 1,
        "name": "phone",
        "ipv4_address": "10.8.0.2",
        "ipv6_address": "fd42::2",
        **client,
        "public_key": KEYS[1],
        "expires_at": f"{FUTURE}.000Z",
        "allowed_ips": None,
        "server_allowed_ips": "[]",
        "persistent_keepalive": 25,
        "mtu": 1280,
        "dns": '["9.9.9.9"]',
        "server_endpoint": None,
        "enabled": 1,
    }
    site = {
        **phone,
        "id": 2,
        "name": "site",
        "ipv4_address": "10.8.0.3",
        "ipv6_address": "fd42::3",
        "public_key": KEYS[2],
        "expires_at": None,
        "allowed_ips": '["10.8.0.0/24"]',
        "server_allowed_ips": '["192.168.7.0/24"]',
        "server_endpoint": "site.example:51820",
        "enabled": 0,
    }
    cidrs = {"ipv4_cidr": "10.8.0.0/24", "ipv6_cidr": "fd42::/112", "mtu": 1420, "routing_table": "auto"}
    defaults = {"default_mtu": 1420, "default_persistent_keepalive": 0, "default_dns": '["1.1.1.1"]'}
    return {
        "interfaces_table": [{**own, **cidrs, "enabled": 1, "firewall_enabled": 0}],
        "hooks_table": [{"id": "wg0", **hooks}],
        "user_configs_table": [
            {"id": "wg0", **defaults, "default_allowed_ips": '["0.0.0.0/0","::/0"]', "host": "vpn.example", "port": 443}
        ],
        "clients_table": [phone, site],
    }


def test_wg_easy_15(place: Place) -> None:
    source = place.database("wg-easy.db", easy_15())
    before = source.read_bytes()
    said = place.run(source)
    found = place.whole()
    peers = by_name(found.whole)
    assert [str(each) for each in found.whole.addresses] == ["10.8.0.1/24", "fd42::1/112"]
    assert (found.whole.listen_port, str(found.whole.client_endpoint)) == (51999, "vpn.example:443")
    assert found.whole.client.dns == ("1.1.1.1",)
    assert allowed(peers["phone"]) == ["10.8.0.2/32", "fd42::2/128"]
    assert (peers["phone"].client.mtu, peers["phone"].client.keepalive) == (1280, 25)
    assert allowed(peers["site"]) == ["10.8.0.3/32", "fd42::3/128", "192.168.7.0/24"]
    assert str(peers["site"].endpoint) == "site.example:51820"
    assert found.off == {peers["site"].public_key}
    assert "its command post_up" in said
    assert source.read_bytes() == before
    assert sorted(each.name for each in place.folder.glob("wg-easy.db*")) == ["wg-easy.db"]


def test_what_wg_easy_has_beyond_is_named(place: Place) -> None:
    content = easy_14()
    content["clients"]["a"]["oneTimeLink"] = "abc"
    said = place.run(place.written("wg0.json", content))
    assert (
        "private keys of clients (none is kept here: `peer config` leaves a place for each), of client 1 (a), client 2"
        in said
    )
    assert "one-time links, of client 1 (a)\n" in said
    assert f"put `# stagewire: Exit = on` below [Interface] in {place.conf}" in said
    place.conf.unlink()
    tables = easy_15()
    tables["hooks_table"][0]["post_up"] = "iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE"
    tables["interfaces_table"][0] |= {"enabled": 0, "s1": 15, "h1": 99}
    for row in tables["clients_table"]:
        row |= {"description": "of Anna", "firewall_ips": "[]"}
    tables["clients_table"][0]["firewall_ips"] = '["10.0.0.0/8"]'
    tables["one_time_links_table"] = [{"id": 2, "one_time_link": "abc"}]
    said = place.run(place.database("wg-easy.db", tables))
    for line in (
        "private keys of clients (none is kept here: `peer config` leaves a place for each), of client 1, client 2",
        "descriptions, of client 1, client 2", "(firewall_ips), of client 1", "one-time links, of client 2",
        "AmneziaWG's parameters: a client that uses them can't connect",
        "it is disabled there, and `stagewire up` starts it",
    ):  # fmt: skip
        assert f"{line}\n" in said
    assert "Exit = on" in said


def test_what_wireguard_portal_has_beyond_is_named(place: Place) -> None:
    tables = portal()
    tables["interfaces"][0] |= {"disabled": "2024-02-01 10:00:00+00:00", "save_config": 1, "dns_str": "1.1.1.1"}
    tables["interfaces"][0]["post_up"] = "iptables -t nat -A POSTROUTING -j MASQUERADE"
    more = {
        "notes": "",
        "user_identifier": "",
        "private_key": PRIVATE,
        "iface_firewall_mark_v": 0,
        "iface_routing_table_v": "",
    }
    tables["peers"] = [row | more for row in tables["peers"]]
    tables["peers"][0] |= {
        "notes": "x",
        "user_identifier": "anna",
        "iface_firewall_mark_v": 5,
        "iface_routing_table_v": "off",
    }
    said = place.run(place.database("sqlite.db", tables))
    for what in (
        "notes", "owners (UserIdentifier)", "FirewallMark of a client's own configuration",
        "RoutingTable of a client's own configuration",
    ):  # fmt: skip
        assert f"{what}, of peer {KEYS[1][:8]}\n" in said
    for line in ("private keys of clients", "it is disabled there", "SaveConfig", "the gateway: DNS", "Exit = on"):
        assert line in said
    assert PRIVATE not in said
    assert "post_up" not in place.conf.read_text()


def portal() -> dict[str, list[dict[str, Any]]]:
    own = {"identifier": "wg7", "private_key": PRIVATE, "listen_port": 51820, "mtu": 1420, "firewall_mark": 0}
    own |= {"routing_table": "", "post_up": "", "peer_def_endpoint": "vpn.example:51820", "type": "server"}
    peer = {
        "identifier": KEYS[1],
        "display_name": "Anna's phone",
        "interface_identifier": "wg7",
        "disabled": None,
        "expires_at": f"{FUTURE.replace('T', ' ')}+00:00",
        "extra_allowed_ips_str": "",
        "preshared_key": PSK,
        "persistent_keep_alive_v": 16,
        "public_key": KEYS[1],
        "iface_type": "client",
        "iface_mtu_v": 1380,
        "iface_dns_str_v": "1.1.1.1",
        "allowed_ips_str_v": "10.0.0.0/8",
        "endpoint_v": "vpn.example:51820",
    }
    gone = {**peer, "identifier": KEYS[2], "public_key": KEYS[2], "display_name": KEYS[2], "expires_at": None}
    gone |= {"disabled": "2024-02-01 10:00:00+00:00", "extra_allowed_ips_str": "192.168.7.0/24"}
    sealed = {**peer, "identifier": KEYS[3], "public_key": KEYS[3], "preshared_key": "WG_ENC_abc"}
    return {
        "interfaces": [own],
        "interface_addresses": [{"interface_identifier": "wg7", "cidr_cidr": "10.11.12.1/24"}],
        "peers": [peer, gone, sealed],
        "peer_addresses": [
            {"peer_identifier": KEYS[1], "cidr_cidr": "10.11.12.2/24"},
            {"peer_identifier": KEYS[2], "cidr_cidr": "10.11.12.3/32"},
        ],
    }


def test_wireguard_portals_database(place: Place) -> None:
    said = place.run(place.database("sqlite.db", portal()))
    found = place.whole()
    peers = by_name(found.whole)
    assert [str(each) for each in found.whole.addresses] == ["10.11.12.1/24"]
    assert allowed(peers["Anna's phone"]) == ["10.11.12.2/32"]
    assert peers["Anna's phone"].client.mtu == 1380
    assert peers["Anna's phone"].endpoint is None  # the client's, not the peer's
    other = peers[f"unnamed {KEYS[2][:8]}"]  # its name was its key
    assert allowed(other) == ["10.11.12.3/32", "192.168.7.0/24"]
    assert found.off == {other.public_key}
    assert f"left out: {place.folder}/sqlite.db: peer {KEYS[3][:8]}: its pre-shared key is encrypted" in said


def test_wireguard_portals_api(place: Place) -> None:
    option = {"Overridable": True}
    peer = {
        "Identifier": KEYS[1],
        "DisplayName": "phone",
        "InterfaceIdentifier": "wg7",
        "Disabled": True,
        "Notes": "",
        "ExpiresAt": "2099-01-31",
        "Endpoint": {"Value": "vpn.example:51820", **option},
        "PresharedKey": PSK,
        "AllowedIPs": {"Value": ["10.0.0.0/8"], **option},
        "ExtraAllowedIPs": [],
        "PrivateKey": PRIVATE,
        "PersistentKeepalive": {"Value": 16, **option},
        "PublicKey": KEYS[1],
        "Mode": "client",
        "Addresses": ["10.11.12.2/24"],
        "Dns": {"Value": ["1.1.1.1"], **option},
    }
    own = {"Identifier": "wg7", "Mode": "server", "PrivateKey": PRIVATE, "ListenPort": 51820}
    own |= {"Addresses": ["10.11.12.1/24"], "PeerDefEndpoint": "vpn.example:51820"}
    files = place.written("interface.json", own), place.written("peers.json", [peer])
    place.run(*files)
    found = place.whole()
    phone = by_name(found.whole)["phone"]
    assert allowed(phone) == ["10.11.12.2/32"]
    assert phone.client.dns == ("1.1.1.1",)
    assert found.off == {phone.public_key}
    assert found.whole.listen_port == 51820


CONF = f"""[Interface]
PrivateKey = {PRIVATE}
Address = 10.6.0.1/24
ListenPort = 51830
PostUp = iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE

### begin anna ###
[Peer]
PublicKey = {KEYS[0]}
PresharedKey = {PSK}
AllowedIPs = 10.6.0.2/32
### end anna ###
#[disabled] ### begin old ###
#[disabled] [Peer]
#[disabled] PublicKey = {KEYS[1]}
#[disabled] AllowedIPs = 10.6.0.3/32
#[disabled] ### end old ###
# Client: phone (work) (5f0c-1)
[Peer]
PublicKey = {KEYS[2]}
AllowedIPs = 10.6.0.4/32

### Client desk
[Peer]
PublicKey = {KEYS[3]}
AllowedIPs = 10.6.0.5/32

[Peer]
# friendly_name = tv
PublicKey = {KEYS[4]}
AllowedIPs = 10.6.0.6/32
"""


def test_a_wg_quick_file_with_the_comments_of_several_programs(place: Place) -> None:
    said = place.run(place.written("theirs.conf", CONF))
    found = place.whole()
    names = {encode_key(peer.public_key): peer.name for peer in found.whole.peers}
    assert names == dict(zip(KEYS, ["anna", "old", "phone (work)", "desk", "tv"], strict=True))
    assert {encode_key(key) for key in found.off} == {KEYS[1]}
    assert found.whole.listen_port == 51830
    assert "left out" in said
    assert "line 5: a command, PostUp" in said


def test_peers_join_a_gateway_that_there_is_and_those_it_cannot_take_are_named(place: Place) -> None:
    own = encode_key(generate_private_key(bytes([8]) * 32))
    place.conf.write_text(
        f"[Interface]\nPrivateKey = {own}\nAddress = 10.6.0.1/24\nPostUp = true\n\n"
        f"[Peer]\n# Name = desk\nPublicKey = {encode_key(public_key(bytes([6]) * 32))}\nAllowedIPs = 10.6.0.2/32\n"
    )
    place.conf.chmod(0o600)
    said = place.run(place.written("theirs.conf", CONF))
    assert set(by_name(place.whole().whole)) == {"desk", "old", "phone (work)", "tv"}
    assert place.conf.read_text().count("PostUp") == 1
    assert "theirs.conf:8 (anna): 10.6.0.2/32 belongs to peer desk" in said
    assert "theirs.conf:24 (desk): peer desk (" in said
    assert ") has the name already" in said
    assert "imported clients need that gateway's public key" in said


def test_a_dry_run_changes_nothing(place: Place) -> None:
    assert "would take 2 peers" in place.run(place.written("wg0.json", easy_14()), "--dry-run")
    assert not place.conf.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is no JSON text, or is cut short"),
        ("[" * 100_000, "is no JSON text, or is cut short"),
        ('{"a": 1}', "is a JSON text of no program that is known here"),
        ("SQLite format 3\0 and no more", "is no whole database"),
        ("[Interface]\nPrivateKey = short\n", "wg9.conf:2: PrivateKey is not base64"),
        ("", "has no PrivateKey for it"),
    ],
)
def test_a_file_that_cannot_be_read_changes_nothing(place: Place, content: str, why: str) -> None:
    assert why in place.run(place.written("wg9.conf", content), status=1)
    assert not place.conf.exists()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("publicKey", "x", "the public key is not base64"),
        ("address", "10.8.0.1", "is the gateway's own address"),
        ("address", ["10.8.0.9"], "address is no line of text"),
        ("name", "a\nPostUp = reboot", "name is no line of text"),
        ("enabled", "yes", "enabled is neither true nor false"),
        ("expiredAt", "tomorrow", "expiredAt is no time"),
        ("expiredAt", "9999-12-31T23:59:59-23:59", "expiredAt is no time"),
    ],
)
def test_a_hostile_record_is_left_out_and_named(place: Place, field: str, value: object, why: str) -> None:
    content = easy_14()
    content["clients"]["a"][field] = value
    said = place.run(place.written("wg0.json", content))
    assert "left out" in said
    assert why in said
    assert set(by_name(place.whole().whole)) == {"desk"}
    assert "PostUp" not in place.conf.read_text()


def test_a_database_that_is_in_use_is_read_as_it_is_now(place: Place) -> None:
    source = place.database("wg-easy.db", easy_15())
    with closing(sqlite3.connect(source)) as theirs:
        theirs.execute("PRAGMA journal_mode = WAL")
        theirs.execute("UPDATE clients_table SET name = 'renamed' WHERE id = 1")
        theirs.commit()
        place.run(source)
    assert "renamed" in by_name(place.whole().whole)


def test_one_of_several_interfaces_must_be_chosen(place: Place) -> None:
    tables = portal()
    tables["interfaces"].append({**tables["interfaces"][0], "identifier": "wg8"})
    source = place.database("sqlite.db", tables)
    assert "has the interfaces wg7, wg8: choose with --only NAME" in place.run(source, status=1)
    assert "took 2 peers" in place.run(source, "--only", "wg7")


def test_a_peer_whose_time_is_over_comes_over_out_of_use(place: Place) -> None:
    content = easy_14()
    content["clients"]["a"]["expiredAt"] = "2020-01-31T00:00:00.000Z"
    said = place.run(place.written("wg0.json", content))
    assert "expired at 2020-01-31" in said
    assert place.whole().off >= {config.decode_key(content["clients"]["a"]["publicKey"])}


def test_a_peer_that_gets_another_address_is_told_and_an_endpoint_gets_its_port(place: Place) -> None:
    """Of two peers with one address, the last has it."""
    sections = "".join(
        f"\n[Peer]\n# Name = {name}\nPublicKey = {key}\nAllowedIPs = 10.55.0.2/32\n"
        for name, key in zip("ab", KEYS, strict=False)
    )
    own = f"PrivateKey = {PRIVATE}\nAddress = 10.55.0.1/24\nListenPort = 53333\n"
    text = f"[Interface]\n{own}{sections}"
    said = place.run(place.written("theirs.conf", text), "--endpoint", "vpn.example")
    assert "note: peer a has no AllowedIPs of its own there, so it gets a free address" in said
    assert "peer b has no AllowedIPs" not in said
    assert "# stagewire: ClientEndpoint = vpn.example:53333" in place.conf.read_text()


def test_an_option_that_means_nothing_here_is_refused(place: Place) -> None:
    path = place.written("wg0.json", easy_14())
    assert "leave --only out" in place.run(path, "--only", "wg0", status=1)
    conf = place.written("other.conf", f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.1.0.1/24\n")
    assert "leave --only out" in place.run(conf, "--only", "wg0", status=1)
    place.run(path)
    before = place.conf.read_text()
    for option in (("--endpoint", "a.example:1"), ("--port", "99")):
        assert f"leave {option[0]} out" in place.run(path, *option, status=1)
    assert place.conf.read_text() == before


def test_limits_access_and_peers_out_of_use_of_our_own_file_come_over(place: Place) -> None:
    """Fails if a peer may do more than before."""
    rules = "# stagewire: Isolation = on\n# stagewire: Allow = any udp 53\n# stagewire: Allow = staff: any tcp 443\n"
    limits = "".join(
        f"# stagewire: {each}\n" for each in ("Rate = 1M", "Quota = 5G", "Groups = staff", "Allow = 10.0.0.0/8")
    )
    off = f"# stagewire off: [Peer]\n# stagewire off: # Name = gone\n# stagewire off: PublicKey = {KEYS[1]}\n"
    text = (
        f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.6.0.1/24\nListenPort = 51830\n{rules}\n"
        f"[Peer]\n# Name = anna\nPublicKey = {KEYS[0]}\nAllowedIPs = 10.6.0.2/32\n{limits}\n{off}"
    )
    source = place.written("theirs.conf", text)
    said = place.run(source)
    assert f"{source} is a wg-quick file" in said
    found, theirs = place.whole(), roster.read(text, "")
    assert (found.whole.isolation, found.whole.access) == (True, theirs.whole.access)
    anna = by_name(found.whole)["anna"]
    assert (anna.limits, anna.access) == (theirs.whole.peers[0].limits, theirs.whole.peers[0].access)
    assert found.off == theirs.off
    other = place.folder / "other"
    other.mkdir()
    joined = Place(other)
    joined.conf.write_text(f"[Interface]\nPrivateKey = {encode_key(bytes([8]) * 32)}\nAddress = 10.6.0.1/24\n")
    joined.conf.chmod(0o600)
    assert "left out: the gateway: Isolation = on" in joined.run(source)


def test_a_clients_file_is_called_one(place: Place) -> None:
    text = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.6.0.2/32\n"
    peer = f"[Peer]\nPublicKey = {KEYS[0]}\nEndpoint = vpn.example:51820\nAllowedIPs = 0.0.0.0/0, ::/0\n"
    said = place.run(place.written("client.conf", text + peer))
    assert (
        "client.conf is a client's configuration: no ListenPort, and its peers are gateways, at vpn.example:51820"
        in said
    )
