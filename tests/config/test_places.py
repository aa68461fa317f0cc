"""Warnings of endpoints and prefixes that can't be a peer's."""

from pathlib import Path

import pytest

from stagewire.config import encode_key, parse_text
from stagewire.config.mistakes import ConfigError
from stagewire.config.parser import parse

KEY, PRIVATE = encode_key(bytes([9, *[7] * 31])), encode_key(bytes([8, *[5] * 31]))


def warned(peer: str, interface: str = "") -> list[str]:
    text = f"[Interface]\nPrivateKey = {PRIVATE}\nListenPort = 51820\nAddress = 10.8.0.1/24, fd00::1/64\n{interface}\n"
    text += f"[Peer]\nPublicKey = {KEY}\n{peer}\n"
    return [str(each) for each in parse_text(text, Path("wg0.conf")).warnings]


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ("AllowedIPs = 10.8.0.1/32", "10.8.0.1/32 of this [Peer] is this gateway's own, the Address in line 4"),
        ("AllowedIPs = fd00::1", "fd00::1/128 of this [Peer] is this gateway's own"),
        ("Endpoint = 10.8.0.1:51820", "Endpoint 10.8.0.1:51820 is this gateway itself"),
        ("Endpoint = 127.0.0.1:51820", "is this gateway itself"),
        ("Endpoint = [::1]:51820", "is this gateway itself"),
        ("Endpoint = vpn.example:51820", "is this gateway itself"),
        ("Endpoint = 0.0.0.0:51820", "is no host's address"),
        ("Endpoint = 255.255.255.255:51820", "is no host's address"),
        ("Endpoint = [::]:51820", "is no host's address"),
        ("Endpoint = 224.0.0.1:51820", "is a multicast address"),
        ("Endpoint = [ff02::1]:51820", "is a multicast address"),
        ("AllowedIPs = 10.8.0.2/32\nEndpoint = 10.8.0.2:51820", "lies in 10.8.0.2/32, which this [Peer] has inside"),
    ],
)
def test_what_can_not_be_a_peers(peer: str, said: str) -> None:
    [warning] = warned(peer, "# stagewire: ClientEndpoint = VPN.example:51820")
    assert said in warning
    assert warning.startswith("wg0.conf:")


@pytest.mark.parametrize(
    ("peer", "interface"),
    [
        ("AllowedIPs = 10.8.0.0/24", ""),
        ("Endpoint = 10.8.0.1:51821", ""),
        ("Endpoint = 192.0.2.1:51820\nAllowedIPs = 0.0.0.0/0", ""),
        ("AllowedIPs = 10.8.0.2/32\nEndpoint = 10.8.0.2:51820", "FwMark = 7"),
        ("AllowedIPs = 10.8.0.2/32\nEndpoint = 10.8.0.2:51820", "Table = off"),
    ],
)
def test_what_may_be_a_peers(peer: str, interface: str) -> None:
    assert warned(peer, interface) == []


def test_strictly_each_is_a_mistake() -> None:
    text = f"[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {KEY}\nEndpoint = 224.0.0.1:51820\n"
    with pytest.raises(ConfigError, match="multicast"):
        parse(text, "wg0.conf", strict=True)
