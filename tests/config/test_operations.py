"""Operations on peers: each changes what it names in the text and nothing else, or says in one line why not."""

import os
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewire.config import ConfigError, encode_key, generate_private_key, parse, public_key, roster
from stagewire.config.free import free_addresses
from stagewire.config.guard import beyond_peers
from stagewire.config.operations import (
    AddPeers,
    ExpirePeers,
    NewPeer,
    Operation,
    RemovePeers,
    RenamePeer,
    RotatePeer,
    SetPeer,
    SwitchPeers,
    called,
    carry_out,
    in_force,
    secrets_not_in_force,
)
from stagewire.config.roster import Refused
from stagewire.config.settings import Setting

NOW = 1_900_000_000.0
KEYS = [encode_key(bytes([number]) * 32) for number in range(1, 9)]
TEXT = f"""# the hub
[Interface]
PrivateKey = {KEYS[0]}
Address = 10.8.0.1/24, fd00::1/64
PostUp = echo up  # as ever

# the office
[Peer]
# Name = office
PublicKey = {KEYS[1]}
PresharedKey = {KEYS[2]}
AllowedIPs = 10.8.0.2/32, fd00::2/128, 192.168.0.0/24

[Peer]
# Name = phone
PublicKey = {KEYS[3]}
AllowedIPs = 10.8.0.3/32
# stagewire: ClientDNS = 10.8.0.1
"""


def key() -> str:
    return encode_key(public_key(generate_private_key(os.urandom(32))))


def done(*operations: Operation, text: str = TEXT, now: float = NOW) -> str:
    for operation in operations:
        text = carry_out(text, "wg0.conf", operation, {}, now).text
    return text


def add(name: str, *values: Setting, **fields: object) -> AddPeers:
    return AddPeers((NewPeer(name, key(), settings=values, **fields),))  # type: ignore[arg-type]


def test_a_new_peer_gets_the_next_free_addresses_and_all_else_stays() -> None:
    text = done(add("tablet"), add("watch"))
    assert text.startswith(TEXT)
    assert [str(prefix) for prefix in parse(text, "").peers[2].allowed_ips] == ["10.8.0.4/32", "fd00::3/128"]
    assert [str(prefix) for prefix in parse(text, "").peers[3].allowed_ips] == ["10.8.0.5/32", "fd00::4/128"]
    assert done(RemovePeers(("tablet", "watch")), text=text) == TEXT


def test_off_and_on_give_the_same_text_again_byte_for_byte() -> None:
    off = done(SwitchPeers(("office", "phone"), on=False))
    assert parse(off, "").peers == ()
    assert KEYS[2] in off
    assert len(off.splitlines()) == len(TEXT.splitlines())
    assert done(SwitchPeers(("office", "phone"), on=True), text=off) == TEXT
    assert done(SwitchPeers(("office", "phone"), on=True), text=off.replace("\n", "\r\n")) == TEXT.replace("\n", "\r\n")


def test_a_peer_out_of_use_can_be_changed_and_keeps_its_addresses() -> None:
    off = done(SwitchPeers(("office",), on=False))
    changed = done(
        SetPeer("office", (Setting("ClientMTU", "1300"),)), RenamePeer("office", "site"), add("new"), text=off
    )
    found = roster.read(changed, "")
    site = found.find("site")
    assert site.client.mtu == 1300
    assert found.off == {site.public_key}
    assert str(found.find("new").allowed_ips[0]) == "10.8.0.4/32"
    assert done(RemovePeers(("site",)), text=changed).count("stagewire off") == 0


def test_new_keys_keep_everything_else() -> None:
    new, psk = key(), key()
    text = done(RotatePeer("office", new, psk))
    assert text == TEXT.replace(KEYS[1], new).replace(KEYS[2], psk)
    assert done(RotatePeer("phone", new)) == TEXT.replace(KEYS[3], new)
    assert f"PublicKey = {new}\nPresharedKey = {psk}\n" in done(RotatePeer("phone", new, psk))


def test_a_peer_whose_time_is_over_goes_out_of_use_and_comes_back_with_another() -> None:
    text = done(SetPeer("phone", (Setting("Expires", "2030-01-01"),)), now=0)
    assert len(parse(text, "").peers) == 2
    assert [peer.name for peer in in_force(parse(text, ""), NOW).peers] == ["office"]
    later = done(add("other"), text=text)
    assert [peer.name for peer in parse(later, "").peers] == ["office", "other"]
    with pytest.raises(Refused, match="expired at 2030-01-01T00:00:00Z"):
        done(SwitchPeers(("phone",), on=True), text=later)
    again = done(SetPeer("phone", (Setting("Expires", "2040-01-01"),)), text=later)
    assert [peer.name for peer in parse(again, "").peers] == ["office", "phone", "other"]


def test_secrets_out_of_use_are_named_also_where_their_lines_have_mistakes() -> None:
    off = done(SwitchPeers(("office",), on=False))
    secret = bytes([3]) * 32
    assert secrets_not_in_force(off, parse(off, ""), NOW) == {secret}
    broken = off.replace("# stagewire off: PublicKey", "# stagewire off: PublicQuay")
    assert secrets_not_in_force(broken, parse(off, ""), NOW) == {secret}
    assert secrets_not_in_force(TEXT, parse(TEXT, ""), NOW) == set()
    expired = parse(TEXT, "")
    expired = replace(expired, peers=(replace(expired.peers[0], expires=1), expired.peers[1]))
    assert secrets_not_in_force(TEXT, expired, NOW) == {secret}


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (add("phone"), "peer phone .* has the name already"),
        (add("PHONE"), "peer phone .* has the name already"),
        (add(""), "is no peer's name"),
        (add("a\nPostUp = rm"), "is no peer's name"),
        (add("\u202eevil"), "is no peer's name"),
        (add("x" * 10_000), "is no peer's name"),
        (add(KEYS[4]), "must not look like a key"),
        (AddPeers((NewPeer("new", KEYS[3]),)), "peer phone .* has this public key"),
        (AddPeers((NewPeer("new", encode_key(public_key(bytes([1]) * 32))),)), "gateway's own public key"),
        (AddPeers((NewPeer("new", "x"),)), "the public key"),
        (AddPeers((NewPeer("new", encode_key(bytes(32))),)), "low order"),
        (add("new", addresses=("10.8.0.3",)), "10.8.0.3/32 belongs to peer phone"),
        (add("new", addresses=("10.8.0.1",)), "gateway's own address"),
        (add("new", addresses=("ten",)), "must be a prefix"),
        (add("new", Setting("PostUp", "rm")), "no setting 'PostUp'"),
        (add("new", Setting("Expires", "soon")), "Expires must be"),
        (add("new", Setting("Expires", "2030-99-99")), "Expires must be"),
        (add("new", Setting("Rate", "fast")), "Rate must be bits/s"),
        (add("new", Setting("Rate", "63K")), "Rate must be bits/s"),
        (add("new", Setting("Rate", "1M/0")), "Rate must be bits/s"),
        (add("new", Setting("Rate", "2T")), "Rate must be bits/s"),
        (add("new", Setting("Quota", "0")), "Quota must be bytes"),
        (add("new", Setting("Quota", "50G daily")), "Quota must be bytes"),
        (AddPeers(()), "1 to 10000 peers"),
        (RemovePeers(("nobody",)), "no peer has the name or key 'nobody'"),
        (RenamePeer("phone", "office"), "peer office .* has the name already"),
        (RotatePeer("phone", KEYS[1]), "has this public key already"),
        (SetPeer("phone", (Setting("AllowedIPs", "10.8.0.2"),)), "belongs to peer office"),
        (SetPeer("phone", (Setting("ClientDNS", "a;b"),)), "ClientDNS must be"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(operation: Operation, why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        done(operation)
    assert "\n" not in str(refused.value)


def test_one_bad_peer_refuses_all_of_a_command() -> None:
    several = AddPeers((NewPeer("one", key()), NewPeer("two", key(), addresses=("10.8.0.2",))))
    with pytest.raises(Refused, match=r"^peer two: 10\.8\.0\.2/32 belongs to peer office"):
        done(several)


def test_a_range_that_is_used_up_is_said() -> None:
    text = TEXT.replace("10.8.0.1/24", "10.8.0.1/29")
    text = done(*(add(f"p{number}") for number in range(3)), text=text)
    with pytest.raises(Refused, match=r"no address of 10\.8\.0\.0/29 is free"):
        done(add("one too many"), text=text)
    done(RemovePeers(("p1",)), add("again"), text=text)


def test_what_only_the_running_gateway_has_is_taken() -> None:
    live = {ip_network("10.8.0.4/32"): bytes(32)}
    text = carry_out(TEXT, "", add("new"), live, NOW).text
    assert str(parse(text, "").peers[2].allowed_ips[0]) == "10.8.0.5/32"
    with pytest.raises(Refused, match="belongs to peer"):
        carry_out(TEXT, "", add("new", addresses=("10.8.0.4",)), live, NOW)


def test_a_peer_in_use_and_out_of_use_is_a_mistake() -> None:
    off = done(SwitchPeers(("phone",), on=False))
    twice = off + TEXT[TEXT.index("[Peer]\n# Name = phone") :]
    with pytest.raises(
        ConfigError, match=r"wg0.conf:14: this \[Peer\] is out of use, and the one in line 19 has the same"
    ):
        done(add("new"), text=twice)


@given(st.sets(st.integers(0, 255), max_size=60), st.booleans())
def test_free_addresses_come_in_order_and_each_once(used: set[int], six: bool) -> None:
    base = int(ip_address("fd00::" if six else "10.8.0.0"))
    make = IPv6Address if six else ip_address
    taken = [ip_network(make(base + number)) for number in used]
    ours = ip_interface("fd00::1/120" if six else "10.8.0.1/24")
    last = 255 if six else 254
    free = [number for number in range(2, last + 1) if number not in used]
    found = free_addresses(ours, [*taken, ip_network("0.0.0.0/0"), ours.network])
    assert [int(each) - base for each in found] == free


# --- what root writes --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from(["add", "off", "on", "remove", "rename", "set", "rotate"]), max_size=6))
def test_every_operation_passes_the_guard(steps: list[str]) -> None:
    text = TEXT
    for number, step in enumerate(steps):
        name = roster.read(text, "").whole.peers
        who = encode_key(name[number % len(name)].public_key) if name else ""
        possible: dict[str, Operation] = {
            "add": add(f"n{number}", Setting("Expires", "2060-01-01")),
            "off": SwitchPeers((who,), on=False),
            "on": SwitchPeers((who,), on=True),
            "remove": RemovePeers((who,)),
            "rename": RenamePeer(who, f"r{number}"),
            "set": SetPeer(who, (Setting("ClientMTU", "1300"), Setting("Endpoint", "a.example:1"))),
            "rotate": RotatePeer(who, key(), key()),
        }
        if not who and step != "add":
            continue
        new = done(possible[step], text=text)
        assert beyond_peers(text, new) is None
        text = new


@pytest.mark.parametrize(
    "evil",
    [
        TEXT.replace("echo up", "rm -rf /"),
        TEXT.replace("PostUp", "PreUp"),
        TEXT.replace("[Interface]\n", "[Interface]\nPostUp = id\n"),
        TEXT.replace("[Interface]\n", "[Interface]\nDNS = 6.6.6.6\n"),
        TEXT.replace("[Interface]\n", "[Interface]\nTable = off\n"),
        TEXT.replace(KEYS[0], KEYS[5]),
        TEXT.replace("10.8.0.1/24", "10.9.0.1/24"),
        TEXT + "PostUp = id\n",
        TEXT + "\n[Interface]\nPostUp = id\n",
        TEXT.replace("[Interface]\n", "[Interface]\n# stagewire: Exit = on\n"),
        TEXT.replace("[Interface]\n", "[Interface]\n# stagewire off: # stagewire: Exit = on\n"),
        TEXT.replace("[Interface]\n", "[Interface]\n#Stagewire :Firewall = open\n"),
        "# stagewire: Firewall = open\n" + TEXT,
        TEXT + "\n[Interface]\n# stagewire: Allow = 0.0.0.0/0\n",
        TEXT + "\n[ interface ]\nPostUp = id\n",
        TEXT + "\n[Peer]\nPublicKey = x\nPreDown = id\n",
        TEXT + "\n[Other]\nPostUp = id\n",
        TEXT + "\n# stagewire off: [Interface]\n# stagewire off: PostUp = id\n",
        TEXT + "\n# stagewire off: [Peer]\n# stagewire off: PostUp = id\n",
        TEXT + "\n# PostUp = id\n",
        TEXT + "\0",
        "PostUp = id\n" + TEXT,
        "",
    ],
)
def test_nothing_but_peers_passes_the_guard(evil: str) -> None:
    assert beyond_peers(TEXT, evil) is not None


def test_limits_are_written_changed_and_taken_away() -> None:
    text = done(SetPeer("phone", (Setting("Rate", "20M"), Setting("Quota", "50g Monthly"))))
    assert "# stagewire: Rate = 20M\n# stagewire: Quota = 50G monthly\n" in text
    limits = parse(text, "wg0.conf").peers[1].limits
    assert (limits.rate_to, limits.rate_from, limits.quota) == (20_000_000, 20_000_000, 50_000_000_000)
    text = done(SetPeer("phone", (Setting("Rate", "1500K/64k"), Setting("Quota", "1234567"))), text=text)
    assert "# stagewire: Rate = 1500K/64K\n# stagewire: Quota = 1234567 monthly\n" in text
    assert done(SetPeer("phone", (Setting("Rate", ""), Setting("Quota", ""))), text=text) == TEXT


def test_a_limit_that_makes_no_sense_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"wg0.conf:\d+: Rate must be bits/s"):
        parse(f"{TEXT}# stagewire: Rate = 20\n", "wg0.conf", strict=True)


def test_an_operation_has_the_name_that_an_operator_types() -> None:
    all_kinds = (
        add("a"), RemovePeers(()), SwitchPeers((), on=True), SwitchPeers((), on=False), RenamePeer("a", "b"),
        SetPeer("a", ()), RotatePeer("a", "b"), ExpirePeers(),
    )  # fmt: skip
    assert {type(each) for each in all_kinds} == set(Operation.__args__)
    assert [called(each).removeprefix("peer ") for each in all_kinds] == [
        "add", "remove", "enable", "disable", "rename", "set", "rotate", "expiry"
    ]  # fmt: skip
