"""Which rules of iptables-legacy drop what a gateway passes on."""

import stat
from pathlib import Path

import pytest

from stagewire_cli import legacy_rules
from stagewire_cli.legacy_rules import drops

OPEN = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
CLOSED = OPEN.replace("FORWARD ACCEPT", "FORWARD DROP")
IN, OUT = "-A FORWARD -i wg0 -j ACCEPT\n", "-A FORWARD -o wg0 -j ACCEPT\n"


@pytest.mark.parametrize(
    ("saved", "dropped"),
    [
        ("", False),
        (OPEN, False),
        (CLOSED, True),
        (CLOSED + IN, True),
        (CLOSED + IN + OUT, False),
        (OPEN + "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n", True),
        (OPEN + "-A FORWARD -s 10.0.0.0/8 -j DROP\n", True),
        (OPEN + "-A FORWARD -i wg0 -j DROP\n", True),
        (OPEN + "-A FORWARD -i eth7 -j DROP\n", False),
        (OPEN + "-A INPUT -j DROP\n", False),
        (OPEN + "-A FORWARD -j DROP\n" + IN.replace("wg0", "wg1") + OUT, True),
    ],
)
def test_what_may_drop_our_packets(saved: str, dropped: bool) -> None:
    assert drops(saved, "wg0") is dropped


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel lists for IPv4; IPv6 has no such file."""
    names = tmp_path / "names"
    monkeypatch.setattr(legacy_rules, "TABLES", {"iptables": names, "ip6tables": tmp_path / "none"})
    monkeypatch.setenv("PATH", str(tmp_path))
    return names


def program(folder: Path, script: str) -> None:
    path = folder / "iptables-legacy-save"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(stat.S_IRWXU)


def test_the_commands_are_named(tables: Path) -> None:
    tables.write_text("nat\nfilter\n")
    program(tables.parent, f"echo '{CLOSED}'")
    (said,) = legacy_rules.warnings("wg0")
    assert "`iptables-legacy -I FORWARD -i wg0 -j ACCEPT` and `iptables-legacy -I FORWARD -o wg0 -j ACCEPT`" in said


@pytest.mark.parametrize("listed", ["", "nat\nmangle\n"])
def test_without_a_filter_table_nothing_runs(tables: Path, listed: str) -> None:
    tables.write_text(listed)
    program(tables.parent, f"echo ran > {tables.parent}/ran; echo '{CLOSED}'")
    assert not [*legacy_rules.warnings("wg0")]
    assert not (tables.parent / "ran").exists()


def test_without_the_program_the_rules_are_named_unseen(tables: Path) -> None:
    tables.write_text("filter\n")
    (said,) = legacy_rules.warnings("wg0")
    assert "iptables-legacy has rules that nftables" in said


def test_a_program_that_fails_says_nothing(tables: Path) -> None:
    tables.write_text("filter\n")
    program(tables.parent, "exit 1")
    assert not [*legacy_rules.warnings("wg0")]
