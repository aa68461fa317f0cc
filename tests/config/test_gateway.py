"""Exit, access and port forwards in a file: what a line means, that a mistake refuses the file, that saving keeps all."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.config import ConfigError, InterfaceConfig, encode_key, gateway, merge, parse
from stagewire.config.model import Access, Forward, Reach
from stagewire.config.operations import SetPeer, carry_out
from stagewire.config.roster import Refused
from stagewire.config.settings import Setting

KEYS = [encode_key(bytes([number]) * 32) for number in (1, 2)]
INTERFACE = f"[Interface]\nPrivateKey = {KEYS[0]}\nAddress = 10.66.0.1/24, fd66::1/64\n"
PEER = f"\n[Peer]\n# Name = anna\nPublicKey = {KEYS[1]}\nAllowedIPs = 10.66.0.2/32, fd66::2/128\n"
WHOLE = (
    INTERFACE
    + """# stagewire: Exit = on
# stagewire: Isolation = on
# stagewire: Firewall = open
# stagewire: Allow = staff: 10.0.0.0/24 tcp 443
# stagewire: Allow = any udp 53
# stagewire: Forward = tcp 8080 10.66.0.2:80
# stagewire: Forward = udp 53 [fd66::2]:53
"""
    + PEER
    + """# stagewire: Groups = staff, guests
# stagewire: Allow = fd00::/8
# stagewire: Forward = tcp 2222 22
"""
)


def read(text: str) -> InterfaceConfig:
    return parse(text, "wg0.conf")


def test_each_line_is_read() -> None:
    found = read(WHOLE)
    assert (found.exit, found.isolation, found.open_firewall) == ("on", True, True)
    assert found.access == Access(
        allow=(Reach(ip_network("10.0.0.0/24"), "tcp", ((443, 443),), "staff"), Reach(None, "udp", ((53, 53),))),
        forwards=(Forward("tcp", 8080, ip_address("10.66.0.2"), 80), Forward("udp", 53, ip_address("fd66::2"), 53)),
    )
    assert found.peers[0].access == Access(
        ("staff", "guests"), (Reach(ip_network("fd00::/8")),), (Forward("tcp", 2222, None, 22),)
    )
    assert found.warnings == ()


def test_a_new_file_says_the_same_and_an_old_one_keeps_its_lines() -> None:
    found = read(WHOLE)
    assert read(merge("", found)) == found
    assert merge(WHOLE, found) == WHOLE
    less = replace(found, access=replace(found.access, allow=found.access.allow[1:]), exit="off")
    changed = merge(WHOLE, less)
    assert set(WHOLE.splitlines()) - set(changed.splitlines()) == {
        "# stagewire: Allow = staff: 10.0.0.0/24 tcp 443", "# stagewire: Exit = on"
    }  # fmt: skip
    assert read(changed) == less


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Exit = yes", "Exit must be one of off, on, routed-ipv6, routed, not 'yes'"),
        ("Exit =", "Exit has no value"),
        ("Exit", "is neither"),
        ("Firewall = shut", "Firewall must be open or closed"),
        ("Isolation = 1", "Isolation must be on or off"),
        ("Alow = any", "did you mean Allow?"),
        ("Allow = 10.0.0.0/33", "Allow must be a prefix such as 10.0.0.0/24"),
        ("Allow = any tcp 70000", "Allow must have ports from 1 to 65535"),
        ("Allow = any tcp 9-8", "ends before it begins"),
        ("Allow = any 443", "Allow must have the protocol tcp, udp or icmp"),
        ("Allow = any icmp 8", "Allow has ports only with tcp or udp"),
        ("Allow = staff 10.0.0.0/8", "Allow must be a prefix"),
        ("Allow = 1st: 10.0.0.0/8", "Allow must name groups of letters"),
        ("Allow = any tcp 80 443", "Allow must be a destination"),
        ("Forward = tcp 80", "Forward must be such as tcp 8080 10.66.0.2:80"),
        ("Forward = tcp 80 81", "Forward must name the address to forward to"),
        ("Forward = icmp 80 10.0.0.1:80", "Forward must be such as"),
        ("Forward = tcp 80 fd66::2:80", "Forward must have an address, IPv6 in brackets"),
        ("Forward = tcp 80 [10.0.0.1]:80", "Forward must have an address, IPv6 in brackets"),
        ("Groups = staff", "Groups belongs in [Peer]"),
    ],
)
def test_a_mistake_refuses_the_file_though_it_is_in_a_comment(line: str, says: str) -> None:
    """A line that is left out would let packets pass that the operator wants kept."""
    with pytest.raises(ConfigError) as refused:
        read(f"{INTERFACE}# stagewire: {line}\n{PEER}")
    [mistake] = refused.value.mistakes
    assert mistake.line == 4
    assert says in str(mistake)


def test_a_line_behind_another_is_refused_as_well() -> None:
    with pytest.raises(ConfigError, match="needs a line of its own"):
        read(INTERFACE.replace("/64\n", "/64 # stagewire: Isolation = on\n"))


def test_a_peer_takes_no_group_before_allow_and_a_group_without_rules_is_said() -> None:
    with pytest.raises(ConfigError, match="Allow takes the group 'staff' only in a line"):
        read(f"{INTERFACE}{PEER}# stagewire: Allow = staff: any tcp 1\n")
    [warning] = read(f"{INTERFACE}{PEER}# stagewire: Groups = staf\n").warnings
    assert warning.line == 9
    assert "no Allow line of [Interface] names the group staf" in warning.message
    assert read(f"{INTERFACE}# stagewire: Allow = staf: any\n{PEER}# stagewire: Groups = staf\n").warnings == ()


def test_a_port_forward_to_a_peer_without_an_address_of_its_own_is_said() -> None:
    wide = PEER.replace("10.66.0.2/32, fd66::2/128", "10.66.2.0/24")
    [warning] = read(f"{INTERFACE}{wide}# stagewire: Forward = tcp 80 80\n").warnings
    assert (warning.line, "Forward leads nowhere" in warning.message) == (9, True)
    assert read(f"{INTERFACE}{wide}# stagewire: Forward = tcp 80 10.66.2.1:80\n").warnings == ()


@pytest.mark.parametrize("whole", ["", "# stagewire: Forward = udp 4711 10.66.0.2:80\n"])
def test_no_forward_leads_the_gateways_own_port_away(whole: str) -> None:
    forward = "" if whole else "# stagewire: Forward = udp 4711 80\n"
    with pytest.raises(ConfigError, match="UDP port 4711, which is this gateway's ListenPort"):
        read(f"{INTERFACE}ListenPort = 4711\n{whole}{PEER}{forward}")
    assert read(f"{INTERFACE}ListenPort = 4712\n{whole}{PEER}{forward}").warnings == ()


def test_a_port_that_is_forwarded_twice_is_said() -> None:
    line = "# stagewire: Forward = tcp 8080 80\n"
    first = f"{INTERFACE}# stagewire: Forward = tcp 8080 10.66.0.2:80\n{PEER}{line}"
    [warning] = read(first).warnings
    assert "Forward of tcp 8080 is given in line" in warning.message


def test_a_setting_replaces_all_lines_of_its_key_and_an_empty_one_removes_them() -> None:
    def changed(text: str, key: str, value: str) -> str:
        return carry_out(text, "wg0.conf", SetPeer("anna", (Setting(key, value),)), {}, 0.0).text

    text = changed(WHOLE, "Allow", "10.1.0.0/16 tcp 80,443; any icmp")
    assert [gateway.reach_text(each) for each in read(text).peers[0].access.allow] == [
        "10.1.0.0/16 tcp 80,443",
        "any icmp",
    ]
    assert read(text).peers[0].access.groups == ("staff", "guests")
    assert read(changed(text, "Allow", "")).peers[0].access.allow == ()
    assert read(changed(text, "Groups", "")).peers[0].access.groups == ()
    with pytest.raises(Refused, match="Forward must be such as"):
        changed(text, "Forward", "tcp")


ports = st.lists(
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(sorted).map(tuple), max_size=gateway.MAX_RANGES
)


@given(
    st.one_of(st.none(), st.ip_addresses().map(ip_network)),
    st.sampled_from(["", "tcp", "udp", "icmp"]),
    ports,
    st.sampled_from(["", "staff", "a-b_1"]),
)
def test_a_destination_is_written_as_it_is_read(
    to: object, protocol: str, some: list[tuple[int, int]], group: str
) -> None:
    text = f"{group}: " * bool(group) + ("any" if to is None else str(to)) + f" {protocol}"
    if protocol in ("tcp", "udp") and some:
        text += " " + ",".join(f"{low}-{high}" for low, high in some)
    found = gateway.reach(text, grouped=True)
    assert gateway.reach(gateway.reach_text(found), grouped=True) == found
    asked = {port for low, high in some for port in (low, high)} if protocol in ("tcp", "udp") else set()
    assert all(any(low <= port <= high for low, high in found.ports) for port in asked)
    assert all(high + 1 < low for (_, high), (low, _) in zip(found.ports, found.ports[1:], strict=False))


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_message(text: str) -> None:
    for read_one in (gateway.reach, gateway.forward, gateway.groups, gateway.exit_mode):
        try:
            read_one(text)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
