"""DNS servers by resolvconf and by resolvectl: what each is called with. Both are stand-ins that write it down."""

from pathlib import Path

import pytest

from stagewire_cli import dns

ENTRIES = ["192.0.2.53", "example.com", "2001:db8::53", "example.net"]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was called; nothing but our stand-ins is on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(dns, "INTERFACE_ORDER", tmp_path / "interface-order")
    (tmp_path / "bin").mkdir()
    return tmp_path / "record"


def stand_in(record: Path, name: str, status: int = 0) -> None:
    program = record.with_name("bin") / name
    said = "echo first; echo it does not work >&2; " if status else ""
    program.write_text(
        f'#!/bin/sh\necho "{name} $*" >> {record}\nwhile read -r line; do echo "$line" >> {record}; done\n'
        f"{said}exit {status}\n"
    )
    program.chmod(0o755)


def set_servers(entries: list[str]) -> list[str]:
    warnings: list[str] = []
    dns.set_servers("wg0", entries, warnings.append)
    return warnings


@pytest.mark.parametrize(("order", "name"), [(None, "wg0"), ("# first\nlo.inet6\ntun*\neth*\n", "tun.wg0")])
def test_resolvconf(record: Path, order: str | None, name: str) -> None:
    """As wg-quick(8) calls it: exclusive, with the least metric; by a name of Debian's first kind where it has kinds."""
    if order is not None:
        dns.INTERFACE_ORDER.write_text(order)
    stand_in(record, "resolvconf")
    stand_in(record, "resolvectl")
    assert set_servers(ENTRIES) == []
    dns.unset_servers("wg0", ENTRIES)
    assert record.read_text().splitlines() == [
        f"resolvconf -a {name} -m 0 -x",
        "nameserver 192.0.2.53",
        "nameserver 2001:db8::53",
        "search example.com example.net",
        f"resolvconf -d {name} -f",
    ]


def test_resolvectl_where_there_is_no_resolvconf(record: Path) -> None:
    """The root domain as one to route by, so that all questions go through the tunnel; all goes with the interface."""
    stand_in(record, "resolvectl")
    assert set_servers(ENTRIES) == []
    dns.unset_servers("wg0", ENTRIES)
    assert record.read_text().splitlines() == [
        "resolvectl dns wg0 192.0.2.53 2001:db8::53",
        "resolvectl domain wg0 example.com example.net ~.",
    ]


def test_what_goes_wrong_is_one_line(record: Path) -> None:
    assert set_servers(ENTRIES) == ["DNS is not set: there is neither resolvconf nor resolvectl"]
    stand_in(record, "resolvectl", status=1)
    [warning] = set_servers(ENTRIES)
    assert warning.startswith("DNS is not set: resolvectl says")
    assert "it does not work" in warning
    assert len(record.read_text().splitlines()) == 1, "the domains aren't tried where the servers weren't taken"


def test_without_servers_nobody_is_called(record: Path) -> None:
    stand_in(record, "resolvconf")
    assert set_servers([]) == []
    dns.unset_servers("wg0", [])
    assert not record.exists()
