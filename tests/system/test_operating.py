"""Each command of the operating pages, typed as they stand, in machines with a systemd of their own.

The pages are one story, from `install` to `uninstall`; a page's commands find what those before have left.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.system.pages import INDEX, ROOT, Block, pages, unfenced

from lab import installed, wheels
from lab.machine import Machine
from lab.namespaces import Namespace, Topology, add_addresses
from lab.wait import until
from lab.wireguard_go import new_key_pair

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

STORY = {
    "install": None,
    "add-a-peer": "install",
    "exit-gateway": "add-a-peer",
    "access": "add-a-peer",
    "full-tunnel": "exit-gateway",
    "two-tunnels": "full-tunnel",
    "OPERATING": "add-a-peer",
    "backup-and-move": "add-a-peer",
    "systemd": "add-a-peer",
    "upgrade": "systemd",
    "uninstall": "upgrade",
    "container": None,
}
"""The pages in order, and which one each begins after."""
HOSTS = f"127.0.0.1 localhost\n{Topology.B4} vpn.example.net\n{Topology.CA4} office.example.net\n"
WORLD = "203.0.113.7"
FRUGAL = {"STAGEWIRE_SPARES": "0", "STAGEWIRE_WORKERS": "1"}
HOME = "/root"
ARCHIVE = f"{HOME}/stagewire.tar.gz"


class Story:
    """Three machines, and what has been typed so far."""

    def __init__(self, folder: Path, machines: dict[str, Machine]) -> None:
        self._folder, self.machines = folder, machines
        self.said: dict[str, list[str]] = {}
        self._branch = new_key_pair().public

    def page(self, name: str) -> list[str]:
        """Types what is on a page, and on those before it unless that was done; returns what each block has said."""
        before = STORY[name]
        if before and before not in self.said:
            self.page(before)
        if name not in self.said:
            self.said[name] = [self._type(block) for block in pages()[name] if not block.elsewhere]
        return self.said[name]

    def _type(self, block: Block) -> str:
        machine = self.machines[block.machine]
        if block.machine != "gateway" and not machine.path("/opt/stagewire").exists():
            self._install_by_copying(machine)
        if block.machine == "new machine" and not machine.path(ARCHIVE).exists():
            shutil.copy(self.machines["gateway"].path(ARCHIVE), machine.path(ARCHIVE))
        carried = f"{HOME}/laptop.conf"
        if block.machine == "laptop" and not machine.path(carried).exists():
            shutil.copy(self.machines["gateway"].path(carried), machine.path(carried))
        text = block.text
        for word, key in (
            ("GATEWAY", self._of_file),
            ("LAPTOP", self._of_file),
            ("OFFICE", self._of_office),
            ("BRANCH", lambda _: self._branch),
        ):
            if (placeholder := f"PUBLIC-KEY-OF-THE-{word}") in text:
                text = text.replace(placeholder, key(word.lower()))
        done = machine.run("bash", "-euc", f"cd {HOME}\n{text}", check=False, timeout=150, env=FRUGAL | OFFLINE)
        if done.returncode != 0:
            raise AssertionError(f"{block.page}: {text}\nended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def _of_file(self, machine: str) -> str:
        key = "sed -n 's/^PrivateKey = //p' /etc/stagewire/wg0.conf"
        return self.machines[machine].run("sh", "-c", f"{key} | stagewire pubkey").stdout.strip()

    def _of_office(self, _: str) -> str:
        return self.machines["laptop"].run("sh", "-c", "stagewire pubkey < /etc/stagewire/office.key").stdout.strip()

    def _install_by_copying(self, machine: Machine) -> None:
        shutil.copytree(self.machines["gateway"].path("/opt/stagewire"), machine.path("/opt/stagewire"), symlinks=True)
        machine.run("ln", "-s", "/opt/stagewire/bin/stagewire", "/usr/local/bin/stagewire")
        machine.run("stagewire", "install-service")


OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/opt/wheels",
    "PIP_NO_COMPILE": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("operating")
    given = folder / "wheels"
    given.mkdir()
    wheel = installed.build_wheel(folder)
    wheels.rebuild("stagewire", given)
    with ExitStack() as stack:
        network = stack.enter_context(Topology("op"))
        elsewhere = stack.enter_context(Namespace("op-new"))
        add_addresses(network.c, "lo", [f"{WORLD}/32"])
        machines = {}
        for name, namespace in (("gateway", network.b), ("laptop", network.a), ("new machine", elsewhere)):
            machine = machines[name] = stack.enter_context(Machine(namespace, {"/opt/wheels": given}))
            machine.path("/etc/hosts").write_text(HOSTS)
        shutil.copy(wheel, machines["gateway"].path("/root"))
        yield Story(folder, machines)


def installs(story: Story, said: list[str]) -> None:
    assert "wg0: up" in said[1]
    assert "no mistakes" in said[2]
    assert "net.ipv4.ip_forward = 1" in said[-1]


def adds_a_peer(story: Story, said: list[str]) -> None:
    assert "PrivateKey" in said[0]
    assert "3 received" in said[2]
    assert "handshake" in said[3]
    assert said[4].splitlines()[0].startswith("~ peer phone (")
    assert "+ peer office (" in said[6]


def passes_on(story: Story, _said: list[str]) -> None:
    rules = story.machines["gateway"].run("nft", "list", "table", "inet", "stagewire-wg0/gateway").stdout
    assert rules.count("masquerade") == 2
    assert "dnat" not in rules, "the forward is removed again"


def restricts(story: Story, said: list[str]) -> None:
    assert "may reach: 203.0.113.0/24 tcp 443, any udp 53" in said[0]
    assert "1 received" in said[1]
    assert "denied" not in story.machines["gateway"].run("nft", "list", "ruleset").stdout


def tunnels_everything(story: Story, said: list[str]) -> None:
    assert "dev wg0" in said[-1]
    assert "3 received" in said[-1]


def tunnels_twice(story: Story, said: list[str]) -> None:
    assert "dev wg0" in said[-1]


def serves(story: Story, said: list[str]) -> None:
    assert story.machines["gateway"].run("systemctl", "is-active", "stagewire@wg0").stdout == "active\n"
    assert "key-service" in said[2]


def moves(story: Story, said: list[str]) -> None:
    assert "wg0: up" in said[-1]
    # Back again, for the pages that follow.
    story.machines["new machine"].run("stagewire", "down", "wg0")
    story.machines["gateway"].run("stagewire", "up", "wg0", env=FRUGAL)


def leaves_nothing(story: Story, said: list[str]) -> None:
    gateway = story.machines["gateway"]
    assert gateway.run("ip", "link", "show", "wg0", check=False).returncode != 0
    assert "stagewire" not in gateway.run("nft", "list", "ruleset").stdout + gateway.run("ip", "rule").stdout
    everywhere = ("/etc", "/var", "/run", "/opt", "/usr/local")
    find = ("find", *everywhere, "-xdev", "-name", "*stagewire*", "-not", "-path", "/run/systemd/*")
    # systemd removes a unit's private folder in /var/tmp behind its end.
    until(lambda: gateway.run(*find).stdout == "", 10, f"all to be gone of {gateway.run(*find).stdout}")
    assert "stagewire" not in gateway.run("cat", "/etc/passwd", "/etc/group").stdout


OUTCOMES: dict[str, Callable[[Story, list[str]], None]] = {
    "install": installs,
    "add-a-peer": adds_a_peer,
    "exit-gateway": passes_on,
    "access": restricts,
    "full-tunnel": tunnels_everything,
    "two-tunnels": tunnels_twice,
    "systemd": serves,
    "backup-and-move": moves,
    "uninstall": leaves_nothing,
}


@pytest.mark.parametrize("page", STORY)
def test_every_command_of_a_page(story: Story, page: str) -> None:
    said = story.page(page)
    if page in OUTCOMES:
        OUTCOMES[page](story, said)


def test_every_page_is_run_and_in_the_index() -> None:
    assert set(STORY) == set(pages())
    linked = set(re.findall(r"\(operating/([\w-]+)\.md\)", INDEX.read_text()))
    assert linked == set(pages()) - {INDEX.stem}


def test_no_command_is_outside_a_block_that_is_run() -> None:
    for path in (INDEX, *sorted((INDEX.parent / "operating").glob("*.md"))):
        assert unfenced(path) == [], path.name


def test_what_another_test_runs_is_in_it() -> None:
    for block in (block for blocks in pages().values() for block in blocks if block.elsewhere):
        assert block.elsewhere is not None
        if not (ROOT / block.elsewhere).exists():
            pytest.skip(f"{block.elsewhere} isn't there yet")
        test = (ROOT / block.elsewhere).read_text()
        for command in re.sub(r"\\\n\s*", "", block.text).splitlines():
            program, verb, *_ = command.split()
            assert re.search(rf'{program}"?,? "?{verb}', test), command
