"""What a peer may do and what is out of use is never left to chance: a contradiction or a slip refuses the file, by line."""

import pytest

from stagewire.config import ConfigError, encode_key, generate_private_key, parse, public_key
from stagewire.config.operations import AddPeers, NewPeer, Operation, RenamePeer, SetPeer, SwitchPeers, carry_out
from stagewire.config.roster import Refused
from stagewire.config.settings import Setting

PRIVATE, ANNA, BERT, NEW = [
    encode_key(public_key(generate_private_key(bytes([number]) * 32))) for number in range(1, 5)
]
INTERFACE = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.8.0.1/24, fd00::1/64\nListenPort = 4711\n"  # 4 lines
ONE = f"[Peer]\n# Name = Anna\nPublicKey = {ANNA}\nAllowedIPs = 10.8.0.2/32\n"  # 4 lines
TWO = f"[Peer]\n# Name = Bert\nPublicKey = {BERT}\nAllowedIPs = 10.8.0.3/32, fd00::3/128\n"
PEERS = INTERFACE + ONE + TWO


def off(section: str) -> str:
    return "".join(f"# stagewire off: {line}\n" for line in section.splitlines())


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        parse(text, "f")
    return [str(mistake) for mistake in refused.value.mistakes]


def warnings(text: str) -> list[str]:
    return [str(mistake) for mistake in parse(text, "f").warnings]


def done(operation: Operation, text: str = PEERS) -> str:
    return carry_out(text, "f", operation, {}, 0).text


# --- settings that would be overlooked ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("# stagewire: Rate = 20 M", "Rate must be bits/s"),
        ("# stagewire: Rate =", "Rate has no value"),
        ("# stagewire: Rte = 20M", "unknown key 'Rte', did you mean Rate?"),
        ("# stagewire: Rate 20M", "is neither 'Key = value'"),
        ("# stagewire: rate: 20M", "is neither 'Key = value'"),
        ("# stagewire: Quota = much", "Quota must be bytes"),
        ("# stagewire: Expires = 31.12.2030", "Expires must be a day"),
        ("# stagewire: Expire = 2030-12-31", "did you mean Expires?"),
        ("# stagewire: Alow = any", "did you mean Allow?"),
        ("# stagewire: Allow any tcp 443", "is neither 'Key = value'"),
        ("# stagewire: Group = staff", "did you mean Groups?"),
        ("# stagewire: ResponseTimestamp = yes", "ResponseTimestamp must be on or off"),
        ("# stagewire: Speed = 20M", "unknown key 'Speed'"),
        ("# stagewire: Isolation = on", "Isolation belongs in [Interface]"),
        ("# stagewire: Rate = 20M\n# stagewire: Rate = 1G", "Rate is already given in line 9"),
        ("Endpoint = a:1 # stagewire: Rate = 20M", "needs a line of its own"),
        ("# stagewire Rate = 20M", "is only a comment: write '# stagewire: Rate = ...'"),
        ("# stagwire: Rate = 20M", "is only a comment: write '# stagewire: Rate = ...'"),
        ("#Stage wire: allow = any", "is only a comment: write '# stagewire: Allow = ...'"),
        ("# stagewire; Expires = 2030-12-31", "is only a comment: write '# stagewire: Expires = ...'"),
    ],
)
@pytest.mark.parametrize("mark", [False, True])
def test_a_limit_with_a_slip_is_refused_by_its_line(line: str, says: str, mark: bool) -> None:
    peer = f"{ONE}{line}\n"
    [mistake] = mistakes(INTERFACE + (off(peer) if mark else peer))
    assert mistake.startswith(f"f:{8 + line.count(chr(10)) + 1}: ")
    assert says in mistake


@pytest.mark.parametrize(
    "line",
    [
        "# Rate of this line: 20M", "# see stagewire: it has a Rate", "## stagewire: Rate = soon",
        "# Stagewire: see our wiki",
        "# our rate = 5 EUR", "# stagewire: ClientMTU = 1",
    ],
)  # fmt: skip
def test_a_comment_for_people_refuses_nothing(line: str) -> None:
    parse(f"{INTERFACE}{ONE}{line}\n", "f")


@pytest.mark.parametrize("above", ["# stagewire: Rate = 1M\n", "# Bert\n# stagewire: Allow = any\n# his limit\n"])
def test_a_limit_above_a_header_counts_for_no_other_peer(above: str) -> None:
    number = 10 + above.count("\n", 0, above.index("stagewire"))
    [mistake] = mistakes(f"{INTERFACE}{ONE}\n{above}{TWO}")
    assert mistake.startswith(f"f:{number}: ")
    assert "stands above the next section's header" in mistake
    assert (
        parse(f"{INTERFACE}{ONE}{above}\n{TWO}", "f").peers[0].limits
        == parse(f"{INTERFACE}{ONE}\n{above}\n{TWO}", "f").peers[0].limits
    )
    parse(f"{INTERFACE}\n# stagewire: Exit = on\n{TWO}", "f")


def test_what_a_second_section_of_a_peer_does_not_name_stays_limited() -> None:
    first = f"{ONE}# stagewire: Allow = 10.0.0.0/8\n# stagewire: Rate = 1M\n"
    later = f"[Peer]\nPublicKey = {ANNA}\n# stagewire: Forward = tcp 80 80\n"
    [peer] = parse(INTERFACE + first + later, "f").peers
    assert len(peer.access.allow) == len(peer.access.forwards) == 1
    assert peer.limits.rate_to == 1_000_000


# --- peers out of use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (INTERFACE + ONE + off(ONE), "f:9: this [Peer] is out of use, and the one in line 5 has the same PublicKey"),
        (INTERFACE + off(ONE) + ONE, "f:5: this [Peer] is out of use, and the one in line 9 has the same PublicKey"),
        (INTERFACE + off(ONE) + off(ONE), "f:9: this [Peer] is out of use, and the one in line 5 has the same PublicKey"),
        (INTERFACE + ONE + off(TWO.replace("0.3/32", "0.2")), "f:12: 10.8.0.2/32 is that of the [Peer] in line 5"),
        (INTERFACE + off("[Peer]\nAllowedIPs = 10.8.0.7"), "f:5: this [Peer] has no PublicKey"),
        (INTERFACE + off(f"{ONE}Rabbit = 1"), "f:9: unknown key 'Rabbit'"),
        (INTERFACE + off(f"{ONE}PostUp = id"), "f:9: PostUp belongs in [Interface]"),
        (INTERFACE + off("[Interface]\nPostUp = id"), "f:5: no [Interface] can be out of use"),
        (INTERFACE + off("Rate = 1M"), "f:5: is out of use, but its section in line 1 is in use"),
        (INTERFACE + ONE + off("Endpoint = a:1"), "f:9: is out of use, but its section in line 5 is in use"),
        (INTERFACE + off("[Peer]") + ONE[7:], "f:7: is in use, but its section in line 5 is out of use"),
        (INTERFACE + off(ONE) + "# stagewire: Rate = 1M\n", "f:9: is in use, but its section in line 5 is out of use"),
    ],
)  # fmt: skip
def test_what_could_never_come_back_is_refused_by_its_line(text: str, says: str) -> None:
    assert mistakes(text)[0].startswith(says)


@pytest.mark.parametrize(
    "text", [PEERS, INTERFACE + off(ONE) + TWO, INTERFACE + ONE + "\n# a note\n" + off(TWO) + "# end\n"]
)
def test_what_check_accepts_takes_every_command(text: str) -> None:
    assert warnings(text) == []
    for name in ("Anna", "Bert"):
        changed = done(SetPeer(name, (Setting("Rate", "1M"),)), text)
        for on in (False, True):
            changed = done(SwitchPeers((name,), on=on), changed)


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Anna", "anna", "ANNA", "\uff21nna", "Anna\u200b"])
def test_one_name_for_two_peers_is_said_and_never_given(name: str) -> None:
    twice = PEERS.replace("Name = Bert", f"Name = {name}")
    [warning] = warnings(twice)
    assert warning.startswith("f:9: the name ")
    assert "is that of the [Peer] in line 5 too" in warning
    if name.isprintable():
        for operation in (RenamePeer("Bert", name), AddPeers((NewPeer(name, NEW),))):
            with pytest.raises(Refused, match=rf"peer Anna \({ANNA[:6]}.*\) has the name already"):
                done(operation)
    done(SwitchPeers((BERT,), on=False), twice)
    done(RenamePeer(BERT, "Cleo"), twice)


def test_a_second_name_in_a_section_is_said_and_a_new_one_replaces_both() -> None:
    text = INTERFACE + ONE.replace("# Name = Anna\n", "# Name = Anna\n# Name = Anne\n")
    assert warnings(text) == ["f:7: a second name of this [Peer]; 'Anne' counts"]
    assert parse(done(RenamePeer("Anne", "Cleo"), text), "f").peers[0].name == "Cleo"
    apart = INTERFACE + ONE + "# Name = Anne\n"
    assert warnings(apart) == ["f:9: a second name of this [Peer]; 'Anna' counts"]
    assert parse(done(RenamePeer("Anna", "Cleo"), apart), "f").peers[0].name == "Cleo"


# --- port forwards ------------------------------------------------------------------------------------------

WEB = "# stagewire: Forward = tcp 80 80\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (INTERFACE + ONE + WEB + TWO + WEB, "f:14: Forward of tcp 80 is given in line 9 already"),
        (INTERFACE + ONE + WEB + WEB.replace("80 80", "80 81"), "f:10: Forward of tcp 80 is given in line 9 already"),
        (INTERFACE + ONE + WEB + off(TWO + WEB), "f:14: Forward of tcp 80 is given in line 9 already"),
        (INTERFACE + WEB.replace("80 80", "80 10.8.0.9:80") + ONE + WEB, "f:10: Forward of tcp 80 is given in line 5"),
        (INTERFACE + ONE + WEB.replace("tcp 80", "udp 4711"), "f:9: Forward leads away UDP port 4711"),
        (
            INTERFACE.replace("ListenPort = 4711\n", "") + ONE + WEB.replace("tcp 80", "udp 51820"),
            "f:8: Forward leads away UDP port 51820, on which this gateway may listen: give it a ListenPort",
        ),
    ],
)
def test_a_port_that_leads_to_two_places_is_refused(text: str, says: str) -> None:
    [mistake] = mistakes(text)
    assert mistake.startswith(says)


def test_a_port_for_each_family_or_said_twice_is_taken() -> None:
    both = WEB.replace("80 80", "80 10.8.0.3:80") + WEB.replace("80 80", "80 [fd00::3]:81")
    assert warnings(INTERFACE + ONE + TWO + both) == []
    assert warnings(INTERFACE + ONE + WEB + WEB.replace("tcp", "udp")) == []
    [warning] = warnings(INTERFACE + WEB.replace("80 80", "80 10.8.0.2:80") + ONE + WEB)
    assert warning == "f:10: Forward of tcp 80 is given in line 5 as well"


def test_a_command_gives_no_port_that_leads_elsewhere() -> None:
    web = done(SetPeer("Anna", (Setting("Forward", "tcp 80 80"),)))
    for text in (web, done(SwitchPeers(("Anna",), on=False), web)):
        for operation in (
            SetPeer("Bert", (Setting("Forward", "udp 80 80; tcp 80 8080"),)),
            AddPeers((NewPeer("Cleo", NEW, settings=(Setting("Forward", "tcp 80 80"),)),)),
        ):
            with pytest.raises(Refused, match=rf"^tcp 80 is forwarded to peer Anna \({ANNA[:6]}.*\) already"):
                done(operation, text)
    several = Setting("Forward", "tcp 80 80; tcp 80 81")
    with pytest.raises(Refused, match=r"^Forward of tcp 80 leads to two places"):
        done(SetPeer("Bert", (several,)))
    with pytest.raises(Refused, match="UDP port 4711"):
        done(SetPeer("Bert", (Setting("Forward", "udp 4711 80"),)))
    assert done(SetPeer("Anna", (Setting("Forward", "tcp 80 80; tcp 81 81"),)), web).count("Forward") == 2
