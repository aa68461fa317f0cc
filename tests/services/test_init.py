"""What `stagewire init` asks, and what becomes of the answers."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from stagewire import config
from stagewire_cli import init, neighbours
from stagewire_cli.failures import Failed


def test_the_answers_are_in_the_file(tmp_path: Path) -> None:
    answers = {
        "Address or name where clients find this gateway": "vpn.example.org:4500",
        "Networks of the tunnel": "10.9.0.0/24",
        "DNS servers of the clients, if any": "10.9.0.1, corp.example",
    }
    path = tmp_path / "wg7.conf"
    init.make(path, None, None, None, None, lambda question, **_options: answers.pop(question), exits=False)
    made = config.load(path)
    assert not answers
    assert str(made.client_endpoint) == "vpn.example.org:4500"
    assert [str(each) for each in made.addresses] == ["10.9.0.1/24"]
    assert made.client.dns == ("10.9.0.1", "corp.example")


def test_who_only_presses_enter_gets_what_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def enter(question: str, *, default: str, **_options: object) -> str:
        asked.append((question, default))
        return default

    monkeypatch.setattr(init, "own_address", lambda: "192.0.2.7")
    path = tmp_path / "wg7.conf"
    port, place = init.make(path, None, None, None, None, enter, exits=False)
    made = config.load(path)
    assert str(place) == f"192.0.2.7:{port}"
    assert ", ".join(str(each.network) for each in made.addresses) == asked[1][1]
    assert made.client.dns == ()
    assert len(asked) == 3


def test_what_an_option_says_is_not_asked_for(tmp_path: Path) -> None:
    def never(question: str, **_options: object) -> str:
        raise AssertionError(question)

    init.make(tmp_path / "wg7.conf", "vpn.example.org", "10.9.0.0/24", "", 4500, never, exits=False)
    assert config.load(tmp_path / "wg7.conf").listen_port == 4500


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a file of another gateway, a link and a route."""
    elsewhere = tmp_path / "wireguard"
    elsewhere.mkdir()
    other = "[Interface]\nAddress = 10.8.0.1/24, fd08::1/64 # ours\nListenPort=51820\n[Peer]\nAddress = 10.13.0.1/24\n"
    (elsewhere / "old.conf").write_text(other)
    links = [(IPv4Network("192.0.2.0/24"), "eth0", True), (IPv4Network("10.0.0.0/8"), "eth0", False)]
    links += [(IPv4Network("10.66.0.0/24"), "eth1", False), (IPv4Network("10.9.0.0/24"), "wg7", True)]
    monkeypatch.setattr(neighbours, "FOLDERS", (elsewhere,))
    monkeypatch.setattr(neighbours, "_routes4", lambda: iter(links))
    monkeypatch.setattr(neighbours, "_routes6", lambda: iter([(IPv6Network("fd01::/64"), "eth0", True)]))
    monkeypatch.setattr(init, "is_free", lambda _port: True)
    return tmp_path


@pytest.mark.parametrize(
    ("network", "port", "why"),
    [
        ("10.8.0.0/16", None, "overlaps 10.8.0.0/24 of .*/old.conf: give another"),
        ("10.9.0.0/24, fd08::/64", None, "fd08::/64 of .*/old.conf"),
        ("10.9.0.0/24, fd01::/64", None, "fd01::/64 of eth0 here"),
        ("192.0.2.128/25", None, "192.0.2.0/24 of eth0 here"),
        ("10.66.0.0/16", None, "10.66.0.0/24 of a route of this host by eth1"),
        ("203.0.113.0/24", None, "203.0.113.9 where clients find the gateway"),
        ("10.9.0.0/24", 51820, "--port 51820 is the ListenPort of .*/old.conf"),
    ],
)
def test_what_another_has_is_refused(folder: Path, network: str, port: int | None, why: str) -> None:
    with pytest.raises(Failed, match=why):
        init.make(folder / "wg7.conf", "203.0.113.9", network, "", port, None, exits=False)
    assert not (folder / "wg7.conf").exists()


def test_what_others_have_is_not_suggested(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_routes4", lambda: iter([(IPv4Network("10.13.0.0/16"), "eth0", True)]))
    port, _ = init.make(folder / "wg7.conf", "203.0.113.9", None, None, None, None, exits=True)
    made = config.load(folder / "wg7.conf", strict=True)
    assert port == made.listen_port == 51821
    assert str(made.addresses[0].network) == "10.66.0.0/24"


def test_the_tunnels_own_network_and_a_part_of_a_wide_route_are_free(folder: Path) -> None:
    init.make(folder / "wg7.conf", "203.0.113.9", "10.9.0.0/24", "", None, None, exits=False)
    init.make(folder / "wg8.conf", "203.0.113.9", "10.77.0.0/24", "", None, None, exits=False)
    with pytest.raises(Failed, match=r"10.77.0.0/24 of .*/wg8.conf"):
        init.make(folder / "wg9.conf", "203.0.113.9", "10.77.0.0/24", "", None, None, exits=False)
