"""What wg-quick and `wg` take, and what it comes to; `tests/system/test_corpus.py` holds it against them."""

import re
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from tests.config.example import EXAMPLE, KEY

from stagewire.config import ConfigError, HostPort, InterfaceConfig, encode_key, parse, public_key
from stagewire.config.findings import MAX_WARNINGS
from stagewire.config.lookups import of_this_host
from stagewire.config.tolerant import Lookups

PRIVATE = bytes([8] + [1] * 30 + [64])
OWN = encode_key(public_key(PRIVATE))
KEYS = [bytes([n] * 31 + [32]) for n in range(1, 6)]
ONE, TWO, THREE, *_ = map(encode_key, KEYS)
INTERFACE = f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n"  # two lines
PEER = f"{INTERFACE}[Peer]\nPublicKey = {ONE}\n"  # four
LOOKUPS = Lookups({"main": 254, "isp": 7}.get, {"openvpn": 1194}.get)


def read(text: str) -> InterfaceConfig:
    return parse(text, "wg0.conf", lookups=LOOKUPS)


def warnings(text: str) -> list[tuple[int | None, str]]:
    return [(warning.line, warning.message) for warning in read(text).warnings]


def refusal(text: str) -> str:
    """What is wrong with a text; nothing of one that is taken."""
    try:
        read(text)
    except ConfigError as error:
        return str(error)
    return ""


def strict_mistakes(text: str) -> list[int | None]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "wg0.conf", strict=True, lookups=LOOKUPS)
    return [mistake.line for mistake in caught.value.mistakes]


@pytest.mark.parametrize("key", ["PreUp", "PostUp", "PreDown", "PostDown", "DNS", "MTU", "Table", "Address"])
def test_an_empty_key_is_as_if_it_were_not_there(key: str) -> None:
    for text in (f"{INTERFACE}{key} =\n", f"{INTERFACE}{key} = # none\n"):
        assert read(text) == read(INTERFACE)
        assert warnings(text) == []
        assert strict_mistakes(text) == [3]


@pytest.mark.parametrize("key", ["PrivateKey", "ListenPort", "FwMark", "SaveConfig"])
def test_other_keys_need_a_value(key: str) -> None:
    with pytest.raises(ConfigError, match=f":2: {key} has no value"):
        read(f"[Interface]\n{key} =\n")


def test_an_empty_key_takes_an_earlier_value_away() -> None:
    config = read(f"{INTERFACE}MTU = 1400\nTable = off\nMTU =\nTable =\n")
    assert (config.mtu, config.table) == (None, "auto")


def test_no_private_key() -> None:
    text = "[Interface]\nPostUp = wg set %i private-key /etc/wireguard/key\n"
    assert read(text).private_key is None
    [(line, message)] = warnings(text)
    assert (line, "has no PrivateKey" in message) == (1, True)


def test_a_private_key_of_zeros_is_none() -> None:
    text = f"[Interface]\nPrivateKey = {encode_key(bytes(32))}\n"
    assert read(text).private_key is None
    assert [line for line, _ in warnings(text)] == [2]


def test_no_interface_section() -> None:
    config = read(f"[Peer]\nPublicKey = {ONE}\n")
    assert [peer.public_key for peer in config.peers] == KEYS[:1]
    assert [str(warning) for warning in config.warnings] == ["wg0.conf: there is no [Interface] section"]


@pytest.mark.parametrize(
    ("value", "table"),
    [
        ("main", 254),
        ("isp", 7),
        ("0x1f", 31),
        ("0XCA6C", 51820),
        ("010", 8),
        ("0", 254),
        ("OFF", "off"),
        ("Auto", "auto"),
    ],
)
def test_tables(value: str, table: int | str) -> None:
    assert read(f"{INTERFACE}Table = {value}\n").table == table


@pytest.mark.parametrize("value", ["nowhere", "-1", "0x", "1x", "08", "0x1ffffffff", "4294967296"])
def test_no_tables(value: str) -> None:
    with pytest.raises(ConfigError, match=":3: Table must be auto, off"):
        read(f"{INTERFACE}Table = {value}\n")


@pytest.mark.parametrize(("value", "mtu"), [("68", 68), ("0x578", 1400), ("65535", 65535)])
def test_mtus(value: str, mtu: int) -> None:
    assert read(f"{INTERFACE}MTU = {value}\n").mtu == mtu


def test_tables_of_this_host(tmp_path: Path) -> None:
    """In ip(8)'s files; names that it always knows need none."""
    lookups = of_this_host([tmp_path / "none", tmp_path])
    assert [lookups.table(name) for name in ("main", "local", "default", "isp")] == [254, 255, 253, None]
    (tmp_path / "rt_tables").write_bytes(b"# caf\xe9\n\n7\tisp\n0x8 lab # no\nx y\n9\n")
    (tmp_path / "rt_tables.d").mkdir()
    (tmp_path / "rt_tables.d" / "a.conf").write_text("10 other\n")
    (tmp_path / "rt_tables.d" / "a.txt").write_text("11 none\n")
    assert [lookups.table(name) for name in ("isp", "lab", "other", "none", "main")] == [7, 8, 10, None, 254]


def test_services_of_this_host() -> None:
    lookups = of_this_host([])
    assert (lookups.service("domain"), lookups.service("nothing"), lookups.service("a\udcff")) == (53, None, None)


def test_single_keys_given_twice() -> None:
    text = f"{INTERFACE}MTU = 1400\nmtu = 1300\nSaveConfig = true\nSaveConfig = false\n"
    assert (read(text).mtu, read(text).save_config) == (1300, False)
    assert warnings(text) == [
        (4, "MTU is already given in line 3; the last one counts"),
        (6, "SaveConfig is already given in line 5; the last one counts"),
    ]
    assert strict_mistakes(text) == [4, 6]


def test_a_second_interface_section() -> None:
    text = f"{PEER}\n[Interface]\nListenPort = 7\nAddress = 10.0.0.1/24\n[Peer]\nPublicKey = {TWO}\n"
    config = read(text)
    assert (config.private_key, config.listen_port, len(config.addresses), len(config.peers)) == (PRIVATE, 7, 1, 2)
    assert warnings(text) == [(6, "a second [Interface], the first is in line 1; they count as one")]


def test_latin_1_and_other_bytes_in_comments_and_commands() -> None:
    text = f"# caf\udce9\n{INTERFACE}PostUp = echo \udce9 # \udcff\n"
    assert read(text).post_up == ("echo \udce9",)
    assert warnings(text) == []
    assert strict_mistakes(text) == [1, 4]


def test_byte_order_mark_crlf_and_tabs() -> None:
    text = f"\ufeff{PEER}".replace("\n", "\t\r\n").replace(" = ", "\t=\t")
    assert read(text) == read(PEER)
    assert warnings(text) == []


def test_our_own_key_is_no_peer() -> None:
    text = f"{PEER}AllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey = {OWN}\nAllowedIPs = 10.0.0.0/8, ::/0\n"
    assert read(text) == read(f"{PEER}AllowedIPs = 10.0.0.0/8\n")
    [(line, message)] = warnings(text)
    assert line == 7
    assert "our own" in message


def test_a_point_of_low_order() -> None:
    text = f"{INTERFACE}[Peer]\nPublicKey = {encode_key(bytes(32))}\n"
    assert [peer.public_key for peer in read(text).peers] == [bytes(32)]
    assert [line for line, _ in warnings(text)] == [4]


def test_a_prefix_of_two_peers_is_the_laters() -> None:
    text = f"{PEER}AllowedIPs = 10.0.0.0/8, ::/0\n[Peer]\nPublicKey = {TWO}\nAllowedIPs = 10.1.2.3/8\n"
    first, second = read(text).peers
    assert (first.allowed_ips, second.allowed_ips) == ((ip_network("::/0"),), (ip_network("10.0.0.0/8"),))
    [(line, message)] = warnings(text)
    assert line == 8
    assert "also belongs to the [Peer] in line 3 (its line 5); the later one gets it" in message


def test_a_peer_given_twice() -> None:
    """The later section's allowed-IPs replace the earlier's; what it doesn't say stays."""
    text = f"{PEER}AllowedIPs = 10.0.0.0/8\nEndpoint = 192.0.2.1:1\nPresharedKey = {THREE}\nPersistentKeepalive = 9\n"
    text += f"[Peer]\nPublicKey = {TWO}\n[Peer]\nPublicKey = {ONE}\nAllowedIPs = ::/0\nPersistentKeepalive = off\n"
    first, second = read(text).peers
    assert (first.public_key, second.public_key) == tuple(KEYS[:2])
    assert first.allowed_ips == (ip_network("::/0"),)
    assert first.endpoint == HostPort("192.0.2.1", 1)
    assert (first.preshared_key, first.persistent_keepalive) == (KEYS[2], 0)
    assert [line for line, _ in warnings(text)] == [12]


def test_a_prefix_that_comes_back() -> None:
    """Taken by another, and given up again as its section is replaced: nobody has it."""
    text = f"{PEER}AllowedIPs = ::/0\n[Peer]\nPublicKey = {TWO}\nAllowedIPs = ::/0\n[Peer]\nPublicKey = {TWO}\n"
    assert [peer.allowed_ips for peer in read(text).peers] == [(), ()]


def test_prefixes_with_a_sign() -> None:
    text = f"{PEER}AllowedIPs = +10.0.0.0/8, ::/0, -::/0\n"
    [peer] = read(text).peers
    assert peer.allowed_ips == (ip_network("10.0.0.0/8"),)
    text += f"[Peer]\nPublicKey = {ONE}\nAllowedIPs = +10.9.0.0/16\n"
    [peer] = read(text).peers
    assert peer.allowed_ips == (ip_network("10.0.0.0/8"), ip_network("10.9.0.0/16"))


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        ("192.0.2.1 : 51820", "192.0.2.1", 51820),
        ("vpn.example.net\t:\t1", "vpn.example.net", 1),
        ("[ fd00::1 ] : 7", "fd00::1", 7),
        ("fd00::1:51820", "fd00::1", 51820),
        ("[192.0.2.1]:7", "192.0.2.1", 7),
        ("[vpn.example.net]:7", "vpn.example.net", 7),
        ("192.0.2.1:openvpn", "192.0.2.1", 1194),
        ("[fe80::1 %eth0]:007", "fe80::1%eth0", 7),
    ],
)
def test_endpoints(value: str, host: str, port: int) -> None:
    [peer] = read(f"{PEER}Endpoint = {value}\n").peers
    assert peer.endpoint == HostPort(host, port)
    assert strict_mistakes(f"{PEER}Endpoint = {value}\n") == [5]


@pytest.mark.parametrize(
    "value", ["192.0.2.1", "192.0.2.1:", "[fd00::1]", "[fd00::1:7", "[fd00::1]7", "[]:7", "a:nothing", ":7", "10.1:7"]
)
def test_no_endpoints(value: str) -> None:
    with pytest.raises(ConfigError, match=":5: Endpoint must"):
        read(f"{PEER}Endpoint = {value}\n")


def test_spaces_where_wg_takes_them_out() -> None:
    text = f"[ Interface ]\nPrivate Key = {encode_key(PRIVATE)[:9]} {encode_key(PRIVATE)[9:]}\nListenPort = 5 1820\n"
    text += f"[Peer ]\nPublic\tKey = {ONE}\nAllowed IPs = 10.0.0.0 / 8 , ::/ 0\nPersistent Keepalive = 2 5\n"
    config = read(text)
    [peer] = config.peers
    assert (config.private_key, config.listen_port, peer.persistent_keepalive) == (PRIVATE, 51820, 25)
    assert peer.allowed_ips == (ip_network("10.0.0.0/8"), ip_network("::/0"))


def test_spaces_where_wg_quick_does_not_take_them() -> None:
    with pytest.raises(ConfigError, match="unknown key, did you mean PostUp"):
        read(f"{INTERFACE}Post Up = true\n")


def test_addresses() -> None:
    text = f"{INTERFACE}Address = 10.0.0.2/255.255.255.0, 10.0.0.2/24 10.0.0.2/16,,fd00::1/64\nAddress = ,\n"
    text += "Address = fd00::1\n"
    assert read(text).addresses == tuple(map(ip_interface, ("10.0.0.2/24", "10.0.0.2/16", "fd00::1/64")))
    assert [line for line, _ in warnings(text)] == [3, 3, 5]
    with pytest.raises(ConfigError, match=":3: Address must be"):
        read(f"{INTERFACE}Address = 10.0.0.2/255.0.255.0\n")


def test_dns() -> None:
    text = f"{INTERFACE}DNS = 192.0.2.53, ~corp.example ~. example.net,2001:db8::53\n"
    assert read(text).dns == ("192.0.2.53", "~corp.example", "~.", "example.net", "2001:db8::53")
    assert warnings(text) == []
    odd = f"{INTERFACE}DNS = 1.2.3, ;reboot\n"
    assert read(odd).dns == ("1.2.3", ";reboot")
    assert [line for line, _ in warnings(odd)] == [3, 3]
    assert warnings(f"{INTERFACE}DNS = example.net\n") == [(3, "DNS names no server's address, so it changes nothing")]


def test_an_mtu_too_small_for_ipv6_is_taken() -> None:
    text = f"{INTERFACE}MTU = 1200\nAddress = fd00::1/64\n"
    assert (read(text).mtu, len(read(text).addresses)) == (1200, 1)
    assert [line for line, _ in warnings(text)] == [3]


@pytest.mark.parametrize(
    "line",
    [
        "# Stagewire: see our wiki",
        "# stagewire: RekeyAfterTime = soon",
        "# stagewire: RekeyAfterTime =",
        "# stagewire: ClientMTU = 1",
        "MTU = 1420 # stagewire: RekeyAfterTime = 60",
    ],
)
def test_a_comment_that_stagewire_does_not_understand_is_ignored(line: str) -> None:
    text = f"{INTERFACE}{line}\n"
    assert read(text).rekey_after_time == 120
    [(number, message)] = warnings(text)
    assert number == 3
    assert "ignored" in message
    assert strict_mistakes(text) == [3]


def test_very_many_warnings() -> None:
    found = warnings(INTERFACE + "MTU = 1400\n" * (MAX_WARNINGS + 6))
    assert len(found) == MAX_WARNINGS + 1
    assert found[-1] == (None, "5 more warnings are not listed")


@pytest.mark.parametrize("key", KEY.findall(EXAMPLE.read_text()))
def test_keys_of_the_example_are_refused_by_name(key: str) -> None:
    """In the one place where each stands."""
    texts = (
        f"[Interface]\nPrivateKey = {key}\n",
        f"{PEER}PresharedKey = {key}\n",
        f"{INTERFACE}[Peer]\nPublicKey = {key}\n",
    )
    says = [refusal(text) for text in texts]
    assert sum("is the example's published key: " in each for each in says) >= 1
    assert not any(key in each for each in says)


@pytest.mark.parametrize(
    "key", ["yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=", "gI6EdUSYvn8ugXOt8QQD6Yc+JyiZxIhp3GInSWRfWGE="]
)
def test_private_keys_of_the_manuals_are_refused_by_name(key: str) -> None:
    """However their bits are set that don't count; and whoever is called by their public keys."""
    for spelt in (key, key[:-2] + {"k": "l", "E": "F"}.get(key[-2], key[-2]) + "="):
        with pytest.raises(ConfigError, match=":2: PrivateKey is"):
            read(f"[Interface]\nPrivateKey = {spelt}\n")


def test_every_key_that_this_repository_publishes_is_refused() -> None:
    """In its documents and examples: whoever copies one gets told."""
    root = EXAMPLE.parents[2]
    files = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("deploy/examples/**/*")]
    published = {key for file in files if file.is_file() for key in KEY.findall(file.read_text(errors="replace"))}
    assert len(published) >= 6
    for key in published:
        text = f"[Interface]\nPrivateKey = {key}\n[Peer]\nPublicKey = {key}\nPresharedKey = {key}\n"
        with pytest.raises(ConfigError, match="published"):
            read(text)


def test_warnings_are_no_part_of_what_a_file_says() -> None:
    plain, twice = read(f"{INTERFACE}MTU = 1400\n"), read(f"{INTERFACE}MTU = 1300\nMTU = 1400\n")
    assert plain == twice
    assert (len(plain.warnings), len(twice.warnings)) == (0, 1)
    assert not re.search("warning", repr(twice))
