"""What a good file becomes, and that every text either becomes that or is refused in the one way."""

import time
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.config.example import example

from stagewire.config import (
    ConfigError,
    HostPort,
    InterfaceConfig,
    Network,
    PeerConfig,
    encode_key,
    parse,
    public_key,
)

PRIVATE = bytes([8] + [1] * 30 + [64])


def public(number: int) -> bytes:
    """A usable public key, another for each number. Points that can't be reached from here do as well."""
    return number.to_bytes(31, "big") + b"\x20"


FULL = f"""\
# A note.
[interface]   # in any case
privatekey={encode_key(PRIVATE)}
LISTENPORT = 51821
FwMark = 0xCA6C
Address = 10.0.0.1/24, fd00::1/64
Address = 10.1.0.1 10.2.0.1/16
DNS = 9.9.9.9, 2620:fe::fe, example.net
MTU = 1280
Table = 1234
PreUp = echo a = b; echo c # not this
PostUp = one
PostUp = two
PreDown = three
PostDown = four
SaveConfig = TRUE
# stagewire: RekeyAfterTime = 7.5 # and a note

[PEER]
PublicKey = {encode_key(public(1))}
PresharedKey = {encode_key(public(2))}
AllowedIPs = 10.0.0.77/24, fd00::1
AllowedIPs =
AllowedIPs = 0.0.0.0/0, 10.0.0.0/24
Endpoint = [2001:DB8::1]:65535
PersistentKeepalive = 25
  #   Stagewire :  responsetimestamp  =  ON

[Peer]
PublicKey = {encode_key(public(3))}
Endpoint = gw-1.example.net:1
PersistentKeepalive = off
# stagewire: ResponseTimestamp = off
## stagewire: NotRead = 1
# stagewired: is not ours
"""


def test_a_full_file() -> None:
    assert parse(FULL, "wg0.conf") == InterfaceConfig(
        private_key=PRIVATE,
        listen_port=51821,
        fwmark=0xCA6C,
        addresses=tuple(map(ip_interface, ("10.0.0.1/24", "fd00::1/64", "10.1.0.1/32", "10.2.0.1/16"))),
        dns=("9.9.9.9", "2620:fe::fe", "example.net"),
        mtu=1280,
        table=1234,
        pre_up=("echo a = b; echo c",),
        post_up=("one", "two"),
        pre_down=("three",),
        post_down=("four",),
        save_config=True,
        rekey_after_time=7.5,
        peers=(
            PeerConfig(
                public_key=public(1),
                preshared_key=public(2),
                allowed_ips=tuple(map(ip_network, ("10.0.0.0/24", "fd00::1/128", "0.0.0.0/0"))),
                endpoint=HostPort("2001:db8::1", 65535),
                persistent_keepalive=25,
                response_timestamp=True,
                line=0,
            ),
            PeerConfig(
                public_key=public(3),
                preshared_key=bytes(32),
                allowed_ips=(),
                endpoint=HostPort("gw-1.example.net", 1),
                persistent_keepalive=0,
                response_timestamp=False,
                line=0,
            ),
        ),
    )


def test_what_is_left_out_has_its_default() -> None:
    config = parse(f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}", "wg0.conf")
    assert config == InterfaceConfig(
        PRIVATE,
        None,
        0,
        (),
        (),
        None,
        "auto",
        (),
        (),
        (),
        (),
        save_config=False,
        rekey_after_time=120.0,
        peers=(),
    )


def test_a_peer_knows_its_line() -> None:
    assert [peer.line for peer in parse(FULL, "wg0.conf").peers] == [19, 29]


@pytest.mark.parametrize("text", ["\ufeff" + FULL, FULL.replace("\n", "\r\n"), FULL.rstrip("\n")])
def test_byte_order_mark_crlf_and_a_last_line_without_end(text: str) -> None:
    assert parse(text, "wg0.conf") == parse(FULL, "wg0.conf")


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("ListenPort = 0", "listen_port", 0),
        ("FwMark = off", "fwmark", 0),
        ("FwMark = 4294967295", "fwmark", 0xFFFF_FFFF),
        ("Table = off", "table", "off"),
        ("Table = auto", "table", "auto"),
        ("MTU = 576", "mtu", 576),
        ("MTU = 65535", "mtu", 65535),
        ("SaveConfig = false", "save_config", False),
        ("# stagewire: RekeyAfterTime = 5", "rekey_after_time", 5.0),
        ("#stagewire:rekeyaftertime=120.0", "rekey_after_time", 120.0),
        ("DNS = ns_1.example.net.", "dns", ("ns_1.example.net.",)),
    ],
)
def test_values_at_their_ends(line: str, field: str, value: object) -> None:
    config = parse(f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n{line}\n", "wg0.conf")
    assert getattr(config, field) == value


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:51820", "192.0.2.1", 51820),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("a:65535", "a", 65535),
        ("1.example.net:5", "1.example.net", 5),
    ],
)
def test_endpoints(text: str, host: str, port: int) -> None:
    lines = (
        "[Interface]",
        f"PrivateKey={encode_key(PRIVATE)}",
        "[Peer]",
        f"PublicKey={encode_key(public(1))}",
    )
    endpoint = parse("\n".join([*lines, f"Endpoint = {text}"]), "wg0.conf").peers[0].endpoint
    assert endpoint == HostPort(host, port)
    assert str(endpoint) == text


def test_a_smaller_prefix_inside_another_peers_is_no_mistake() -> None:
    text = f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n"
    for number, prefix in enumerate(("10.0.0.0/8", "10.0.0.0/9", "0.0.0.0/0", "::/0"), start=1):
        text += f"[Peer]\nPublicKey = {encode_key(public(number))}\nAllowedIPs = {prefix}\n"
    assert len(parse(text, "wg0.conf").peers) == 4


def test_secrets_hide_from_repr() -> None:
    text = repr(parse(FULL, "wg0.conf"))
    assert repr(PRIVATE) not in text
    assert repr(public(2)) not in text
    assert repr(public(1)) in text


def test_the_example_parses() -> None:
    config = parse(example(), "gateway.conf")
    assert config.rekey_after_time == 60
    assert [peer.response_timestamp for peer in config.peers] == [False, False, True]
    assert len(config.addresses) == 2


def test_ten_thousand_peers_are_read_in_seconds() -> None:
    text = f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n" + "".join(
        f"[Peer]\nPublicKey = {encode_key(public(n))}\nPresharedKey = {encode_key(public(n + 1))}\n"
        f"AllowedIPs = 10.{n >> 8}.{n & 255}.0/24, fd00:{n:x}::/64\nEndpoint = 192.0.2.1:{n}\n"
        for n in range(1, 10_001)
    )
    started = time.process_time()
    assert len(parse(text, "wg0.conf").peers) == 10_000
    assert time.process_time() - started < 10  # about 1 s; the rest is for a busy machine


@pytest.mark.parametrize("unit", ["\n", "x\n", "[Peer]\n", "[x]\n", "a = b\n", "[", "#", "=", "\0", "AllowedIPs=,,,\n"])
def test_ten_megabytes_of_anything_are_refused_in_seconds(unit: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        parse("[Peer]\n" + unit * (10_000_000 // len(unit)), "wg0.conf")
    assert time.process_time() - started < 20
    assert len(str(caught.value)) < 200_000


# --- every text ---------------------------------------------------------------------------------------------

_WORDS = st.sampled_from(
    [
        *("[Interface]", "[Peer]", "PrivateKey", "PublicKey", "AllowedIPs", "Endpoint", "MTU", "DNS", "Table"),
        *("=", ":", "/", ",", "#", "# stagewire:", "\n", "\r", "\0", "\udcff", "\u2028", "%", "[", "]", " "),
        *("10.0.0.1/8", "::1", "off", "9" * 5000, "1e309", "nan", "-1", "²", "٣", "Address", "RekeyAfterTime"),
        encode_key(PRIVATE),
    ]
)


def refusal_of(text: str) -> ConfigError | None:
    try:
        parse(text, "wg0.conf")
    except ConfigError as error:
        return error
    return None


@settings(max_examples=500, deadline=None)
@given(st.text() | st.lists(_WORDS | st.text(max_size=3), max_size=40).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    if (error := refusal_of(text)) is not None:
        assert error.mistakes
        assert len(str(error).splitlines()) == len(error.mistakes)
        assert all(m.line is None or 1 <= m.line <= text.count("\n") + 1 for m in error.mistakes)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_mutated_file_is_read_or_refused_and_no_secret_is_told(data: st.DataObject) -> None:
    text = FULL
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 30)))
        text = text[:start] + data.draw(_WORDS | st.text(max_size=3)) + text[end:]
    if (error := refusal_of(text)) is not None:
        for secret in (encode_key(PRIVATE), encode_key(public(2))):
            assert not any(secret[i : i + 20] in str(error) for i in range(len(secret) - 19))


# --- round trip ---------------------------------------------------------------------------------------------

_KEY = st.binary(min_size=32, max_size=32).filter(any)
_V4 = st.integers(0, 2**32 - 1)
_V6 = st.integers(0, 2**128 - 1)
_NETWORK = st.one_of(
    st.tuples(_V4, st.integers(0, 32)).map(lambda pair: ip_network(pair, strict=False)),
    st.tuples(_V6, st.integers(0, 128)).map(lambda pair: ip_network(pair, strict=False)),
)
_COMMAND = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="#"), min_size=1).map(
    lambda text: f"x{text}".rstrip(" ")
)
_COMMANDS = st.lists(_COMMAND, max_size=3).map(tuple)


@st.composite
def _configs(draw: st.DrawFn) -> InterfaceConfig:
    networks = draw(st.lists(_NETWORK, unique=True, max_size=12))
    count = draw(st.integers(0, 4))
    owned: list[list[Network]] = [[] for _ in range(count)]
    for network in networks if count else []:
        owned[draw(st.integers(0, count - 1))].append(network)
    ips = [
        *draw(st.lists(st.tuples(_V4, st.integers(0, 32)), unique_by=lambda pair: pair[0], max_size=2)),
        *draw(st.lists(st.tuples(_V6.filter(lambda n: n >= 2**32), st.integers(0, 128)), max_size=1)),
    ]
    host = (_V4 | _V6).map(lambda number: str(ip_address(number))) | st.sampled_from(
        ["a", "gw.example.net", "x_y-1.z."]
    )
    return InterfaceConfig(
        private_key=draw(_KEY),
        listen_port=draw(st.none() | st.integers(0, 65535)),
        fwmark=draw(st.integers(0, 2**32 - 1)),
        addresses=tuple(ip_interface(pair) for pair in ips),
        dns=draw(st.lists(st.sampled_from(["9.9.9.9", "::1", "example.net"]), max_size=3).map(tuple)),
        mtu=draw(st.none() | st.integers(1280, 65535)),
        table=draw(st.one_of(st.just("auto"), st.just("off"), st.integers(1, 2**32 - 1))),
        pre_up=draw(_COMMANDS),
        post_up=draw(_COMMANDS),
        pre_down=draw(_COMMANDS),
        post_down=draw(_COMMANDS),
        save_config=draw(st.booleans()),
        rekey_after_time=draw(st.integers(5000, 120_000)) / 1000,
        peers=tuple(
            PeerConfig(
                public_key=public(number + 1),
                preshared_key=draw(st.just(bytes(32)) | _KEY),
                allowed_ips=tuple(owned[number]),
                endpoint=draw(st.none() | st.builds(HostPort, host, st.integers(1, 65535))),
                persistent_keepalive=draw(st.integers(0, 65535)),
                response_timestamp=draw(st.booleans()),
                line=0,
            )
            for number in range(count)
        ),
    )


def _rendered(config: InterfaceConfig) -> str:
    assert config.private_key is not None
    lines = ["[Interface]", f"PrivateKey = {encode_key(config.private_key)}"]
    lines += [] if config.listen_port is None else [f"ListenPort = {config.listen_port}"]
    lines += [f"FwMark = {config.fwmark:#x}", f"Table = {config.table}"]
    lines += [f"Address = {address}" for address in config.addresses]
    lines += [f"DNS = {', '.join(config.dns)}"] if config.dns else []
    lines += [] if config.mtu is None else [f"MTU = {config.mtu}"]
    hooks = {
        "PreUp": config.pre_up,
        "PostUp": config.post_up,
        "PreDown": config.pre_down,
        "PostDown": config.post_down,
    }
    lines += [f"{name} = {command}" for name, commands in hooks.items() for command in commands]
    lines += [f"SaveConfig = {str(config.save_config).lower()}"]
    lines += [f"# stagewire: RekeyAfterTime = {config.rekey_after_time}"]
    for peer in config.peers:
        lines += ["", "[Peer]", f"PublicKey = {encode_key(peer.public_key)}"]
        lines += [f"PresharedKey = {encode_key(peer.preshared_key)}"]
        lines += [f"AllowedIPs = {', '.join(map(str, peer.allowed_ips))}"]
        lines += [] if peer.endpoint is None else [f"Endpoint = {peer.endpoint}"]
        lines += [f"PersistentKeepalive = {peer.persistent_keepalive}"]
        lines += [f"# stagewire: ResponseTimestamp = {'on' if peer.response_timestamp else 'off'}"]
    return "\n".join(lines)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_configs())
def test_a_configuration_survives_its_text(config: InterfaceConfig) -> None:
    assert config.private_key is not None
    assert public_key(config.private_key) not in {peer.public_key for peer in config.peers}
    assert parse(_rendered(config), "wg0.conf") == config
