"""The firewall of a default route: the text for nft, and what nft makes of it in a namespace."""

import os
import secrets
from pathlib import Path

import pytest

from key_service.announce import DEFAULT_ROUTE_MARK
from lab.namespaces import Namespace
from stagewire import config
from stagewire.config import InterfaceConfig, encode_key, public_key
from stagewire_cli import default_route

ODD_NAME = "a=b+c.d_e-f"


def interface(allowed_ips: str, *lines: str) -> InterfaceConfig:
    text = f"""
[Interface]
PrivateKey = {encode_key(secrets.token_bytes(32))}
Address = 10.9.0.1/24, 10.9.9.1/32, fd09::1/64
{chr(10).join(lines)}
[Peer]
PublicKey = {encode_key(public_key(secrets.token_bytes(32)))}
AllowedIPs = {allowed_ips}
"""
    return config.parse(text, "wg0.conf")


def complain(text: str) -> None:
    raise AssertionError(text)


def test_the_mark_is_the_one_that_key_service_takes() -> None:
    assert default_route.MARK == DEFAULT_ROUTE_MARK


@pytest.mark.parametrize(
    ("allowed_ips", "line", "expected"),
    [
        ("0.0.0.0/0, ::/0", "", {4, 6}),
        ("0.0.0.0/0", "", {4}),
        ("::/0, 10.0.0.0/8", "", {6}),
        ("0.0.0.0/1, 128.0.0.0/1", "", set()),
        ("0.0.0.0/0, ::/0", "Table = off", set()),
        ("0.0.0.0/0, ::/0", "Table = 1234", set()),
    ],
)
def test_only_a_default_route_with_policy_rules_needs_any(allowed_ips: str, line: str, expected: set[int]) -> None:
    assert default_route.families_of(interface(allowed_ips, line)) == expected


def test_each_family_has_its_own_addresses_and_marks_guarded() -> None:
    text = "\n".join(default_route.rules("wg0", interface("::/0", "FwMark = 0x77")))
    assert "ip6 daddr fd09::1 " in text
    assert "10.9.0.1" not in text
    assert "meta nfproto ipv6 meta l4proto udp ct mark 119 " in text
    assert "ipv4" not in text


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
@pytest.mark.parametrize("name", ["wg0", ODD_NAME])
def test_nft_takes_it_once_and_again_and_gives_it_back(name: str) -> None:
    settings = interface("0.0.0.0/0, ::/0")
    with Namespace("nft") as namespace:

        def listed() -> str:
            return namespace.run("nft", "list", "ruleset").stdout

        def valid_mark() -> str:
            return namespace.call(Path("/proc/sys/net/ipv4/conf/all/src_valid_mark").read_text).strip()

        namespace.run("nft", "add", "table", "inet", "other")
        before = listed()
        namespace.call(lambda: default_route.remove_rules(name))
        assert listed() == before
        namespace.call(lambda: default_route.set_rules(name, settings, complain))
        first = listed()
        assert first.count("drop") == 3
        assert first.count("mark set") == 4
        assert valid_mark() == "1"
        namespace.call(lambda: default_route.set_rules(name, settings, complain))
        assert listed() == first
        namespace.call(lambda: default_route.remove_rules(name))
        assert listed() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_without_nft_the_operator_is_told_what_that_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setenv("PATH", str(tmp_path))
    with_nothing = interface("10.0.0.0/8")
    default_route.set_rules("wg0", with_nothing, complain)
    default_route.set_rules("wg0", interface("::/0"), said.append)
    assert len(said) == 1
    assert "nft" in said[0]
    assert "rp_filter" in said[0]
    default_route.remove_rules("wg0")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace")
def test_what_nft_refuses_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
    nft.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said: list[str] = []
    default_route.set_rules("wg0", interface("::/0"), said.append)
    assert said == ["the default route's firewall rules are not set: nft says no such thing"]
