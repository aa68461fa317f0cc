"""The unit as `stagewire install-service` leaves it, under a real systemd; Stagewire is installed from its wheel."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import installed
from lab.hub import Spoke, configuration
from lab.machine import Machine
from lab.namespaces import Namespace, veth
from lab.stagewire import expect_no_sigsys
from lab.traffic import NumberedStream, StreamReport, ping
from lab.wait import until
from lab.wireguard_go import Peer, WireguardGo, new_key_pair

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

UNIT = "stagewire@wg0"
STAGEWIRE = "/opt/stagewire/bin/stagewire"
PROGRAMS = {f"{stage}-service" for stage in ("tun", "device", "conn", "key", "status", "host", "resolver")}
RATE = 100
"""Packets a second."""
HOOKS = """\
PreUp = echo preup >> /run/hooks
PostUp = sysctl -q -w net.ipv4.ip_forward=1 && nft add table inet hooked
PostUp = ip link add hooked type bridge && echo postup >> /run/hooks
PreDown = ip link show %i > /dev/null && echo predown >> /run/hooks
PostDown = nft delete table inet hooked && ip link delete hooked && ! ip link show %i && echo postdown >> /run/hooks
"""


class Service:
    """The machine, its unit, and a peer of its gateway."""

    def __init__(self, machine: Machine, peer: Namespace, config: str) -> None:
        self.machine, self.peer, self.config = machine, peer, config
        self.sigsys_expected = 0

    def configure(self, text: str, name: str = "wg0") -> None:
        """Writes a configuration file."""
        path = self.machine.path(f"/etc/stagewire/{name}.conf")
        path.touch(mode=0o600)
        path.write_text(text)

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.machine.run("systemctl", *arguments, check=check, timeout=100).stdout

    def shows(self, name: str, unit: str = UNIT) -> str:
        """A property of the unit."""
        return self.systemctl("show", "--value", "-p", name, unit).strip()

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            self.machine.run(STAGEWIRE, "status", "--json", "wg0", check=False).stdout  # 4: a spare is missing
        )
        return answer

    def at_work(self) -> dict[str, int]:
        """The processes at work, by program, as the machine numbers them."""
        return {each["service"]: each["pid"] for each in self.status()["services"] if each["pid"]}

    def entries(self, *arguments: str) -> list[dict[str, Any]]:
        """The unit's lines in the journal."""
        text = self.machine.journal("-u", UNIT, "-o", "json", *arguments)
        return [json.loads(line) for line in text.splitlines()]

    def parents(self, pids: set[int]) -> set[int]:
        listed = self.machine.run("ps", "-o", "ppid=", "-p", ",".join(map(str, pids))).stdout
        return {int(word) for word in listed.split()}

    def supervisord(self) -> int:
        return int(self.machine.path("/run/stagewire/wg0/supervisord.pid").read_text())

    def adopted(self) -> bool:
        """Whether all that is at work are children of the supervisord that runs now."""
        at_work = self.at_work()  # without one that is just being taken over from
        return set(at_work) == PROGRAMS and self.parents({*at_work.values()}) == {self.supervisord()}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Installed, not started."""
    folder = tmp_path_factory.mktemp("installed")
    place = Path("/opt/stagewire")
    installed.install(installed.build_wheel(folder), folder / "venv", called=place, dependencies=Path("/opt/site"))
    spoke, keys = Spoke(1, host="192.0.2.2"), new_key_pair()
    addresses = [f"{spoke.gateway_inner[0]}/24", f"{spoke.gateway_inner[1]}/64"]
    config = configuration(keys, 51820, addresses, [spoke.peer()], HOOKS)
    inner = [f"{spoke.inner[0]}/32", f"{spoke.inner[1]}/128"]
    gateway = Peer(keys.public, [spoke.networks[0], spoke.networks[1]], "192.0.2.1:51820")
    with Namespace("box") as box, Namespace("peer") as peer:
        veth(box, peer, ["192.0.2.1/24"], ["192.0.2.2/24"])
        with (
            WireguardGo(peer, spoke.keys, inner, [gateway], spoke.port),
            Machine(box, {"/opt/stagewire": folder / "venv", "/opt/site": installed.SITE}) as machine,
        ):
            made = Service(machine, peer, config)
            machine.run(STAGEWIRE, "install-service")
            machine.path("/etc/default/stagewire").write_text("STAGEWIRE_SPARES=0\nSTAGEWIRE_WORKERS=1\n")
            made.configure(config)
            yield made
            expect_no_sigsys(machine.journal("-u", UNIT, "-o", "cat"), made.sigsys_expected)


@pytest.fixture
def up(service: Service) -> Service:
    """Enabled and started."""
    service.systemctl("enable", "--now", UNIT, check=False)
    assert service.shows("ActiveState") == "active", service.machine.journal("-u", UNIT, "-n", "50")
    return service


def test_the_files_are_in_place_and_no_account_is_made(service: Service) -> None:
    assert "stagewire" not in service.machine.run("cat", "/etc/passwd", "/etc/group").stdout
    documents = {entry.name for entry in service.machine.path("/usr/local/share/doc/stagewire").iterdir()}
    assert documents >= {"gateway.conf", "Containerfile", "compose.yaml"}
    assert (
        f"ExecStart={STAGEWIRE} run %i\n" in service.machine.path("/etc/systemd/system/stagewire@.service").read_text()
    )
    verified = service.machine.run("systemd-analyze", "verify", f"{UNIT}.service")
    assert "stagewire" not in verified.stderr


def test_a_start_returns_when_traffic_can_flow(up: Service) -> None:
    assert up.status()["ready"] is True
    assert ping(up.peer, "10.66.1.1", count=3).received == 3
    assert up.shows("StatusText") == "traffic can flow"
    assert up.systemctl("is-enabled", UNIT) == "enabled\n"
    assert up.machine.path("/run/hooks").read_text().split()[-2:] == ["preup", "postup"]


def test_the_journal_has_a_line_for_each_event_under_its_programs_name(up: Service) -> None:
    entries = up.entries("_SYSTEMD_UNIT=" + UNIT + ".service")
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {*PROGRAMS, "supervisord", "stagewire"}
    for entry in entries:
        program = entry["SYSLOG_IDENTIFIER"]
        if program in PROGRAMS:
            assert entry["MESSAGE"].startswith("timestamp=")
            assert f"program={program} " in entry["MESSAGE"]
            assert int(entry["PRIORITY"]) <= 6
    started = next(entry for entry in entries if entry["SYSLOG_IDENTIFIER"] == "tun-service")
    assert f"pid={started['_PID']}" in started["MESSAGE"]


def test_a_stage_that_the_filter_killed_is_named_by_status_and_in_the_journal(up: Service) -> None:
    """By the signal that a filter sends."""
    up.sigsys_expected += 1
    up.machine.run("kill", "-SYS", str(up.at_work()["status-service"]))
    until(lambda: up.status()["killed_by_filter"] == {"status-service": 1}, 20, "the word of `status`")
    until(lambda: "terminated by SIGSYS" in up.machine.journal("-u", UNIT, "-o", "cat"), 10, "the journal")
    until(lambda: set(up.at_work()) == PROGRAMS, 30, "another status-service")


def _expect_stayed(report: StreamReport) -> None:
    """The kill costs nothing; each worker that is taken over from afterwards costs its peers a new session."""
    assert report.longest_gap < 1
    assert report.lost < RATE


def test_stages_stay_at_work_when_supervisord_is_killed_and_the_unit_adopts_them(up: Service) -> None:
    restarts, main, before = up.shows("NRestarts"), up.shows("MainPID"), up.at_work()
    with NumberedStream(up.peer, up.machine.namespace, "10.66.1.1", RATE) as stream:
        until(lambda: stream.received > 20, 20, "packets")
        up.machine.run("kill", "-9", str(up.supervisord()))
        until(lambda: up.parents(set(before.values())) == {int(main)}, 5, "the stages to have been left")
        assert up.at_work() == before
        until(up.adopted, 60, "the stages to be adopted")
        report = stream.finish(quiet=0)
    _expect_stayed(report)
    assert (up.shows("NRestarts"), up.shows("MainPID"), up.shows("ActiveState")) == (restarts, main, "active")


def test_stages_stay_at_work_when_the_units_main_process_is_killed(up: Service) -> None:
    restarts, before = int(up.shows("NRestarts")), up.at_work()
    hooks = up.machine.path("/run/hooks").read_text()
    with NumberedStream(up.peer, up.machine.namespace, "10.66.1.1", RATE) as stream:
        until(lambda: stream.received > 20, 20, "packets")
        supervisord = up.supervisord()
        up.systemctl("kill", "--signal=KILL", "--kill-who=main", UNIT)
        until(lambda: int(up.shows("NRestarts")) == restarts + 1, 20, "the unit to start again")
        until(lambda: up.shows("ActiveState") == "active", 60, "the unit to be active")
        until(lambda: up.supervisord() != supervisord, 20, "the next supervisord to write its pid")
        assert set(up.at_work()) == set(before)
        until(up.adopted, 60, "the stages to be adopted")
        report = stream.finish(quiet=0)
    _expect_stayed(report)
    assert up.machine.path("/run/hooks").read_text() == hooks


def test_a_reload_applies_the_file_or_changes_nothing(up: Service) -> None:
    main, before = up.shows("MainPID"), up.at_work()
    another = Peer(new_key_pair().public, ["10.99.0.0/24"])
    up.configure(up.config + another.section())
    up.systemctl("reload", UNIT)
    assert another.public_key in {peer["public_key"] for peer in up.status()["peers"]}
    up.configure(up.config + "Nonsense = 1\n")
    up.systemctl("reload", UNIT, check=False)
    assert "Nonsense" in up.machine.journal("-u", UNIT, "-t", "stagewire", "-o", "cat")
    assert another.public_key in {peer["public_key"] for peer in up.status()["peers"]}
    up.configure(up.config)
    up.systemctl("reload", UNIT)
    assert len(up.status()["peers"]) == 1
    assert (up.shows("MainPID"), up.at_work(), up.shows("ActiveState")) == (main, before, "active")


def test_down_takes_the_unit_down_and_it_stays_down(up: Service) -> None:
    restarts = up.shows("NRestarts")
    up.machine.run(STAGEWIRE, "down", "wg0", timeout=60)
    until(lambda: up.shows("ActiveState") == "inactive", 10, "the unit to be inactive")
    assert (up.shows("NRestarts"), up.shows("Result")) == (restarts, "success")
    _expect_nothing_left(up)


def test_a_stop_leaves_nothing_behind(up: Service) -> None:
    up.systemctl("stop", UNIT)
    assert up.shows("ActiveState") == "inactive"
    _expect_nothing_left(up)


def _expect_nothing_left(service: Service) -> None:
    assert service.machine.path("/run/hooks").read_text().split()[-2:] == ["predown", "postdown"]
    links = json.loads(service.machine.run("ip", "-json", "link").stdout)
    assert {link["ifname"] for link in links} == {"lo", "to-peer"}
    assert len(json.loads(service.machine.run("ip", "-json", "rule").stdout)) == 3  # the kernel's own
    assert list(service.machine.path("/run/stagewire").iterdir()) == []
    assert service.shows("TasksCurrent") in {"0", "[not set]"}


def test_a_file_with_a_mistake_fails_the_unit_once(service: Service) -> None:
    unit = "stagewire@bad"
    service.configure("[Interface]\nNonsense = 1\n", "bad")
    service.systemctl("start", unit, check=False)
    assert (service.shows("ActiveState", unit), service.shows("NRestarts", unit)) == ("failed", "0")
    said = service.machine.journal("-u", unit, "-t", "stagewire", "-o", "cat")
    assert "/etc/stagewire/bad.conf:2: " in said
    assert "Traceback" not in said


def test_its_exposure_is_as_operating_says(service: Service) -> None:
    """`systemd-analyze security` fails beyond the threshold, which it takes in tenths."""
    said = service.machine.run("systemd-analyze", "security", "--no-pager", "--threshold=50", f"{UNIT}.service").stdout
    score = re.search(r"Overall exposure level for \S+: (\S+)", said)
    assert score is not None
    assert f"an exposure of {score[1]};" in (installed.ROOT / "docs/operating/systemd.md").read_text()
