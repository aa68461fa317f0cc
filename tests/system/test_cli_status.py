"""What `stagewire status` says of a gateway that works and of one that doesn't, in the columns there are; and bare names."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.stagewire import executable
from lab.traffic import ping
from lab.wait import until
from lab.wg import GATEWAY
from lab.wireguard_go import new_key_pair

pytestmark = pytest.mark.system

MANY = [f"fdaa:bbbb:{number:x}::/48" for number in range(1, 21)]


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("t") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    spokes = {"six": Spoke(1, allowed_ips=MANY), "silent": Spoke(2, "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]")}
    with Hub(network.b, shared_directory / "h", spokes) as gateway:
        yield gateway


def on_a_terminal(hub: Hub, columns: int, *arguments: str) -> tuple[int, str]:
    """A command's exit status, and what a terminal of so many columns got to see."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    variables = [f"{name}={value}" for name, value in hub.gateway.env.items()]
    command = ["ip", "netns", "exec", hub.namespace.name, "env", "-u", "COLUMNS", *variables]
    process = subprocess.Popen([*command, executable("stagewire"), *arguments], stdout=theirs, stdin=theirs)
    os.close(theirs)
    said = b""
    try:
        while more := os.read(ours, 4096):
            said += more
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(ours)
    return process.wait(10), said.decode().replace("\r\n", "\n")


def unstyled(text: str) -> str:
    plain, rest = "", text
    while "\x1b[" in rest:
        before, _, rest = rest.partition("\x1b[")
        plain += before
        rest = rest.partition("m")[2]
    return plain + rest


def test_the_lab_is_told_what_the_command_prints(hub: Hub) -> None:
    def steady(answer: dict[str, Any]) -> list[Any]:
        """Leaves out what grows with time."""
        services = [
            (each["service"], each["number"], each["pid"], each["ready"], [*each]) for each in answer["services"]
        ]
        peers = [(each["public_key"], each["allowed_ips"], [*each]) for each in answer["peers"]]
        return [answer["interface"], answer["public_key"], answer["healthy"], services, peers, [*answer]]

    until(lambda: hub.gateway.status()["healthy"], 10, "all to be well")
    assert steady(hub.gateway.status_by_command()) == steady(hub.gateway.status())


def test_80_columns_cut_nothing(network: Topology, hub: Hub) -> None:
    with hub.wireguard_go(hub.spokes["six"], network.a, GATEWAY[6]):
        assert ping(network.a, "fd66:1::1").received == 1
        until(lambda: hub.peer(hub.spokes["six"])["rx_bytes"] > 0, 5, "the counters")
        piped = hub.gateway.command("status", hub.name)
        status, text = on_a_terminal(hub, 80, "status", hub.name)
        assert (status, piped.returncode) == (0, 0)
        lines = unstyled(text).splitlines()
        assert max(map(len, lines)) <= 80, text
        for item in [*MANY, f"[{Topology.A6}]:{hub.spokes['six'].port}", hub.spokes["six"].keys.public]:
            assert item in unstyled(text)
            assert item in piped.stdout
        assert len([line for line in piped.stdout.splitlines() if MANY[0] in line and MANY[-1] in line]) == 1
        assert "\x1b" not in piped.stdout
        assert "\u2026" not in text + piped.stdout


def test_exit_statuses_say_how_it_is(hub: Hub) -> None:
    until(lambda: hub.gateway.status()["healthy"], 10, "all to be well")
    assert hub.gateway.command("status").returncode == 0
    supervisord = hub.gateway.pid()
    os.kill(supervisord, signal.SIGSTOP)  # nobody starts another
    try:
        killed = hub.gateway.kill("device", signal.SIGKILL)
        until(lambda: killed not in hub.gateway.held().values(), 5, "it to die")
        shown = hub.gateway.command("status", check=False)  # waits 5 s for supervisord
        assert shown.returncode == 4
        assert f"{hub.name}: degraded" in shown.stdout
    finally:
        os.kill(supervisord, signal.SIGCONT)
    until(lambda: hub.gateway.status()["healthy"], 15, "all to be well again")


def test_a_link_that_is_set_down_is_degraded(hub: Hub) -> None:
    hub.namespace.run("ip", "link", "set", hub.name, "down")
    until(lambda: not hub.gateway.status()["healthy"], 5, "it to be noticed")
    for arguments in (["status"], ["status", hub.name], ["status", "--json"], ["status", "--json", hub.name]):
        shown = hub.gateway.command(*arguments, check=False)
        assert shown.returncode == 4
        assert "is set down" in shown.stdout
    hub.namespace.run("ip", "link", "set", hub.name, "up")
    until(lambda: hub.gateway.status()["healthy"], 10, "all to be well again")


@pytest.mark.parametrize("command", [["status"], ["down"], ["save"], ["reload"], ["restart", "all"], ["scale", "2"]])
def test_what_is_not_up_is_3(hub: Hub, command: list[str]) -> None:
    refused = hub.gateway.command(*command, "never-was", check=False)
    assert (refused.returncode, refused.stdout, refused.stderr) == (
        3,
        "",
        f"stagewire: never-was is not up, but {hub.name} is\n",
    )


IN_A_MOUNT_NAMESPACE = """
set -e
mkdir -p /var/run/wireguard
mount -t tmpfs none /var/run/wireguard
trap '{down} >/dev/null 2>&1 || true' EXIT
{up}
wg show {name} listen-port
ip -o link show {name}
{down}
trap - EXIT
! ip -o link show {name} 2>/dev/null
"""


def in_a_mount_namespace(network: Topology, directory: Path, name: str, up: str, down: str) -> str:
    """Where the name of the `wg` socket is nobody else's."""
    script = IN_A_MOUNT_NAMESPACE.format(name=name, up=up, down=down)
    env = {
        **{f"STAGEWIRE_{each}_DIR": str(directory / each.lower()) for each in ("RUN", "STATE", "LOG")},
        "STAGEWIRE_SPARES": "0",
        "STAGEWIRE_WORKERS": "1",
        "WG_QUICK_USERSPACE_IMPLEMENTATION": "stagewire",
        "PATH": f"{executable('stagewire').parent}:{os.environ['PATH']}",
    }
    return network.b.run("unshare", "--mount", "sh", "-c", script, env=env, timeout=60).stdout


@pytest.mark.parametrize("name", ["show", "status"])
def test_wg_quick_calls_an_interface_as_it_likes(network: Topology, lab_directory: Path, name: str) -> None:
    path = lab_directory / f"{name}.conf"
    path.write_text(f"[Interface]\nPrivateKey = {new_key_pair().private}\nListenPort = 51871\nTable = off\n")
    path.chmod(0o600)
    said = in_a_mount_namespace(network, lab_directory, name, f"wg-quick up {path}", f"wg-quick down {path}")
    assert "51871" in said.splitlines()
    assert f"made interface {name}" in said


def test_bare_makes_any_name_and_says_so(network: Topology, lab_directory: Path) -> None:
    refused = "; ".join(f"stagewire {each} show 2>&1 || true" for each in ("save", "reload"))
    said = in_a_mount_namespace(
        network, lab_directory, "show", f"stagewire bare show; {refused}", "stagewire down show"
    )
    made, *refusals = said.splitlines()[:3]
    assert made == "made interface show, without a configuration; `ip link del show` ends it"
    why = "show was brought up without a configuration file; use `wg` to see or change it"
    assert refusals == [f"stagewire: {why}"] * 2


def test_a_key_service_that_cannot_work_says_why(hub: Hub) -> None:
    """Not the file's fault: its folder of state is none."""
    state = hub.gateway.state_directory / hub.name
    until(lambda: hub.gateway.status()["healthy"], 10, "all to be well")
    state.rename(state.with_name("away"))
    state.write_text("")
    try:
        hub.gateway.kill("key", signal.SIGKILL)
        until(
            lambda: f"does not answer: {state}" in hub.gateway.command("status", check=False).stdout, 15, "the reason"
        )
        said = hub.gateway.command("status", check=False)
        assert said.returncode == 4
        assert "Not a directory" in said.stdout or "File exists" in said.stdout
    finally:
        state.unlink()
        state.with_name("away").rename(state)
    until(lambda: hub.gateway.status()["healthy"], 20, "all to be well again")


def test_a_supervisord_that_is_gone_is_said_with_what_starts_it(hub: Hub) -> None:
    """All works on without it, until a stage ends."""
    old = hub.gateway.pid()
    os.kill(old, signal.SIGKILL)
    until(lambda: hub.gateway.status()["warnings"] != [], 5, "it to be noticed")
    [warning] = hub.gateway.status()["warnings"]
    assert warning.startswith("its supervisord is gone")
    refused = hub.gateway.command("scale", "2", hub.name, check=False)
    assert (refused.returncode, refused.stderr) == (1, f"stagewire: {hub.name}: {warning}\n")
    hub.namespace.run(*warning.split("`")[1].split(), env=hub.gateway.env)
    until(lambda: hub.gateway.status()["healthy"], 20, "all to be well again")
    assert hub.gateway.status()["warnings"] == []
    assert hub.gateway.pid() != old
