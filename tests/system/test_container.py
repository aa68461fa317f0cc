"""The container as its page says, by Debian's podman, inside a machine of the lab's: with root and without.

No registry is at hand: the image that the Containerfile begins with is made of Debian packages as they are installed
here, so apt-get has nothing to do in it, and pip finds all wheels in dist/.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system import pages

from lab import installed
from lab.hub import Spoke, configuration
from lab.machine import Machine
from lab.namespaces import Namespace, veth
from lab.stagewire import expect_no_sigsys
from lab.traffic import ping
from lab.wait import NeverHappened, until
from lab.wireguard_go import KeyPair, Peer, WireguardGo, new_key_pair
from stagewire.stages import STAGES

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

BASE = "docker.io/library/debian:bookworm-slim"
NEEDED = ("apt", "base-files", "coreutils", "dash", "debianutils", "grep", "libc-bin", "sed", "tar")
"""What every Debian has."""
USER = "gateway"
ON_THIS_MACHINE = ("--cgroups=disabled",)
"""What no reader types: crun cannot limit devices where root may not raise limits, as on some build machines."""

SAID_TWICE = {
    "cap_add: [NET_ADMIN]": "--cap-add NET_ADMIN",
    'devices: ["/dev/net/tun"]': "--device /dev/net/tun",
    "read_only: true": "--read-only",
    'tmpfs: ["/run", "/tmp"]': "--tmpfs /run --tmpfs /tmp",
    ":/etc/stagewire/wg0.conf:ro": ":/etc/stagewire/wg0.conf:ro",
    "net.ipv4.ip_forward: 1": "--sysctl net.ipv4.ip_forward=1",
}
"""In the compose file, and on the page."""


class Box:
    """A machine with podman and the image, and a peer outside."""

    def __init__(self, machine: Machine, peer: Namespace, spoke: Spoke, keys: KeyPair) -> None:
        self.machine, self.peer, self.spoke, self.keys = machine, peer, spoke, keys

    def page(self, containing: str) -> list[str]:
        """The words of a command on the page."""
        block = next(each.text for each in pages.pages()["container"] if containing in each.text)
        line = next(line for line in re.sub(r"\\\n", " ", block).splitlines() if containing in line)
        return shlex.split(line)

    def healthy(self, *podman: str) -> bool:
        return self.machine.run(*podman, "healthcheck", "run", "wg0", check=False).returncode == 0


def _context(folder: Path) -> Path:
    """What `make dist` leaves, and what its wheel depends on."""
    (folder / "dist").mkdir(parents=True)
    installed.build_wheel(folder / "dist")
    installed.dependency_wheels(folder / "dist")
    shutil.copytree(installed.ROOT / "deploy/container", folder / "deploy/container")
    (folder / "deploy/requirements.lock").write_text(installed.lock(folder / "dist"))
    return folder


def _base(root: Path) -> Path:
    said = (installed.ROOT / "deploy/container/Containerfile").read_text()
    packages = re.findall(r"--no-install-recommends ([a-z0-9 -]+)", said)
    installed.debian_tree([*NEEDED, *" ".join(packages).split()], root)
    (root / "usr/local/bin").mkdir(parents=True, exist_ok=True)
    (root / "usr/local/bin/apt-get").write_text("#!/bin/sh\nexit 0\n")
    (root / "usr/local/bin/apt-get").chmod(0o755)
    # What Debian's scripts make when packages are installed.
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/pip.conf").write_text("[global]\nno-index = true\n")
    return root


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """With the image built as the page says."""
    folder = tmp_path_factory.mktemp("container")
    shown = {"/opt/context": _context(folder / "context"), "/opt/base": _base(folder / "base")}
    spoke, keys = Spoke(1, host="192.0.2.2", keepalive=5), new_key_pair()
    addresses = [f"{spoke.gateway_inner[0]}/24", f"{spoke.gateway_inner[1]}/64"]
    inner = [f"{spoke.inner[0]}/32", f"{spoke.inner[1]}/128"]
    with Namespace("box") as namespace, Namespace("peer") as peer:
        veth(namespace, peer, ["192.0.2.1/24"], ["192.0.2.2/24"])
        gateway = Peer(keys.public, list(spoke.networks))  # it is the gateway that initiates
        with WireguardGo(peer, spoke.keys, inner, [gateway], spoke.port), Machine(namespace, shown) as machine:
            made = Box(machine, peer, spoke, keys)
            path = machine.path("/etc/stagewire/wg0.conf")
            path.parent.mkdir()
            path.touch(mode=0o600)
            path.write_text(configuration(keys, 51820, addresses, [spoke.peer()]))
            # Images are layers, which cannot lie upon those of the machine's own /var.
            machine.run("sh", "-c", "mkdir -p /var/lib/containers && mount -t tmpfs tmpfs /var/lib/containers")
            machine.run("sh", "-c", f"tar -c -C /opt/base . | podman import - {BASE}", timeout=60)
            build = made.page("podman build")
            machine.run("sh", "-c", f"cd /opt/context && BUILDAH_ISOLATION=chroot {shlex.join(build)}", timeout=200)
            yield made


def _expect_gateway(box: Box, *podman: str) -> None:
    """It carries traffic, and every stage says so."""
    try:
        until(lambda: box.healthy(*podman), 60, "it to be healthy")
    except NeverHappened:
        print(box.machine.run("sh", "-c", f"{shlex.join(podman)} logs wg0 2>&1", check=False).stdout[-6000:])
        raise
    until(lambda: ping(box.peer, box.spoke.gateway_inner[0]).received == 1, 20, "an answer through the tunnel")
    said = box.machine.run(*podman, "logs", "wg0")
    logged = said.stdout + said.stderr
    for stage in STAGES:
        assert f"program={stage}-service event=started" in logged
    assert "Traceback" not in logged
    written = box.machine.run(*podman, "exec", "wg0", "touch", "/etc/written", check=False)
    assert "Read-only file system" in written.stderr


def _expect_that_status_names_who_the_filter_killed(box: Box, *podman: str) -> None:
    """By the signal that a filter sends."""
    box.machine.run(*podman, "exec", "wg0", "pkill", "-SYS", "--oldest", "--exact", "status-service")

    def named() -> bool:
        said = box.machine.run(*podman, "exec", "wg0", "stagewire", "status", "--json", "wg0", check=False).stdout
        return bool(json.loads(said)["killed_by_filter"] == {"status-service": 1})

    until(named, 20, "the word of `status`")


def _end(box: Box, *podman: str, killed: int = 0) -> None:
    said = box.machine.run(*podman, "logs", "wg0")
    expect_no_sigsys(said.stdout + said.stderr, killed)
    box.machine.run(*podman, "stop", "--time", "20", "wg0", timeout=40)
    assert box.machine.run(*podman, "inspect", "--format", "{{.State.ExitCode}}", "wg0").stdout == "0\n"
    box.machine.run(*podman, "rm", "wg0")


def test_the_image_says_how_it_is_run_and_whether_it_is_healthy(box: Box) -> None:
    config = json.loads(box.machine.run("podman", "image", "inspect", "stagewire").stdout)[0]
    assert config["Config"]["Entrypoint"] == ["stagewire", "run"]
    assert config["Config"]["Volumes"] == {"/var/lib/stagewire": {}}
    assert config["Healthcheck"]["Test"] == ["CMD", "stagewire", "ready"]


def test_as_the_page_runs_it(box: Box) -> None:
    command = box.page("podman run")
    at = command.index("run") + 1
    # Its own network, to which a bridge would forward; here the machine's end of the link is moved into it.
    box.machine.run(*command[:at], *ON_THIS_MACHINE, "--network=none", *_without_port(command[at:]), timeout=60)
    pid = box.machine.run("podman", "inspect", "--format", "{{.State.Pid}}", "wg0").stdout.strip()
    enter = ("nsenter", "-t", pid, "-n", "ip")
    box.machine.run("ip", "link", "set", "to-peer", "netns", pid)
    box.machine.run(*enter, "address", "add", "192.0.2.1/24", "dev", "to-peer")
    box.machine.run(*enter, "link", "set", "to-peer", "up")
    try:
        _expect_gateway(box, "podman")
        listed = box.machine.run("podman", "exec", "wg0", "ps", "-eo", "euid,args").stdout.splitlines()
        services = [line.split()[0] for line in listed if re.search(r"/[a-z]+-service$", line)]
        assert len({*services} - {"0"}) == len(STAGES)
        _expect_that_status_names_who_the_filter_killed(box, "podman")
    finally:
        # Back, or it ends with the container.
        box.machine.run(*enter, "link", "set", "to-peer", "netns", "1", check=False)
        box.machine.run("sh", "-c", "ip address add 192.0.2.1/24 dev to-peer; ip link set to-peer up", check=False)
        _end(box, "podman", killed=1)


def _without_port(words: list[str]) -> list[str]:
    at = words.index("-p")
    return words[:at] + words[at + 2 :]


def test_without_root(box: Box) -> None:
    """By a user of the machine, whose network is slirp4netns's: what goes out is answered."""
    machine = box.machine
    machine.run("useradd", "--create-home", "--home-dir", f"/home/{USER}", USER)
    uid = machine.run("id", "-u", USER).stdout.strip()
    run, tree = f"/run/user/{uid}", "/opt/rootless"
    machine.run("install", "-d", "-o", USER, run, f"/home/{USER}/state", f"/home/{USER}/conf")
    machine.run("install", "-o", USER, "-m", "600", "/etc/stagewire/wg0.conf", f"/home/{USER}/conf")
    # An image store of the user's own would have to be filled from a registry.
    machine.run("sh", "-c", f"mkdir {tree} && podman create --name image {' '.join(ON_THIS_MACHINE)} stagewire && "
                f"podman export image | tar -x -C {tree} && ln -sf /proc/mounts {tree}/etc/mtab", timeout=60)  # fmt: skip
    podman = ("setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "env", f"HOME=/home/{USER}",
              f"XDG_RUNTIME_DIR={run}", "--chdir=/", "podman", "--log-level=error")  # fmt: skip
    machine.run(
        *podman, "run", "-d", "--name", "wg0", *ON_THIS_MACHINE, "--cap-add", "NET_ADMIN", "--device", "/dev/net/tun",
        "--read-only", *SAID_TWICE['tmpfs: ["/run", "/tmp"]'].split(),
        "-v", f"/home/{USER}/conf:/etc/stagewire:ro",
        "-v", f"/home/{USER}/state:/var/lib/stagewire", "--network", "slirp4netns",
        "--env", "PATH=/opt/stagewire/bin:/usr/sbin:/usr/bin:/sbin:/bin", "--health-cmd", "stagewire status",
        "--health-interval", "disable", "--rootfs", tree, "stagewire", "run", "wg0", timeout=60,
    )  # fmt: skip
    try:
        _expect_gateway(box, *podman)
    finally:
        _end(box, *podman)


def test_the_compose_file_says_what_the_page_says(box: Box) -> None:
    compose = (installed.ROOT / "deploy/container/compose.yaml").read_text()
    command = " ".join(box.page("podman run"))
    for theirs, ours in SAID_TWICE.items():
        assert theirs in compose
        assert ours in command
    assert "privileged" not in compose + command
