"""README's way to a first gateway and its first phone, typed on a terminal; questions get Enter as their answer."""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from tests.system.pages import ROOT
from tests.system.qr import decoded
from tests.system.test_gateway import FAMILIES, OURS, WORLD, Server, seen_as

from lab import wait
from lab.namespaces import Namespace, veth
from lab.stagewire import Gateway, executable
from lab.terminal import Terminal
from lab.wait import until
from lab.wg import unique_name
from lab.wireguard_go import SOCKETS

pytestmark = pytest.mark.system

FRESH_ETC = """set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/etc /mnt/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work /etc
echo in
exec sleep infinity
"""
INTRODUCTION = "A first gateway, and its first phone"


def typed() -> list[str]:
    """The commands below README's words about a first gateway."""
    _, _, text = (ROOT / "README.md").read_text().partition(INTRODUCTION)
    return [line.strip() for line in text.split("\n\n")[1].splitlines()]


class Newcomer:
    """A host with a fresh /etc, and an operator at its terminal."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.host, self.world, self.phone = (stack.enter_context(Namespace(f"new-{each}")) for each in "hwp")
        veth(self.host, self.world, [f"{OURS[4]}/24", f"{OURS[6]}/64"], [f"{WORLD[4]}/24", f"{WORLD[6]}/64"])
        for family, way in ((4, WORLD[4]), (6, WORLD[6])):
            self.host.run("ip", f"-{family}", "route", "add", "default", "via", way)
        veth(self.world, self.phone, ["198.51.100.1/24"], ["198.51.100.2/24"])
        self.phone.run("ip", "route", "add", "default", "via", "198.51.100.1")
        self.world.sysctl("net.ipv4.ip_forward", 1)
        stack.enter_context(closing(Server(self.world, 80)))
        with (folder / "said").open("wb") as said:
            mounts = self.host.popen("unshare", "--mount", "sh", "-c", FRESH_ETC, output=said)
        until(lambda: (folder / "said").read_text() == "in\n", 5, "a fresh /etc")
        self._entering = self.host.entering(["nsenter", f"--mount=/proc/{mounts.pid}/ns/mnt", "--"])
        self.gateway = Gateway(self.host, "wg0", folder, "", workers=1)
        self._env: Mapping[str, str] = {
            **self.gateway.env, "PATH": f"{executable('stagewire').parent}:{os.environ['PATH']}"
        }  # fmt: skip
        stack.callback(self.gateway.close)

    def types(self, command: str) -> str:
        """Types a command, presses Enter at each question, and returns what the terminal shows."""
        with Terminal([*self._entering, "sh", "-c", command], 120, 80, self._env) as terminal:
            answered = ""
            while terminal.process.poll() is None:
                terminal.watch(0.1)
                if terminal.text.endswith(": ") and terminal.text != answered:
                    answered = terminal.text
                    terminal.press("\r")
            assert terminal.end() == 0, terminal.text
            return terminal.text.replace("\r\n", "\n")


@pytest.fixture
def newcomer(lab_directory: Path) -> Iterator[Newcomer]:
    with ExitStack() as stack:
        yield Newcomer(stack, lab_directory)


def test_readmes_three_commands_lead_a_phone_to_the_world(newcomer: Newcomer, lab_directory: Path) -> None:
    init, up, add = typed()
    assert f"next: {up}" in newcomer.types(init)
    newcomer.types(up)
    began = time.monotonic()
    shown = newcomer.types(add)
    scanned = decoded(shown)
    assert scanned in shown, "the QR code says what is printed above it"
    assert re.search("^AllowedIPs = 0.0.0.0/0, ::/0$", scanned, re.MULTILINE)
    name = unique_name()
    file = lab_directory / f"{name}.conf"
    file.touch(0o600)
    file.write_text(scanned)
    newcomer.phone.run("wg-quick", "up", file, env={"WG_QUICK_USERSPACE_IMPLEMENTATION": "wireguard-go"})
    try:
        for family in FAMILIES:
            assert seen_as(newcomer.phone, WORLD[family], 80) == OURS[family]
        assert time.monotonic() - began < 10 * wait.slack
        assert scanned.splitlines()[1] == "# Name = phone"
    finally:
        newcomer.phone.run("ip", "link", "delete", name)
        (SOCKETS / f"{name}.sock").unlink(missing_ok=True)
