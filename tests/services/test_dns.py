"""DNS servers by resolvconf and by resolvectl: what each is called with. Both are stand-ins that write it down."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from stagewire_cli import dns

WG_QUICK, BASH = shutil.which("wg-quick"), shutil.which("bash")
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


NOTED: list[str] = []
"""What `set_servers` has said it will be known by."""


def set_servers(entries: list[str]) -> list[str]:
    warnings: list[str] = []
    NOTED.clear()
    dns.set_servers("wg0", entries, warnings.append, NOTED.append)
    return warnings


@pytest.mark.parametrize(("order", "name"), [(None, "wg0"), ("# first\nlo.inet6\ntun*\neth*\n", "tun.wg0")])
def test_resolvconf(record: Path, order: str | None, name: str) -> None:
    """As wg-quick(8) calls it: exclusive, with the least metric; by a name of Debian's first kind where it has kinds."""
    if order is not None:
        dns.INTERFACE_ORDER.write_text(order)
    stand_in(record, "resolvconf")
    stand_in(record, "resolvectl")
    assert set_servers(ENTRIES) == []
    assert [name] == NOTED
    assert dns.unset_servers(name) == ""
    assert record.read_text().splitlines() == [
        f"resolvconf -a {name} -m 0 -x",
        "nameserver 192.0.2.53",
        "nameserver 2001:db8::53",
        "search example.com example.net",
        f"resolvconf -d {name} -f",
    ]


FORMS = [
    ["192.0.2.53"],
    ENTRIES,
    ["192.0.2.53", "~corp.example", "example.net"],
    ["fe80::53%eth0", "~."],
    ["192.0.2", "192.0.2.53:5353", "_x.example"],
    ["example.com", "~corp.example"],
    [],
]


@pytest.mark.skipif(not WG_QUICK, reason="needs wireguard-tools")
@pytest.mark.parametrize("entries", FORMS)
def test_resolvconf_is_called_as_by_wg_quick(record: Path, entries: list[str]) -> None:
    """wg-quick's own functions read the same DNS lines and call the same stand-in."""
    stand_in(record, "resolvconf")
    assert WG_QUICK
    assert BASH
    head = Path(WG_QUICK).read_text().partition("# ~~ function override insertion point ~~")[0]
    (script := record.with_name("wg-quick")).write_text(f"{head}\nparse_options $1\nset_dns\nunset_dns\n")
    (file := record.with_name("wg0.conf")).write_text(f"[Interface]\nDNS = {', '.join(entries)}\n")
    path = f"{record.with_name('bin')}:/usr/bin:/bin"
    subprocess.run([BASH, script, file], env={"PATH": path}, check=True, capture_output=True)
    theirs = record.read_text() if record.exists() else ""
    record.unlink(missing_ok=True)
    assert set_servers(entries) == []
    for name in NOTED:
        dns.unset_servers(name)
    assert (record.read_text() if record.exists() else "") == theirs
    assert bool(theirs) == any("192" in entry or ":" in entry for entry in entries)


def test_resolvectl_and_domains_that_questions_are_routed_by(record: Path) -> None:
    stand_in(record, "resolvectl")
    assert set_servers(["192.0.2.53", "~corp.example", "example.net"]) == []
    assert set_servers(["fd00::53", "~."]) == []
    assert set_servers(["~corp.example"]) == []
    assert record.read_text().splitlines() == [
        "resolvectl dns wg0 192.0.2.53",
        "resolvectl domain wg0 ~corp.example example.net ~.",
        "resolvectl dns wg0 fd00::53",
        "resolvectl domain wg0 ~.",
    ]


def test_resolvectl_where_there_is_no_resolvconf(record: Path) -> None:
    """The root domain as one to route by, so that all questions go through the tunnel; all goes with the interface."""
    stand_in(record, "resolvectl")
    assert set_servers(ENTRIES) == []
    assert NOTED == [], "nothing has to be taken back"
    assert record.read_text().splitlines() == [
        "resolvectl dns wg0 192.0.2.53 2001:db8::53",
        "resolvectl domain wg0 example.com example.net ~.",
    ]


def test_what_goes_wrong_is_one_line(record: Path) -> None:
    assert set_servers(ENTRIES) == ["DNS is not set: neither resolvconf nor resolvectl is installed"]
    stand_in(record, "resolvectl", status=1)
    [warning] = set_servers(ENTRIES)
    assert warning == "DNS is not set: resolvectl says: it does not work"
    assert len(record.read_text().splitlines()) == 1, "the domains aren't tried where the servers weren't taken"


def test_without_servers_nobody_is_called(record: Path) -> None:
    stand_in(record, "resolvconf")
    assert set_servers([]) == NOTED == []
    assert not record.exists()


def test_what_is_still_set_is_said(record: Path) -> None:
    assert "resolvconf is gone" in dns.unset_servers("wg0")
    stand_in(record, "resolvconf", status=1)
    assert "it does not work" in dns.unset_servers("wg0")


def test_bytes_that_are_no_text_are_one_line_too(record: Path) -> None:
    program = record.with_name("bin") / "resolvconf"
    program.write_text("#!/bin/sh\nprintf 'caf\\351\\n' >&2\nexit 1\n")
    program.chmod(0o755)
    assert set_servers(ENTRIES) == ["DNS is not set: resolvconf says: caf\ufffd"]
    assert dns.unset_servers("wg0") == "DNS is still set: resolvconf says: caf\ufffd"


def test_a_program_that_does_not_start_is_one_line_too(record: Path) -> None:
    program = record.with_name("bin") / "resolvconf"
    program.write_text("#!/usr/bin/interpreter-that-is-gone\n")
    program.chmod(0o755)
    why = "resolvconf does not start: No such file or directory"
    assert set_servers(ENTRIES) == [f"DNS is not set: {why}"]
    assert dns.unset_servers("wg0") == f"DNS is still set: {why}"


def test_a_daemon_that_resolvconf_starts_is_not_waited_for(record: Path) -> None:
    """It inherits the output, as Debian's update scripts start dnsmasq."""
    stand_in(record, "resolvconf")
    pid = record.with_name("pid")
    program = record.with_name("bin") / "resolvconf"
    program.write_text(program.read_text().replace("exit 0", f"/bin/sleep 600 <&- & echo $! > {pid}"))
    began = time.monotonic()
    try:
        assert set_servers(ENTRIES) == []
        assert time.monotonic() - began < 300
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
