"""Files that say things twice, or in odd bytes, are changed as plain ones are, and keep what isn't changed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagewire.config import (
    ConfigError,
    HostPort,
    InterfaceConfig,
    PeerConfig,
    encode_key,
    merge,
    parse,
    public_key,
    save,
)

CORPUS = Path(__file__).with_name("corpus")
PRIVATE = bytes([8] + [1] * 30 + [64])
OWN = encode_key(public_key(PRIVATE))
ONE, TWO, THREE = (encode_key(bytes([n] * 31 + [32])) for n in (1, 2, 3))
INTERFACE = f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n"


def meaning(config: InterfaceConfig) -> object:
    """What a configuration says, without any order that means nothing."""
    peers = {(replace(peer, allowed_ips=()), frozenset(peer.allowed_ips)) for peer in config.peers}
    return replace(config, addresses=(), peers=()), frozenset(config.addresses), peers, len(config.peers)


def taken() -> list[Path]:
    """The files of the corpus that are no mistake."""
    found = []
    for path in sorted(CORPUS.glob("*.conf")):
        try:
            parse(text_of(path), path.name)
        except ConfigError:
            continue
        found.append(path)
    assert len(found) > 150
    return found


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


NEW = PeerConfig(bytes([9] * 31 + [32]), bytes(32), (), HostPort("192.0.2.9", 9), 9, response_timestamp=False, line=0)
CHANGES: list[Callable[[InterfaceConfig], InterfaceConfig]] = [
    lambda config: replace(config, mtu=1333, listen_port=4444, fwmark=7, table="off"),
    lambda config: replace(config, mtu=None, listen_port=None, fwmark=0, table="auto", dns=(), addresses=()),
    lambda config: replace(config, post_up=(*config.post_up, "true"), pre_down=(), save_config=not config.save_config),
    lambda config: replace(config, peers=()),
    lambda config: replace(config, peers=(*config.peers, NEW)),
    lambda config: replace(config, peers=config.peers[1:]),
    lambda config: replace(config, private_key=bytes([16] * 32)),
    lambda config: replace(
        config,
        peers=tuple(replace(peer, allowed_ips=peer.allowed_ips[:1], persistent_keepalive=77) for peer in config.peers),
    ),
]


@pytest.mark.parametrize("path", taken(), ids=lambda path: path.stem)
def test_a_file_of_the_corpus(path: Path) -> None:
    """Unchanged it stays as it is, byte for byte; changed, it says what it should."""
    text = text_of(path)
    config = parse(text, path.name)
    assert merge(text, config) == text
    for change in CHANGES:
        wanted = change(config)
        merged = merge(text, wanted)
        assert meaning(parse(merged, path.name)) == meaning(wanted)
        assert {line.strip(" \t\r") for line in text.splitlines() if line.startswith("#")} <= {
            line.strip(" \t\r") for line in merged.splitlines()
        } or len(wanted.peers) < len(config.peers)


COMMENTS = ["# a caf\udce9", "# stagewire: nothing", "", "\t"]
OF_INTERFACE = [
    "MTU = 1400",
    "MTU =",
    "mtu = 0x578 # hex",
    "Table = main",
    "Table = 7",
    "Address = 10.0.0.1/24, 10.0.0.1/24",
    "Address = 10.0.0.1/255.255.0.0 fd00::1/64",
    "Address =",
    "DNS = 192.0.2.53, ~corp",
    "DNS = ,",
    "PostUp =",
    "PostUp = echo \udce9",
    "PostUp = true",
    "ListenPort = 5 1820",
    f"PrivateKey = {encode_key(PRIVATE)}",
    f"Private Key = {encode_key(bytes(32))}",
    "# stagewire: RekeyAfterTime = 60",
    "# stagewire: RekeyAfterTime = often",
]
OF_PEER = [
    f"PresharedKey = {THREE}",
    "AllowedIPs = 10.0.0.0/8, ::/0",
    "AllowedIPs = +10.0.0.0 / 8, -::/0",
    "allowedips =",
    "AllowedIPs = 10.1.2.3/16,192.0.2.0/24 # two",
    "Endpoint = 192.0.2.1 : 1",
    "Endpoint = [vpn.example.net]:2",
    "PersistentKeepalive = 2 5",
    "PersistentKeepalive = off",
    "# stagewire: ResponseTimestamp = on",
]
KEYS = [f"PublicKey = {ONE}", f"Public Key = {TWO}", f"PublicKey = {THREE} # three", f"PublicKey = {OWN}"]


def _section(header: str, lines: list[str], first: list[str]) -> st.SearchStrategy[list[str]]:
    said = st.lists(st.sampled_from(lines + COMMENTS), max_size=6)
    key = st.sampled_from(first).map(lambda line: [line]) if first else st.just([])
    return st.builds(lambda *parts: [header, *(line for part in parts for line in part)], said, key, said)


_SECTIONS = st.lists(
    _section("[Interface]", OF_INTERFACE, [])
    | _section("[ Interface ] # again", OF_INTERFACE, [])
    | _section("[Peer]", OF_PEER, KEYS)
    | _section("[ Peer ]", OF_PEER, KEYS),
    max_size=6,
)


@st.composite
def _texts(draw: st.DrawFn) -> str:
    lines = [*draw(st.lists(st.sampled_from(COMMENTS), max_size=2)), *(line for s in draw(_SECTIONS) for line in s)]
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return draw(st.sampled_from(["", "\ufeff"])) + end.join(lines) + draw(st.sampled_from(["", end]))


def _is_taken(text: str) -> bool:
    """Tells whether no section has one of our settings twice, nor above its header."""
    try:
        parse(text, "text")
    except ConfigError as error:
        assert all("ResponseTimestamp" in mistake.message for mistake in error.mistakes)  # noqa: PT017
        return False
    return True


_TAKEN = _texts().filter(_is_taken)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(_TAKEN, _TAKEN)
def test_any_odd_text_can_be_made_to_say_what_another_says(text: str, other: str) -> None:
    wanted, standing = parse(other, "other"), parse(text, "text")
    assert merge(text, standing) == text
    assert meaning(parse(merge(text, wanted), "merged")) == meaning(wanted)


def test_of_a_key_that_is_there_twice_the_line_that_counts_is_changed() -> None:
    text = f"{INTERFACE}MTU = 1400 # once\nMTU = 1300 # this\n"
    assert merge(text, replace(parse(text, "wg0.conf"), mtu=1280)) == text.replace("1300", "1280")
    assert merge(text, replace(parse(text, "wg0.conf"), mtu=None)) == INTERFACE


def test_a_peer_that_is_there_twice() -> None:
    text = f"{INTERFACE}[Peer]\nPublicKey = {ONE}\nEndpoint = 192.0.2.1:1 # far\n"
    text += f"[Peer]\nPublicKey = {ONE}\nAllowedIPs = ::/0 # all\n"
    config = parse(text, "wg0.conf")
    [peer] = config.peers
    moved = replace(config, peers=(replace(peer, endpoint=HostPort("192.0.2.2", 2)),))
    assert merge(text, moved) == text.replace("192.0.2.1:1", "192.0.2.2:2")
    assert merge(text, replace(config, peers=())) == INTERFACE


def test_a_prefix_that_another_peer_gives_up_does_not_come_back() -> None:
    text = f"{INTERFACE}[Peer]\nPublicKey = {ONE}\nAllowedIPs = ::/0, 10.0.0.0/8\n"
    text += f"[Peer]\nPublicKey = {TWO}\nAllowedIPs = ::/0\n"
    config = parse(text, "wg0.conf")
    merged = merge(text, replace(config, peers=config.peers[:1]))
    assert merged == f"{INTERFACE}[Peer]\nPublicKey = {ONE}\nAllowedIPs = 10.0.0.0/8\n"


def test_a_table_by_name_stays_a_name() -> None:
    text = f"{INTERFACE}Table = main\nMTU = 1400\n"
    assert merge(text, replace(parse(text, "wg0.conf"), mtu=1300)) == text.replace("1400", "1300")


def test_a_file_without_an_interface_gets_one() -> None:
    peer = f"# Name = a\n[Peer]\nPublicKey = {ONE}\n"
    assert merge(peer, replace(parse(peer, "wg0.conf"), mtu=1300)) == f"[Interface]\nMTU = 1300\n\n{peer}"
    assert merge("", replace(parse("", "wg0.conf"), mtu=1300)) == "[Interface]\nMTU = 1300\n"
    assert merge("# none\n", replace(parse("", "wg0.conf"), mtu=1300)) == "# none\n[Interface]\nMTU = 1300\n"


def test_bytes_that_are_not_utf8_are_saved_as_they_are(tmp_path: Path) -> None:
    (path := tmp_path / "wg0.conf").write_bytes(b"# caf\xe9\r\n" + INTERFACE.encode() + b"PostUp = echo \xff\r\n")
    path.chmod(0o644)
    save(path, replace(parse(INTERFACE, "wg0.conf"), post_up=("echo \udcff",), mtu=1300))
    assert path.read_bytes() == b"# caf\xe9\r\n" + INTERFACE.encode() + b"PostUp = echo \xff\r\nMTU = 1300\r\n"
    assert path.stat().st_mode & 0o777 == 0o600, "it holds a key, and is new"
