"""What differs between two configurations, in lines: everything does, in one of them, and no line holds a secret."""

from dataclasses import fields, replace
from typing import Any

import pytest

from stagewire.config import HostPort, InterfaceConfig, difference, encode_key, parse
from stagewire.config.model import Access, ClientSettings, Forward, Reach

KEYS = [encode_key(bytes([number]) * 32) for number in range(1, 9)]
TEXT = f"""[Interface]
PrivateKey = {KEYS[0]}
ListenPort = 51820
Address = 10.0.0.1/24, fd00::1/64
[Peer]
PublicKey = {KEYS[1]}
PresharedKey = {KEYS[2]}
AllowedIPs = 10.1.0.0/16
Endpoint = [2001:db8::1]:5
[Peer]
PublicKey = {KEYS[3]}
AllowedIPs = 10.2.0.0/16, 10.3.0.0/16
"""
PEER = f"    ~ peer {KEYS[1]}".strip()


ACCESS = Access(("staff",), (Reach(None, "tcp"),), (Forward("tcp", 1, None, 2),))


def read(text: str) -> InterfaceConfig:
    return parse(text, "wg0.conf")


def edited(*changes: tuple[str, str]) -> list[str]:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return difference(read(TEXT), read(text))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ([(KEYS[0], KEYS[4])], ["~ PrivateKey is another"]),
        ([("51820", "51821")], ["~ ListenPort 51820 -> 51821"]),
        ([("ListenPort = 51820\n", "")], ["- ListenPort 51820"]),
        ([("Address", "FwMark = 0x10\nAddress")], ["+ FwMark 16"]),
        ([("10.0.0.1/24, ", "10.0.0.2/24, ")], ["- Address 10.0.0.1/24", "+ Address 10.0.0.2/24"]),
        ([("Address", "DNS = 1.1.1.1, example.com\nAddress")], ["+ DNS 1.1.1.1", "+ DNS example.com"]),
        ([("Address", "MTU = 1300\nTable = off\nAddress")], ["+ MTU 1300", "~ Table auto -> off"]),
        ([("Address", "PostUp = a\nPreDown = b\nAddress")], ["+ PostUp a  (runs at the next up)", "+ PreDown b"]),
        ([("Address", "SaveConfig = true\nAddress")], ["~ SaveConfig false -> true"]),
        ([("Address", "# stagewire: RekeyAfterTime = 30\nAddress")], ["~ RekeyAfterTime 120 -> 30"]),
        ([("Address", "# stagewire: Exit = on\n# stagewire: Firewall = open\n# stagewire: Allow = any\nAddress")],
         ["~ Exit off -> on", "~ Firewall closed -> open", "+ Allow any"]),
        ([("Endpoint", "# stagewire: Groups = a\n# stagewire: Forward = udp 1 2\nEndpoint")],
         [PEER, "    + Groups a", "    + Forward udp 1 2"]),
        ([(KEYS[2], KEYS[5])], [PEER, "    ~ PresharedKey is another"]),
        ([(f"PresharedKey = {KEYS[2]}\n", "")], [PEER, "    - PresharedKey"]),
        ([("10.1.0.0/16", "10.1.0.0/17, 10.1.0.0/16")], [PEER, "    + AllowedIPs 10.1.0.0/17"]),
        ([("[2001:db8::1]:5", "a.example:6")], [PEER, "    ~ Endpoint [2001:db8::1]:5 -> a.example:6"]),
        ([("Endpoint", "PersistentKeepalive = 5\nEndpoint")], [PEER, "    + PersistentKeepalive 5"]),
        ([("Endpoint", "# stagewire: ResponseTimestamp = on\nEndpoint")], [PEER, "    ~ ResponseTimestamp false -> true"]),
        ([(KEYS[3], KEYS[6])], [f"- peer {KEYS[3]}  AllowedIPs 10.2.0.0/16, 10.3.0.0/16",
                                f"+ peer {KEYS[6]}  AllowedIPs 10.2.0.0/16, 10.3.0.0/16"]),
        ([("10.2.0.0/16, 10.3.0.0/16", "10.3.0.0/16, 10.2.0.0/16")], []),
        ([("[Interface]", "# a comment\n[Interface]")], []),
    ],
)  # fmt: skip
def test_each_thing_that_differs_is_a_line(changes: list[tuple[str, str]], lines: list[str]) -> None:
    assert edited(*changes) == lines


def test_a_key_that_comes_or_goes_is_said_and_not_shown() -> None:
    with_key, without = read(TEXT), replace(read(TEXT), private_key=None)
    assert difference(with_key, without) == ["- PrivateKey"]
    assert difference(without, with_key) == ["+ PrivateKey"]
    clamped = replace(with_key, private_key=bytes([0, *[1] * 30, 65]))
    assert difference(with_key, clamped) == [], "the same key to the curve"
    secrets = {KEYS[0], KEYS[2], KEYS[4], KEYS[5]}
    assert not any(secret in line for secret in secrets for line in edited((KEYS[0], KEYS[4]), (KEYS[2], KEYS[5])))


def test_no_field_is_left_out() -> None:
    """Whoever adds one to the model has to say how it is shown."""
    before, left_out = read(TEXT), {"peers", "warnings"}
    others: dict[str, Any] = {
        "private_key": bytes(32), "listen_port": 9, "fwmark": 9, "addresses": (), "dns": ("1.1.1.1",), "mtu": 1300,
        "table": "off", "save_config": True, "rekey_after_time": 9.0, "client": ClientSettings(mtu=1300),
        "isolation": True, "open_firewall": True, "access": ACCESS,
    }  # fmt: skip
    for field in fields(InterfaceConfig):
        if field.name not in left_out:
            assert difference(before, replace(before, **{field.name: others.get(field.name, ("x",))})), field.name
    peer = before.peers[0]
    of_peer: dict[str, Any] = {
        "preshared_key": bytes(32), "allowed_ips": (), "endpoint": HostPort("a", 1), "persistent_keepalive": 9,
        "response_timestamp": True, "expires": 9, "client": ClientSettings(keepalive=9), "access": ACCESS,
    }  # fmt: skip
    for name, value in of_peer.items():
        assert difference(before, replace(before, peers=(replace(peer, **{name: value}), before.peers[1]))), name
