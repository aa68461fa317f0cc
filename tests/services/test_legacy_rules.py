"""Which rules of iptables-legacy drop what a gateway passes on."""

import re
import stat
from pathlib import Path

import pytest

from stagewire import config
from stagewire_cli import legacy_listing, legacy_rules

OPEN = "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
CLOSED = OPEN.replace("FORWARD ACCEPT", "FORWARD DROP")
IN, OUT = "-A FORWARD -i wg0 -j ACCEPT\n", "-A FORWARD -o wg0 -j ACCEPT\n"
KNOWN = "-m conntrack --ctstate RELATED,ESTABLISHED"
OWN = CLOSED.replace("COMMIT", ":OWN - [0:0]\nCOMMIT")
PORT = "# stagewire: Forward = tcp 80 10.8.0.2:80"
EXIT = config.parse_text("[Interface]\nAddress = 10.8.0.1/24\n# stagewire: Exit = on\n", Path("f"))


@pytest.mark.parametrize(
    ("saved", "ways"),
    [
        ("", []),
        (OPEN, []),
        (CLOSED, ["-i wg0", f"-o wg0 {KNOWN}"]),
        (CLOSED + IN, [f"-o wg0 {KNOWN}"]),
        (CLOSED + IN + f"-A FORWARD -o wg0 {KNOWN} -j ACCEPT\n", []),
        (CLOSED + IN + OUT, []),
        (CLOSED + f"-A FORWARD {KNOWN} -j ACCEPT\n", ["-i wg0"]),
        (CLOSED + IN + "-A FORWARD -m conntrack --ctstatus DNAT -j ACCEPT\n", [f"-o wg0 {KNOWN}"]),
        (CLOSED + IN + "-A FORWARD -m conntrack --ctdir REPLY -j ACCEPT\n", [f"-o wg0 {KNOWN}"]),
        (OPEN + "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n", ["-i wg0", f"-o wg0 {KNOWN}"]),
        (OPEN + "-A FORWARD -s 10.0.0.0/8 -j DROP\n", []),
        (OPEN + "-A FORWARD -p tcp -m tcp --dport 25 -j DROP\n", []),
        (OPEN + "-A FORWARD -i wg0 -j DROP\n", ["-i wg0"]),
        (OPEN + "-A FORWARD ! -i eth7 -j DROP\n", ["-i wg0"]),
        (OPEN + "-A FORWARD -i eth7 -j DROP\n", []),
        (OPEN + "-A INPUT -j DROP\n", []),
        (OPEN + "-A FORWARD -j DROP\n" + IN.replace("wg0", "wg1") + OUT, ["-i wg0", f"-o wg0 {KNOWN}"]),
        (OWN + "-A FORWARD -j OWN\n-A OWN -i lan0 -j ACCEPT\n-A OWN -j DROP\n", ["-i wg0", f"-o wg0 {KNOWN}"]),
        (OWN + IN + f"-A FORWARD -g OWN\n-A OWN {KNOWN} -j ACCEPT\n", []),
    ],
)
def test_what_drops_our_packets(saved: str, ways: list[str]) -> None:
    said = "".join(legacy_rules.dropping("iptables", saved, "wg0", EXIT))
    assert said == "".join(legacy_rules.dropping("iptables", saved, "wg0", None))
    assert re.findall(r"`iptables-legacy -I FORWARD (.*?) -j ACCEPT`", said) == ways


@pytest.mark.parametrize(
    ("text", "version", "ways"),
    [
        ("# stagewire: Exit = routed", 4, ["-i", "-o"]),
        ("# stagewire: Exit = routed-ipv6", 6, ["-i", "-o"]),
        ("# stagewire: Exit = routed-ipv6", 4, ["-i"]),
        (PORT, 4, ["-o"]),
        ("", 4, []),
    ],
)
def test_what_others_begin_needs_a_rule_of_its_own(text: str, version: int, ways: list[str]) -> None:
    interface = config.parse_text(f"[Interface]\nAddress = 10.8.0.1/24\n{text}\n", Path("f"))
    program = {4: "iptables", 6: "ip6tables"}[version]
    saved = CLOSED + f"-A FORWARD {KNOWN} -j ACCEPT\n"
    said = "".join(legacy_rules.dropping(program, saved, "wg0", interface))
    assert re.findall(r"-I FORWARD (-[io]) wg0 -j ACCEPT", said) == ways


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel lists for IPv4; IPv6 has no such file."""
    names = tmp_path / "names"
    monkeypatch.setattr(legacy_listing, "TABLES", {"iptables": names, "ip6tables": tmp_path / "none"})
    monkeypatch.setenv("PATH", str(tmp_path))
    return names


def program(folder: Path, script: str) -> None:
    path = folder / "iptables-legacy-save"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(stat.S_IRWXU)


def test_the_commands_are_named(tables: Path) -> None:
    tables.write_text("nat\nfilter\n")
    program(tables.parent, f"echo '{CLOSED}'")
    (said,) = legacy_rules.warnings("wg0", EXIT)
    assert (
        f"`iptables-legacy -I FORWARD -i wg0 -j ACCEPT` and `iptables-legacy -I FORWARD -o wg0 {KNOWN} -j ACCEPT`"
        in said
    )


@pytest.mark.parametrize("listed", ["", "nat\nmangle\n"])
def test_without_a_filter_table_nothing_runs(tables: Path, listed: str) -> None:
    tables.write_text(listed)
    program(tables.parent, f"echo ran > {tables.parent}/ran; echo '{CLOSED}'")
    assert not [*legacy_rules.warnings("wg0", EXIT)]
    assert not (tables.parent / "ran").exists()


def test_without_the_program_the_rules_are_named_unseen(tables: Path) -> None:
    tables.write_text("filter\n")
    (said,) = legacy_rules.warnings("wg0", EXIT)
    assert "iptables-legacy has rules that nftables" in said


def test_a_program_that_fails_says_nothing(tables: Path) -> None:
    tables.write_text("filter\n")
    program(tables.parent, "exit 1")
    assert not [*legacy_rules.warnings("wg0", EXIT)]
