"""Every mistake is found, in its line, all of them at once, and no message tells a secret."""

import pytest

from stagewire.config import ConfigError, encode_key, parse, public_key

PRIVATE = encode_key(bytes([8] + [1] * 30 + [64]))
OWN = encode_key(public_key(bytes([8] + [1] * 30 + [64])))
ONE, TWO = (encode_key(bytes([n] * 31 + [32])) for n in (1, 2))
ORDER_8 = "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA="

INTERFACE = f"[Interface]\nPrivateKey = {PRIVATE}\n"  # two lines
PEER = f"{INTERFACE}[Peer]\nPublicKey = {ONE}\n"  # four


def mistakes_in(text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "wg0.conf", strict=True)
    assert all(mistake.path == "wg0.conf" for mistake in caught.value.mistakes)
    return [(mistake.line, mistake.message) for mistake in caught.value.mistakes]


def only_mistake_in(text: str) -> tuple[int | None, str]:
    [mistake] = mistakes_in(text)
    return mistake


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "there is no [Interface] section"),
        (f"[Peer]\nPublicKey = {ONE}\n", None, "there is no [Interface] section"),
        ("\n[Interface]\nListenPort = 1\n", 2, "has no PrivateKey"),
        (f"{INTERFACE}[Peer]\n", 3, "has no PublicKey"),
        (f"{INTERFACE}[Peer]\n[Peer]\nPublicKey = {ONE}\n", 3, "has no PublicKey"),
        (f"{INTERFACE}[Interface]\nMTU = 1420\n", 3, "a second [Interface], the first is in line 1"),
        (
            f"{INTERFACE}[Rabbit]\nAny = thing\nno sense\n",
            3,
            "unknown section 'Rabbit': only [Interface] and [Peer]",
        ),
        (f"{INTERFACE}[Pear]\nPublicKey = {ONE}\n", 3, "unknown section 'Pear', did you mean [Peer]?"),
        (f"{INTERFACE}[Peer\nPublicKey = {ONE}\n", 3, "write [Peer]"),
        (f"[Interfce]\nPrivateKey = {PRIVATE}\n", 1, "did you mean [Interface]?"),
        (f"MTU = 1420\n{INTERFACE}", 1, "MTU stands before any section, it belongs in [Interface]"),
        (f"# stagewire: ResponseTimestamp = on\n{INTERFACE}", 1, "before any section, it belongs in [Peer]"),
        (f"{INTERFACE}Endpoint = a:1\n", 3, "Endpoint belongs in [Peer]"),
        (f"{PEER}MTU = 1420\n", 5, "MTU belongs in [Interface]"),
        (f"{PEER}# stagewire: RekeyAfterTime = 60\n", 5, "RekeyAfterTime belongs in [Interface]"),
        (f"{INTERFACE}\n\nLisenPort = 1\n", 5, "unknown key 'LisenPort', did you mean ListenPort?"),
        (f"{PEER}Allowed IPs = ::/0\n", 5, "unknown key, did you mean AllowedIPs?"),
        (f"{INTERFACE}Rabbit = 1\n", 3, "unknown key 'Rabbit'"),
        (
            f"{INTERFACE}# stagewire: RekeyAfter = 60\n",
            3,
            "unknown key 'RekeyAfter', did you mean RekeyAfterTime?",
        ),
        (f"{INTERFACE}# stagewire: MTU = 1420\n", 3, "MTU must not stand in a comment"),
        (f"{INTERFACE}RekeyAfterTime = 60\n", 3, "write '# stagewire: RekeyAfterTime = ...'"),
        (f"{INTERFACE}MTU = 1420 # stagewire: RekeyAfterTime = 60\n", 3, "needs a line of its own"),
        (f"{INTERFACE}# stagewire: RekeyAfterTime\n", 3, "is neither"),
        (f"{INTERFACE}MTU 1420\n", 3, "is neither 'Key = value', nor a section, nor a comment"),
        (f"{INTERFACE}= 1420\n", 3, "is neither"),
        (f"{INTERFACE}MTU = 1420\n\nmtu = 1420\n", 5, "MTU is already given in line 3"),
        (f"{INTERFACE}PrivateKey = {PRIVATE}\n", 3, "PrivateKey is already given in line 2"),
        (f"{PEER}PublicKey = {TWO}\n", 5, "PublicKey is already given in line 4"),
        (f"{INTERFACE}MTU =\n", 3, "MTU has no value"),
        (f"{INTERFACE}PostUp = # echo\n", 3, "PostUp has no value"),
        (f"{PEER}Endpoint =  \n", 5, "Endpoint has no value"),
        ("[Interface]\nPrivateKey = \n", 2, "PrivateKey has no value"),
        (f"{INTERFACE}DNS = 1.1.1.1\0\n", 3, "holds a NUL byte"),
        (f"{INTERFACE}[Peer]\0\nPublicKey = {ONE}\n", 3, "holds a NUL byte"),
        ("\udcff\udcfe" + "".join(f"{letter}\0" for letter in PEER), 1, "is UTF-16: save the file as plain text"),
        (f"{INTERFACE}Jc = 4\n", 3, "unknown key 'Jc': it is AmneziaWG's"),
        (f"{INTERFACE}# caf\udce9\n", 3, "is not UTF-8"),
    ],
)
def test_lines_and_sections(text: str, line: int | None, says: str) -> None:
    found, message = only_mistake_in(text)
    assert found == line
    assert says in message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("!" + PRIVATE[1:], "is not base64"),
        (PRIVATE[:-1], "is not base64"),
        (f"{PRIVATE[:9]} {PRIVATE[9:]}", "is not base64"),
        ("ключ", "is not base64"),
        (bytes(range(32)).hex(), "is in hexadecimal"),
        (encode_key(bytes(31)), "is 31 bytes long, a key has 32"),
        (encode_key(bytes(33)), "is 33 bytes long, a key has 32"),
        (PRIVATE[:-2] + "B=", "bits are set after its end"),
        (encode_key(bytes(32)), "is all zeros"),
    ],
)
def test_private_keys(value: str, says: str) -> None:
    line, message = only_mistake_in(f"[Interface]\nPrivateKey = {value}\n")
    assert line == 2
    assert says in message
    assert value not in message


@pytest.mark.parametrize("name", ["PublicKey", "PresharedKey"])
def test_keys_of_peers(name: str) -> None:
    peer = "[Peer]\n" if name == "PublicKey" else f"[Peer]\nPublicKey = {ONE}\n"
    found = mistakes_in(f"{INTERFACE}{peer}{name} = {ONE[:-4]}\n[Peer]\nPublicKey = {TWO}\nPresharedKey = x\n")
    assert found[0] == (3 + peer.count("\n"), f"{name} is 30 bytes long, a key has 32")
    assert found[1] == (
        6 + peer.count("\n"),
        "PresharedKey is not base64: a key is 44 characters of it, the last one '='",
    )


@pytest.mark.parametrize(
    "key",
    [
        bytes(32),
        (1).to_bytes(32, "little"),
        (2**255 - 20).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),
        (2**255 - 18).to_bytes(32, "little"),
        (2**255).to_bytes(32, "little"),
    ],
)
def test_public_keys_of_low_order(key: bytes) -> None:
    line, message = only_mistake_in(f"{INTERFACE}[Peer]\nPublicKey = {encode_key(key)}\n")
    assert line == 4
    assert "low order" in message


def test_a_point_of_order_eight() -> None:
    assert "low order" in only_mistake_in(f"{INTERFACE}[Peer]\nPublicKey = {ORDER_8}\n")[1]


def test_our_own_public_key() -> None:
    line, message = only_mistake_in(f"{INTERFACE}[Peer]\nPublicKey = {OWN}\n")
    assert line == 4
    assert "our own" in message


def test_a_peer_that_is_there_twice() -> None:
    text = f"{PEER}AllowedIPs = ::/0\n\n[Peer]\nAllowedIPs = ::/0\nPublicKey = {ONE}\n"
    says = "the [Peer] in line 3 and the [Peer] in line 7 have the same PublicKey; what the later one says counts"
    assert mistakes_in(text) == [(9, says)]


def test_a_prefix_of_two_peers() -> None:
    text = f"{PEER}AllowedIPs = ::/0\nAllowedIPs = 10.0.0.1/8\n"
    text += f"[Peer]\nPublicKey = {TWO}\nAllowedIPs = 1.1.1.1, 10.2.0.0/8\n"
    says = "10.0.0.0/8 of the [Peer] in line 7 also belongs to the [Peer] in line 3 (its line 6); the later one gets it"
    assert mistakes_in(text) == [(9, says)]


def test_a_prefix_of_two_peers_without_keys() -> None:
    text = f"{INTERFACE}[Peer]\nAllowedIPs = ::/0\n[Peer]\nAllowedIPs = ::/0\n"
    assert [line for line, _ in mistakes_in(text)] == [3, 5, 6]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ListenPort = 65536", "from 0 to 65535, not '65536'"),
        ("ListenPort = -1", "from 0 to 65535"),
        ("ListenPort = ٣", "from 0 to 65535"),
        ("ListenPort = 1_0", "from 0 to 65535"),
        ("ListenPort = " + "9" * 5000, "from 0 to 65535"),
        ("FwMark = 4294967296", "0xffffffff"),
        ("FwMark = 0x100000000", "0xffffffff"),
        ("FwMark = on", "0xffffffff"),
        ("FwMark = ff", "0xffffffff"),
        ("MTU = 575", "from 576 to 65535"),
        ("MTU = 65536", "from 576 to 65535"),
        ("MTU = 1420.0", "from 576 to 65535"),
        ("Table = 0", "auto, off"),
        ("Table = main", "auto, off"),
        ("Table = 4294967296", "auto, off"),
        ("SaveConfig = yes", "true or false, not 'yes'"),
        ("# stagewire: RekeyAfterTime = 4.999", "from 5 to 120, not '4.999'"),
        ("# stagewire: RekeyAfterTime = 120.1", "from 5 to 120"),
        ("# stagewire: RekeyAfterTime = nan", "from 5 to 120"),
        ("# stagewire: RekeyAfterTime = 6e1", "from 5 to 120"),
        ("Address = 10.0.0.1/33", "with its prefix length"),
        ("Address = 10.0.0/24", "with its prefix length"),
        ("Address = fe80::1%eth0/64", "with its prefix length"),
        ("Address = 10.0.0.1/255.0.0.0", "with its prefix length"),
        ("Address = ,", "Address has no value"),
        ("DNS = 1.2.3", "search domain"),
        ("DNS = 1.2.3.4;reboot", "search domain"),
        ("DNS = -a.net", "search domain"),
    ],
)
def test_values_of_the_interface(line: str, says: str) -> None:
    found, message = only_mistake_in(f"{INTERFACE}\n{line}\n")
    assert found == 4
    assert says in message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("AllowedIPs = 10.0.0.0/33", "must be a prefix"),
        ("AllowedIPs = ::/129", "must be a prefix"),
        ("AllowedIPs = 10.0.0.0/255.0.0.0", "must be a prefix"),
        ("AllowedIPs = 10.0.0.0/", "must be a prefix"),
        ("AllowedIPs = 010.0.0.0/8", "must be a prefix"),
        ("AllowedIPs = 10.0.0.0/8,", "not an empty text"),
        ("AllowedIPs = 10.0.0.0/8 11.0.0.0/8", "must be a prefix"),
        ("AllowedIPs = example.net", "must be a prefix"),
        ("AllowedIPs = fe80::%eth0/64", "must be a prefix"),
        ("AllowedIPs = 10.0.0.0/٨", "must be a prefix"),
        ("Endpoint = 192.0.2.1", "must be host:port"),
        ("Endpoint = 192.0.2.1:0", "port from 1 to 65535, not '0'"),
        ("Endpoint = 192.0.2.1:65536", "port from 1 to 65535"),
        ("Endpoint = 192.0.2.1:http", "port from 1 to 65535"),
        ("Endpoint = 192.0.2.1:", "port from 1 to 65535"),
        ("Endpoint = 192.0.2.256:1", "begin with an address"),
        ("Endpoint = fd00::1:51820", "in brackets"),
        ("Endpoint = [192.0.2.1]:1", "in its brackets"),
        ("Endpoint = [fd00::1%a b]:1", "in its brackets"),
        ("Endpoint = [fd00::g]:1", "in its brackets"),
        ("Endpoint = :1", "begin with an address"),
        ("Endpoint = a b:1", "begin with an address"),
        ("Endpoint = a..b:1", "begin with an address"),
        ("Endpoint = " + "a." * 127 + "a.b:1", "begin with an address"),
        ("PersistentKeepalive = 65536", "from 0 to 65535"),
        ("PersistentKeepalive = -1", "from 0 to 65535"),
        ("PersistentKeepalive = on", "must be off"),
        ("# stagewire: ResponseTimestamp = yes", "must be on or off, not 'yes'"),
    ],
)
def test_values_of_a_peer(line: str, says: str) -> None:
    found, message = only_mistake_in(f"{PEER}\n{line}\n")
    assert found == 6
    assert says in message


def test_an_address_given_twice() -> None:
    text = f"{INTERFACE}Address = 10.0.0.1/24\nAddress = fd00::1/64, 10.0.0.1/16\n"
    assert mistakes_in(text) == [(4, "Address 10.0.0.1 is already given in line 3")]


def test_an_mtu_too_small_for_ipv6() -> None:
    text = f"{INTERFACE}MTU = 1279\nAddress = 10.0.0.1/24\n"
    assert parse(text, "wg0.conf").mtu == 1279
    assert mistakes_in(f"{text}Address = fd00::1/64\n") == [
        (3, "MTU 1279 is too small for an IPv6 Address: IPv6 needs 1280")
    ]


def test_all_at_once_in_the_files_order() -> None:
    text = f"""\
Foo = 1
[Interface]
ListenPort = 70000
Address = bad, 10.0.0.1/24, worse
\udcff

[Peer]
Publickey = {ONE}
AllowedIPs = 10.0.0.0/40, ::/0, 1.2.3.4/5/6
Endpoint = nowhere

[Peer]
AllowedIPs = ::/0
[Peer]
PublicKey = {ONE}
"""
    with pytest.raises(ConfigError) as caught:
        parse(text, "wg0.conf", strict=True)
    assert [mistake.line for mistake in caught.value.mistakes] == [1, 2, 3, 4, 4, 5, 9, 9, 10, 12, 13, 15]
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[0] == "wg0.conf:1: unknown key 'Foo'"
    assert lines[1].startswith("wg0.conf:2: this [Interface] has no PrivateKey")


def test_a_mistake_without_a_line() -> None:
    with pytest.raises(ConfigError, match=r"^wg0\.conf: there is no \[Interface\] section$"):
        parse("", "wg0.conf", strict=True)


def test_reading_stops_after_too_many() -> None:
    found = mistakes_in("x\n" * 5000)
    assert len(found) == 1001
    assert found[-1] == (1000, "too many mistakes, nothing more was checked")


@pytest.mark.parametrize("before", ["", "# stagewire: ", "PrivateKey\n", "["])
def test_no_message_tells_the_end_of_a_torn_key(before: str) -> None:
    for start in range(len(PRIVATE) - 8):
        text = f"{PEER}{before}{PRIVATE[start:]}\n"
        with pytest.raises(ConfigError) as caught:
            parse(text, "wg0.conf", strict=True)
        longest = 19 if before == "[" else 7
        assert PRIVATE[start:].rstrip("=")[: longest + 1] not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "PrivateKey {}",
        "{}",
        "[{}]",
        "[Peer {}]",
        "PrivatKey = {}",
        "{} = PrivateKey",
        "MTU = {}",
        "Address = {}",
        "DNS = {}",
        "Table = {}",
        "FwMark = {}",
        "SaveConfig = {}",
        "Endpoint = {}",
        "AllowedIPs = {}",
        "PrivateKey = {}{}",
        "PrivateKey = {}x",
        "PrivateKey = x {}",
        "# stagewire: PrivateKey = {}",
        "# stagewire: {}",
        "# stagewire: RekeyAfterTime = {}",
    ],
)
@pytest.mark.parametrize("secret", [PRIVATE, "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="])
def test_no_message_tells_a_secret(line: str, secret: str) -> None:
    for before in ("", INTERFACE, PEER, f"{PEER}Endpoint = x:1\n[Interface]\n"):
        with pytest.raises(ConfigError) as caught:
            parse(f"{before}{line.format(secret, secret)}\n", "wg0.conf", strict=True)
        assert not any(secret[i : i + 8] in str(caught.value) for i in range(len(secret) - 7))
