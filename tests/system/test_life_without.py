"""What root may be short of: capabilities, uids, a disk to write to. What isn't needed is done without, and said once."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.namespaces import Namespace
from lab.stagewire import Gateway, executable
from lab.wait import until
from lab.wireguard_go import Peer, new_key_pair
from stagewire.linux import privileges
from stagewire.stages import STAGES

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

OWN_UIDS = ("chown", "dac_override", "fowner", "kill", "setgid", "setuid")
"""As OPERATING names them."""
AS_ONE = "uids of their own for the services"
PRIORITIES = "priorities (CAP_SYS_NICE lacking)"


class Short(Gateway):
    """A gateway whose commands, and all that they start, run in the surroundings that `before` makes."""

    def __init__(self, namespace: Namespace, directory: Path, *before: str, spares: int = 1) -> None:
        peer = Peer(new_key_pair().public, ["10.8.0.0/24"], "192.0.2.9:9")
        text = f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n{peer.section()}\n"
        super().__init__(namespace, "wg0", directory, text, workers=1, spares=spares)
        self._before = before
        self.said = ""

    def command(self, *arguments: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        done = self.namespace.run(
            *self._before, executable("stagewire"), *arguments, check=check, timeout=timeout, env=self.env
        )
        self.said += done.stderr
        return done

    def uids(self) -> set[int]:
        """Of the services at work."""
        found = set()
        for pid in self.held().values():
            uid = re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            found.add(int(uid[1]) if uid else -1)
        return found

    def warnings(self) -> list[str]:
        """All lines of the logs that warn of something lacking."""
        return [line for text in self.logs().values() for line in text.splitlines() if "does without" in line]


@contextmanager
def short(directory: Path, *before: str) -> Iterator[Short]:
    with Namespace("short") as namespace, Short(namespace, directory, *before) as gateway:
        yield gateway


def with_only(*capabilities: str) -> tuple[str, ...]:
    return "setpriv", "--bounding-set", ",".join(["-all", *(f"+{each}" for each in capabilities)])


def works(gateway: Short) -> None:
    """All are at work, one that is killed is replaced, and nothing stays."""
    assert gateway.status()["ready"]
    assert "10.9.0.1/24" in gateway.namespace.run("ip", "address", "show", "wg0").stdout
    until(lambda: len(gateway.processes()) == 2 * len(STAGES), 30, "the spares to wait")
    killed = gateway.kill("tun", 9)
    until(
        lambda: gateway.held().get(("tun", 0), killed) != killed and gateway.status()["ready"], 10, "the spare at work"
    )
    gateway.down()
    assert gateway.namespace.pids() == []
    assert "wg0" not in gateway.namespace.run("ip", "link").stdout


def test_with_net_admin_and_what_dropping_to_own_uids_takes(lab_directory: Path) -> None:
    with short(lab_directory, *with_only("net_admin", "net_bind_service", *OWN_UIDS)) as gateway:
        assert gateway.uids() == {privileges.uid_of(stage) for stage in STAGES}
        (warning,) = gateway.warnings()
        assert PRIORITIES in warning
        assert AS_ONE not in warning
        works(gateway)
        assert gateway.said.count("does without") == 1


@pytest.mark.parametrize("more", [(), ("setuid", "setgid", "chown")])
def test_with_net_admin_alone_everything_runs_under_one_uid(lab_directory: Path, more: tuple[str, ...]) -> None:
    with short(lab_directory, *with_only("net_admin", *more)) as gateway:
        assert gateway.uids() == {0}
        for pid in gateway.held().values():  # and yet none has more than it needs
            (effective,) = re.findall(r"CapEff:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
            assert int(effective, 16) & ~(1 << privileges.CAP_NET_ADMIN) == 0
        (warning,) = gateway.warnings()
        for lacking in (AS_ONE, "CAP_DAC_OVERRIDE", PRIORITIES, "CAP_NET_BIND_SERVICE"):
            assert lacking in warning
        works(gateway)


def test_memory_that_cannot_be_locked_is_named_at_the_start_and_by_doctor(lab_directory: Path) -> None:
    """With swap by a file in the place of the kernel's list: no test may add real swap."""
    swaps = lab_directory / "swaps"
    swaps.write_text("Filename Type Size Used Priority\n/swapfile file 1048572 0 -2\n")
    has_swap = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /proc/swaps && exec "$@"', str(swaps))
    little = ("prlimit", "--memlock=65536:65536", *with_only("net_admin", "net_bind_service", "sys_nice", *OWN_UIDS))
    with short(lab_directory, *has_swap, *little) as gateway:
        (warning,) = gateway.warnings()
        lacking = "locked memory (CAP_SYS_RESOURCE or an unlimited RLIMIT_MEMLOCK lacking): keys may reach the swap"
        assert lacking in warning
        assert lacking in gateway.said
        assert lacking in gateway.command("doctor", "wg0", check=False).stdout
        for log in ("key-service", "device-service"):
            said = "".join(text for name, text in gateway.logs().items() if Path(name).name.startswith(log))
            assert re.search(r"started .*without='?[^=]*locked memory", said)
        swaps.write_text("Filename Type Size Used Priority\n")
        assert "locked memory" not in gateway.command("doctor", "wg0", check=False).stdout


def test_without_net_admin_that_is_what_is_named(lab_directory: Path) -> None:
    with Namespace("short") as namespace:
        gateway = Short(namespace, lab_directory, *with_only(*OWN_UIDS), spares=0)
        gateway.write_config(gateway._config_text)
        failed = gateway.command("up", str(gateway.config_path), check=False, timeout=60)
        assert failed.returncode == 1
        assert "CAP_NET_ADMIN is lacking" in failed.stderr
        assert namespace.pids() == []


def test_a_user_namespace_with_one_uid(lab_directory: Path) -> None:
    """It is root of nothing but its own network: the rootless container of somebody else."""
    gateway = Short(Namespace("none"), lab_directory)
    gateway.write_config(gateway._config_text)
    inside = f"""
        ip link set lo up
        {executable("stagewire")} up {gateway.config_path} && {executable("stagewire")} status --json wg0
        ip address  # in any case: on a busy machine, a service that carries nothing may still be starting
        {executable("stagewire")} down wg0
        echo left: $(ip -o link | grep wg0) $(ps -e -o comm= | grep -c -e service -e supervisord)
    """
    alone = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc")
    env = [f"{name}={value}" for name, value in gateway.env.items()]
    done = subprocess.run(
        [*alone, "env", *env, "sh", "-c", inside], capture_output=True, text=True, check=False, timeout=100
    )
    assert '"ready": true' in done.stdout, done.stderr
    assert "inet 10.9.0.1/24" in done.stdout
    assert done.stdout.rstrip().endswith("left: 0")
    assert done.stderr.count("no uid 60578 in this user namespace): all run as uid 0") == 1


def test_a_read_only_root_with_run_and_a_state_folder(lab_directory: Path) -> None:
    """In a mount namespace whose every other file system can't be written to."""
    folders = [lab_directory / each for each in ("run", "state", "wg")]
    for folder in folders:
        folder.mkdir()
    script = lab_directory / "read-only"
    script.write_text(
        "set -e\n"
        f"for folder in {' '.join(map(str, folders))}; do mount -t tmpfs none $folder; done\n"
        "mount -o remount,ro,bind /\n"
        "! touch /read-only-or-not 2>/dev/null\n"
        'sh -c "$1"\n'
    )
    with Namespace("ro") as namespace:
        gateway = Short(namespace, lab_directory)
        gateway.write_config(gateway._config_text)
        stagewire = executable("stagewire")
        inside = f"{stagewire} up {gateway.config_path} && {stagewire} status --json wg0 && {stagewire} down wg0"
        done = namespace.run(
            *("unshare", "--mount", "--propagation", "private", "sh", script, inside), env=gateway.env, timeout=60
        )
        assert '"ready": true' in done.stdout
        assert f"logs are in {gateway.run_directory}/wg0/log/wg0" in done.stderr
        assert "Read-only file system" in done.stderr
        assert namespace.pids() == []
