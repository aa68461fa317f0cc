"""`stagewire up` and `down`, and the plain supervisord: what they start, as whom, and what they leave behind."""

import base64
import fcntl
import os
import re
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.namespaces import Namespace
from lab.stagewire import Gateway
from lab.traffic import ping
from lab.wireguard_go import Peer, new_key_pair, new_preshared_key
from stagewire.linux import privileges, tun
from stagewire.stages import STAGES

pytestmark = pytest.mark.system

NOBODY = 65534
TUNSETIFF, IFF_TUN_NO_PI = 0x400454CA, 0x1001
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 10, 12
SOCKETS_AND_ROUTES = 1 << CAP_NET_ADMIN | 1 << CAP_NET_BIND_SERVICE
CAPABILITIES = {"host": SOCKETS_AND_ROUTES}


class Alone:
    """A gateway whose one peer isn't there."""

    def __init__(self, namespace: Namespace, directory: Path, name: str = "wg0", number: int = 0) -> None:
        self.keys, self.psk = new_key_pair(), new_preshared_key()
        self.peer = Peer(
            new_key_pair().public, [f"10.8.{number}.0/24"], "192.0.2.9:9", self.psk, persistent_keepalive=25
        )
        self.text = (
            f"[Interface]\nPrivateKey = {self.keys.private}\nListenPort = {51820 + number}\n"
            f"Address = 10.9.{number}.1/24, fd09:{number}::1/64\n{self.peer.section()}\n"
        )
        self.gateway = Gateway(namespace, name, directory, self.text, workers=2)

    def secrets(self) -> dict[str, bytes]:
        """What must be nowhere, in the forms in which it might be."""
        found: dict[str, bytes] = {}
        for name, text in (("private key", self.keys.private), ("pre-shared key", self.psk)):
            raw = base64.b64decode(text)
            found |= {f"{name} in base64": text.encode(), f"{name} in hex": raw.hex().encode(), f"{name} raw": raw}
            found |= {
                f"{name} in repr": repr(raw)[2:-1].encode(),
                f"{name} in base64, unpadded": text.rstrip("=").encode(),
            }
        return found


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace("s") as made:
        yield made


@pytest.fixture(scope="module")
def alone(namespace: Namespace, shared_directory: Path) -> Iterator[Alone]:
    made = Alone(namespace, shared_directory)
    with made.gateway:
        yield made


def process(pid: int) -> dict[str, str]:
    """The fields of /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def services(alone: Alone) -> dict[int, str]:
    """The stage of every process, by its pid."""
    return {each["pid"]: each["service"].removesuffix("-service") for each in alone.gateway.status()["services"]}


def test_each_service_runs_as_its_own_user_with_no_more_than_it_needs(alone: Alone) -> None:
    found = services(alone)
    assert sorted(found.values()) == sorted([*STAGES, "device"])
    uids = set()
    for number, pid in enumerate(alone.gateway.pid("device", number) for number in (0, 1)):
        assert process(pid)["Uid"].split() == [str(privileges.uid_of("device", number))] * 4
    for pid, stage in found.items():
        status = process(pid)
        assert stage == "device" or status["Uid"].split() == [str(privileges.uid_of(stage))] * 4
        assert status["Gid"].split() == [str(privileges.group())] * 4
        assert status["Groups"] in ("", str(privileges.group()))
        for kind in ("CapPrm", "CapEff"):
            assert int(status[kind], 16) == CAPABILITIES.get(stage, 0), (stage, kind)
        handed_on = CAPABILITIES.get(stage, 0) & 1 << CAP_NET_ADMIN  # to nft, which host-service runs
        assert int(status["CapInh"], 16) == handed_on
        assert int(status["CapAmb"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert Path(f"/proc/{pid}/limits").read_text().splitlines()[5].split()[4:6] == ["0", "0"]  # no core
        uids.add(status["Uid"])
    assert len(uids) == len(STAGES) + 1


def as_user(uid: int, gid: int, *command: str) -> subprocess.CompletedProcess[str]:
    identity = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    return subprocess.run([*identity, *command], capture_output=True, text=True, check=False)


def sockets(alone: Alone) -> list[Path]:
    return [path for path in alone.gateway.run_directory.rglob("*") if path.is_socket()]


# In Perl, which every Debian has where anybody may run it.
CONNECT = 'socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un($ARGV[0])) or die "$!"'


def test_another_user_can_reach_none_of_it(alone: Alone) -> None:
    found = sockets(alone)
    assert len(found) >= 10
    run = alone.gateway.run_directory / "wg0"
    assert stat.S_IMODE(run.stat().st_mode) == 0o710
    for path in found:
        if path.parent == run:
            continue  # supervisord's own
        stage = path.parent.name
        number = int(path.name.rpartition(".")[2]) if stage == "device" else 0
        assert path.parent.stat().st_uid == (0 if stage == "device" else privileges.uid_of(stage))
        # root alone may reload
        assert path.stat().st_uid == (0 if path.name == "reload" else privileges.uid_of(stage, number))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o710
        assert stat.S_IMODE(path.stat().st_mode) & 0o007 == 0
    probe = found[0]
    for command in (["perl", "-MSocket", "-e", CONNECT, str(probe)], ["ls", str(run)], ["stat", str(probe)]):
        refused = as_user(NOBODY, NOBODY, *command)
        assert refused.returncode != 0
        assert "ermission" in refused.stderr


def test_supervisord_obeys_root_alone(alone: Alone) -> None:
    run = alone.gateway.run_directory / "wg0"
    socket = run / "supervisor.sock"
    assert (socket.stat().st_uid, stat.S_IMODE(socket.stat().st_mode)) == (0, 0o700)
    conf = run / "supervisord.conf"
    assert (conf.stat().st_uid, stat.S_IMODE(conf.stat().st_mode) & 0o022) == (0, 0)
    assert "inet_http_server" not in conf.read_text()
    for stage in STAGES:  # in the group, so past the folder
        refused = as_user(privileges.uid_of(stage), privileges.group(), "perl", "-MSocket", "-e", CONNECT, str(socket))
        assert "Permission denied" in refused.stderr


def test_no_service_can_look_into_another_or_into_its_own_kind(alone: Alone) -> None:
    for pid, stage in services(alone).items():
        for other in {stage, "conn", "device"}:
            for file in ("mem", "environ", "maps"):
                refused = as_user(privileges.uid_of(other), privileges.group(), "cat", f"/proc/{pid}/{file}")
                assert refused.returncode != 0, (stage, other, file)


def test_no_secret_is_anywhere_it_can_be_read(alone: Alone) -> None:
    secrets = alone.secrets()
    gateway = alone.gateway
    gateway.command("status")
    places = [gateway.log_directory, gateway.run_directory, gateway.state_directory]
    texts = {
        str(path): path.read_bytes()
        for place in places
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    # key-service's own copy of the configuration, which nobody else may read.
    kept = gateway.run_directory / "wg0/key/accepted"
    assert texts.pop(str(kept)).endswith(gateway.config_path.read_bytes())
    assert (kept.stat().st_uid, kept.stat().st_mode & 0o777) == (privileges.uid_of("key"), 0o600)
    assert len(texts) >= 8
    for pid in gateway.namespace.pids():
        for file in ("environ", "cmdline"):
            texts[f"{file} of {pid}"] = Path(f"/proc/{pid}/{file}").read_bytes()
    texts["ps"] = subprocess.run(["ps", "axeww"], capture_output=True, check=True).stdout
    texts["status"] = gateway.command("status", "--json", "wg0").stdout.encode()
    assert alone.keys.public.encode() in texts["status"]
    for place, text in texts.items():
        assert [name for name, secret in secrets.items() if secret in text] == [], place
    # The file they are from is a link away, and root's alone.
    assert gateway.config_path.stat().st_mode & 0o077 == 0


def test_a_second_up_says_so_and_touches_nothing(alone: Alone) -> None:
    before = services(alone)
    again = alone.gateway.command("up", str(alone.gateway.config_path), check=False)
    assert again.returncode == 1
    assert again.stderr == "stagewire: wg0 is up already; `stagewire down wg0` takes it down\n"
    assert services(alone) == before


def test_interfaces_live_side_by_side(alone: Alone) -> None:
    directory = alone.gateway.config_path.parent
    other = Alone(alone.gateway.namespace, directory, "wg1", 1)
    pids = services(alone)
    with other.gateway:
        found = alone.gateway.command("status", "--json").stdout
        assert re.findall(r'"interface": "(\w+)"', found) == ["wg0", "wg1"]
        assert not set(services(other)) & set(pids)
        assert ping(alone.gateway.namespace, "10.9.1.1").received == 1
        routes = alone.gateway.namespace.run("ip", "route").stdout
        assert "10.8.0.0/24 dev wg0" in routes
        assert "10.8.1.0/24 dev wg1" in routes
        other.gateway.down()
        assert services(alone) == pids
        assert "wg1" not in alone.gateway.namespace.run("ip", "link").stdout
    assert ping(alone.gateway.namespace, "10.9.0.1").received == 1


def left_behind(namespace: Namespace, gateway: Gateway) -> list[str]:
    """Whatever `down` should have removed."""
    links = namespace.run("ip", "-o", "link").stdout.splitlines()
    found = [line for line in links if " lo:" not in line]
    found += [f"process {pid}" for pid in namespace.pids()]
    found += [str(path) for path in gateway.run_directory.glob("*")]
    for family in ("-4", "-6"):
        rules = namespace.run("ip", family, "rule").stdout.splitlines()
        found += [rule for rule in rules if "lookup local" not in rule and not rule.startswith(("32766:", "32767:"))]
    return found


def test_down_leaves_nothing_and_a_second_one_says_so(lab_directory: Path) -> None:
    with Namespace("d") as namespace:
        alone = Alone(namespace, lab_directory)
        alone.gateway._config_text = alone.text.replace("10.8.0.0/24", "0.0.0.0/0, ::/0")  # with policy rules
        with alone.gateway as gateway:
            assert "lookup 51820" in namespace.run("ip", "rule").stdout
            gateway.down()
            assert left_behind(namespace, gateway) == []
            again = gateway.command("down", "wg0", check=False)
            assert (again.returncode, again.stderr) == (3, "stagewire: wg0 is not up\n")
            assert gateway.state_directory.joinpath("wg0/timestamps").exists()


def test_every_mistake_in_the_file_is_named_with_its_line(lab_directory: Path) -> None:
    with Namespace("m") as namespace:
        alone = Alone(namespace, lab_directory)
        gateway = alone.gateway
        gateway.write_config(
            alone.text.replace("ListenPort = 51820", "ListenPort = 70000").replace("10.8.0.0/24", "10.8.0/24")
        )
        failed = gateway.command("up", str(gateway.config_path), check=False)
        assert failed.returncode == 1
        lines = failed.stderr.splitlines()
        assert [line.partition(": ")[2].split(" ")[0] for line in lines] == [
            f"{gateway.config_path}:{number}:" for number in (3, 7)
        ]
        assert all(secret not in failed.stderr.encode() for secret in alone.secrets().values())
        assert left_behind(namespace, gateway) == []


def fails_to_come_up(namespace: Namespace, directory: Path, words: str) -> None:
    """In one line on stderr, with exit status 1."""
    gateway = Alone(namespace, directory).gateway
    gateway.write_config(gateway._config_text)
    failed = gateway.command("up", str(gateway.config_path), check=False, timeout=60)
    assert failed.returncode == 1
    assert failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert line.startswith("stagewire: wg0: ")
    assert words in line
    assert list(gateway.run_directory.glob("*")) == []
    assert namespace.pids() == []


def test_a_port_that_is_taken_is_named(lab_directory: Path) -> None:
    with Namespace("p") as namespace:
        namespace.udp_socket("0.0.0.0", 51820)
        fails_to_come_up(namespace, lab_directory, "host-service: UDP port 51820 is taken by another program")
        assert " wg0" not in namespace.run("ip", "-o", "link").stdout


def test_a_name_that_is_taken_by_no_tun_device_is_left_alone(lab_directory: Path) -> None:
    with Namespace("v") as namespace:
        namespace.run("ip", "link", "add", "wg0", "type", "veth", "peer", "name", "other")
        before = namespace.run("ip", "-details", "link", "show", "wg0").stdout
        fails_to_come_up(namespace, lab_directory, "host-service: interface wg0 exists and is no TUN device")
        assert namespace.run("ip", "-details", "link", "show", "wg0").stdout == before


def test_a_tun_device_of_another_program_is_left_alone(lab_directory: Path) -> None:
    with Namespace("t") as namespace:
        gateway = Alone(namespace, lab_directory).gateway
        gateway.write_config(gateway._config_text)
        descriptor = namespace.call(tun.open_clone)
        try:
            fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"wg0", IFF_TUN_NO_PI))
            failed = gateway.command("up", str(gateway.config_path), check=False, timeout=60)
            assert failed.returncode == 1
            assert "interface wg0 is in use by another program" in failed.stderr
            assert " wg0" in namespace.run("ip", "-o", "link").stdout
        finally:
            os.close(descriptor)


def test_a_persistent_tun_device_of_somebody_else_is_left_alone(lab_directory: Path) -> None:
    with Namespace("u") as namespace:
        namespace.run("ip", "tuntap", "add", "dev", "wg0", "mode", "tun", "user", "1000")
        namespace.run("ip", "address", "add", "10.77.0.1/24", "dev", "wg0")
        before = namespace.run("ip", "-details", "address", "show", "wg0").stdout
        fails_to_come_up(namespace, lab_directory, "host-service: interface wg0 exists and is not ours")
        assert namespace.run("ip", "-details", "address", "show", "wg0").stdout == before
