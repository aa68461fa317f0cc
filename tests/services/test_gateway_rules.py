"""What key-service tells host-service of a file's exit, access rules and port forwards."""

from ipaddress import ip_address, ip_network

import pytest

from key_service.gateway_rules import rules
from stagewire.config import InterfaceConfig, encode_key, parse
from stagewire.control.gateway import NO_RULES, AccessClass, Destination, GatewayRules, PortForward
from stagewire.control.messages import FROM_KEY, HostSettings
from stagewire.proto import prefix

KEYS = [encode_key(bytes([number]) * 32) for number in range(1, 5)]
TCP, UDP, ICMP = 6, 17, 1


def read(interface: str = "", *peers: str) -> InterfaceConfig:
    text = f"[Interface]\nPrivateKey = {KEYS[0]}\nAddress = 10.66.0.1/24, fd66::1/64\n{interface}\n"
    for number, lines in enumerate(peers or ("", ""), start=2):
        allowed = f"10.66.0.{number}/32, fd66::{number}/128"
        text += f"[Peer]\nPublicKey = {KEYS[number - 1]}\nAllowedIPs = {allowed}\n{lines}\n"
    return parse(text, "wg0.conf")


def made(config: InterfaceConfig) -> GatewayRules:
    return rules(config, config.peers)


def sources(*numbers: int) -> tuple[bytes, ...]:
    texts = (text for number in numbers for text in (f"10.66.0.{number}/32", f"fd66::{number}/128"))
    return tuple(prefix.pack(ip_network(text)) for text in texts)


def to(text: str, protocol: int = 0, *ports: int) -> Destination:
    return Destination(prefix.pack(ip_network(text)) if text else b"", protocol, ports)


def test_a_file_that_says_nothing_of_it_has_no_rules() -> None:
    assert made(read()) is NO_RULES
    assert made(read("# stagewire: Firewall = open")) is NO_RULES


@pytest.mark.parametrize(("mode", "masquerades"), [("on", (4, 6)), ("routed-ipv6", (4,)), ("routed", ())])
def test_an_exit_forwards_both_families_and_hides_what_it_is_told(mode: str, masquerades: tuple[int, ...]) -> None:
    assert made(read(f"# stagewire: Exit = {mode}")) == GatewayRules((4, 6), masquerades)


def test_a_family_that_no_peer_has_is_left_alone() -> None:
    config = parse(
        f"[Interface]\nPrivateKey = {KEYS[0]}\nAddress = 10.66.0.1/24\n# stagewire: Exit = on\n"
        f"[Peer]\nPublicKey = {KEYS[1]}\nAllowedIPs = 10.66.0.2/32\n",
        "wg0.conf",
    )
    assert made(config) == GatewayRules((4,), (4,))


def test_peers_of_one_group_share_a_class_and_others_reach_everything() -> None:
    staff = "# stagewire: Groups = staff"
    found = made(read("# stagewire: Allow = staff: 10.0.0.0/24 tcp 443,8000-8010", staff, "", staff))
    assert found.access == (
        AccessClass(sources(2, 4), False, (to("10.0.0.0/24", TCP, 443, 443, 8000, 8010),)),
        AccessClass(sources(3), True, ()),
    )
    assert found.forwards == ()


def test_a_rule_for_all_a_groups_and_a_peers_own_add_up() -> None:
    common = "# stagewire: Allow = any udp 53\n# stagewire: Allow = staff: fd00::/8"
    found = made(read(common, "# stagewire: Groups = staff\n# stagewire: Allow = 10.1.0.0/16 icmp", ""))
    assert found.access == (
        AccessClass(sources(2), False, (to("", UDP, 53, 53), to("fd00::/8"), to("10.1.0.0/16", ICMP))),
        AccessClass(sources(3), False, (to("", UDP, 53, 53),)),
    )


def test_a_peer_in_a_group_without_rules_reaches_nothing() -> None:
    assert made(read("", "# stagewire: Groups = none", "")).access[0] == AccessClass(sources(2), False, ())


def test_a_peers_own_port_goes_to_its_address_of_each_family() -> None:
    found = made(read("", "# stagewire: Forward = tcp 8080 80", ""))
    assert found.ports == tuple(
        PortForward(TCP, 8080, ip_address(each).packed, 80, keeps_source=False) for each in ("10.66.0.2", "fd66::2")
    )
    assert (found.forwards, found.masquerades) == ((4, 6), ())


def test_a_peer_that_sends_all_through_the_tunnel_sees_the_senders_address() -> None:
    every4 = "# stagewire: ClientAllowedIPs = 0.0.0.0/0"
    forwards = "# stagewire: Forward = tcp 1 10.66.0.2:1\n# stagewire: Forward = tcp 1 [fd66::2]:1"
    assert [each.keeps_source for each in made(read(forwards, every4, "")).ports] == [True, False]
    assert made(read(forwards)).ports_alone
    assert not made(read(f"{forwards}\n# stagewire: Exit = on")).ports_alone
    assert [each.keeps_source for each in made(read(f"{forwards}\n{every4}")).ports] == [True, False]


def test_the_rules_pass_the_pipe() -> None:
    lines = ("Exit = on", "Isolation = on", "Allow = any tcp 80", "Forward = udp 5 10.66.0.2:6")
    everything = made(read("\n".join(f"# stagewire: {line}" for line in lines)))
    said = HostSettings(True, (), 0, "auto", 0, 1, everything)
    assert FROM_KEY.unpack_untrusted(FROM_KEY.pack(said)) == said
