"""The uids of stages and workers at the doors of a live gateway: each flaw of an earlier version, tried again."""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.speakers import acting_as, connect_as

from lab.namespaces import Namespace
from lab.stagewire import Gateway
from lab.wait import until
from lab.wireguard_go import Peer, new_key_pair
from stagewire.control import requests, session_keys
from stagewire.control.session_keys import WorkerHello
from stagewire.linux import uids
from stagewire.pipe.names import RELOAD
from stagewire.process import bell

pytestmark = [pytest.mark.system]

STORM = 1200
IDLE = 300
NOBODY = 65534
HUGE = 8 << 20
FREE_WORKER = 5
"""A place with a uid, and without a process."""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(1) + bytes(31)
"""How ZeroMQ's protocol begins (ZMTP 3.0), whatever the other end says."""
USURPER = """
import os, sys, time, zmq
from stagewire.control.messages import FROM_STAGE, Hello
path, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
context, said = zmq.Context(), 0
while time.monotonic() < until:
    with context.socket(zmq.DEALER) as line:
        line.set(zmq.LINGER, 0)
        line.set(zmq.IMMEDIATE, 1)
        line.connect("ipc://" + path)
        while time.monotonic() < until and line.poll(20, zmq.POLLOUT):
            line.send(FROM_STAGE.pack(Hello("conn", 0, 666, os.getpid())))
            said += 1
            time.sleep(0.005)
print(said, flush=True)
"""


@pytest.fixture(scope="module")
def gateway(shared_directory: Path) -> Iterator[Gateway]:
    peer = Peer(new_key_pair().public, ["10.8.0.0/24"], "192.0.2.9:9")
    text = f"[Interface]\nPrivateKey = {new_key_pair().private}\nAddress = 10.9.0.1/24\n{peer.section()}\n"
    with Namespace("hostile") as namespace, Gateway(namespace, "wg0", shared_directory, text) as made:
        yield made


def is_hung_up_on(line: socket.socket) -> bool:
    line.settimeout(10)
    with line:
        try:
            while line.recv(1000):
                pass
        except ConnectionError:
            pass
        return True


@pytest.mark.attack("hostile-status")
def test_status_services_uid_puts_no_packets_into_the_host(gateway: Gateway) -> None:
    path = gateway.run_directory / "wg0/tun/plain-in"
    assert is_hung_up_on(connect_as(uids.uid_of("status"), path))
    assert is_hung_up_on(connect_as(uids.uid_of("device", 1), path))  # nor does a second process of a worker's


@pytest.mark.attack("hostile-device")
@pytest.mark.parametrize("number", [1, 5])
def test_one_workers_uid_collects_no_keys_of_another_workers_peers(gateway: Gateway, number: int) -> None:
    path = gateway.run_directory / "wg0/key/sessions"
    line = connect_as(uids.uid_of("device", number), path, socket.SOCK_SEQPACKET)
    with contextlib.suppress(ConnectionError):
        line.send(session_keys._HELLO.pack(WorkerHello(0, 5)))
    assert is_hung_up_on(line)


def sockets(gateway: Gateway) -> list[Path]:
    return sorted(path for path in (gateway.run_directory / "wg0").rglob("*") if path.is_socket())


@pytest.fixture
def open_to_all(gateway: Gateway) -> Iterator[list[Path]]:
    """Every socket of ours, as if somebody had opened its folder and the socket itself to all users."""
    found = [path for path in sockets(gateway) if path.name != "supervisor.sock"]
    before = {
        path: path.stat().st_mode & 0o777
        for each in found
        for path in (each, *each.parents)
        if path.is_relative_to(gateway.run_directory)
    }
    for path in before:
        path.chmod(0o777)
    yield found
    for path, mode in before.items():
        with contextlib.suppress(FileNotFoundError):
            path.chmod(mode)


def connected(path: Path) -> socket.socket:
    try:
        return connect_as(NOBODY, path, gid=NOBODY)
    except OSError as error:
        if error.errno != errno.EPROTOTYPE:
            raise
        return connect_as(NOBODY, path, socket.SOCK_SEQPACKET, gid=NOBODY)


@pytest.mark.parametrize("stage", ["conn", "status"])
def test_a_stages_uid_at_the_door_for_commands_changes_nothing(
    gateway: Gateway, open_to_all: list[Path], stage: str
) -> None:
    [path] = [each for each in open_to_all if each == gateway.run_directory / "wg0" / RELOAD.path]
    question = json.dumps(requests.to_json(requests.Unconfirmed(), "root", 0)).encode() + b"\n"
    heard = []
    for uid in (uids.uid_of(stage), NOBODY, 0):
        with connect_as(uid, path) as line, contextlib.suppress(ConnectionError):
            line.settimeout(10)
            with contextlib.suppress(BrokenPipeError):
                line.sendall(question)
            heard.append(line.recv(1000))
    assert [each for each in heard if each] == [b'{"error": "", "left": 0.0, "ended": ""}\n'], "root alone is answered"


@pytest.mark.attack("I2")
def test_another_user_with_a_way_to_every_socket_is_hung_up_on(gateway: Gateway, open_to_all: list[Path]) -> None:
    names = {path.name for path in open_to_all}
    assert names >= {
        "control",
        "sessions",
        "sockets",
        "plain-in",
        "cipher-out",
        "handshake-in",
        "telemetry",
        "plain-out.0",
    }
    for path in open_to_all:
        if path.name == bell.NAME:  # it answers nobody
            continue
        heard = b""
        with contextlib.suppress(ConnectionError), connected(path) as line:
            line.settimeout(10)
            with contextlib.suppress(BrokenPipeError):
                line.send(GREETING)
            while piece := line.recv(1000):
                heard += piece
        assert len(heard) <= len(GREETING), path  # nothing beyond a greeting of ZeroMQ's
    assert gateway.status()["ready"]


@pytest.mark.attack("I2")
def test_a_bell_that_rings_for_nothing_ends_nothing(gateway: Gateway, open_to_all: list[Path]) -> None:
    (path,) = (each for each in open_to_all if each.name == bell.NAME)
    before = gateway.pid("key")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line, acting_as(NOBODY, NOBODY):
        line.setblocking(False)
        over = time.monotonic() + 2
        while time.monotonic() < over:
            with contextlib.suppress(BlockingIOError):
                line.sendto(b"\0", str(path))
            select.select([], [], [], 0.01)
    assert gateway.status()["ready"]
    assert gateway.pid("key") == before


def resident(pid: int) -> int:
    """Bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.attack("hostile-device")
def test_idle_pushers_of_one_uid_stay_few_and_a_successor_is_served(gateway: Gateway) -> None:
    """300 of a worker that isn't there, before a take-over."""
    tun = gateway.pid("tun")
    opened = Path(f"/proc/{tun}/fd")
    before = len(os.listdir(opened))  # noqa: PTH208 - names alone
    with contextlib.ExitStack() as storm:
        for _ in range(IDLE):
            line = storm.enter_context(
                connect_as(uids.uid_of("device", FREE_WORKER), gateway.run_directory / "wg0/tun/plain-in")
            )
            with contextlib.suppress(OSError):
                line.send(GREETING)
        until(lambda: len(os.listdir(opened)) <= before + 4, 10, "the descriptors to be back")  # noqa: PTH208
        gateway.kill("tun", signal.SIGKILL)
        until(lambda: gateway.held().get(("tun", 0), tun) != tun, 20, "another tun-service")
        until(lambda: gateway.status()["ready"], 20, "the gateway to be ready")
        assert len(os.listdir(f"/proc/{gateway.pid('tun')}/fd")) <= before + 8  # noqa: PTH208


def ready(kind: bytes) -> bytes:
    """ZeroMQ's second word: the kind of socket."""
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return b"\x04" + bytes([len(body)]) + body


@pytest.mark.attack("hostile-device")
@pytest.mark.parametrize("pipe", ["tun/plain-in", "conn/cipher-out", "key/control"])
def test_a_frame_of_8_mb_costs_its_sender_the_line_and_nobody_memory(gateway: Gateway, pipe: str) -> None:
    pid = gateway.pid(pipe.partition("/")[0])
    before = resident(pid)
    frame = b"\x02" + HUGE.to_bytes(8, "big") + bytes(HUGE)
    for _ in range(5):
        line = connect_as(uids.uid_of("device", FREE_WORKER), gateway.run_directory / "wg0" / pipe)
        line.settimeout(10)
        with contextlib.suppress(ConnectionError):
            line.sendall(GREETING + ready(b"DEALER" if pipe == "key/control" else b"PUSH"))
            line.sendall(frame)
        assert is_hung_up_on(line)
    assert resident(pid) - before < HUGE
    assert gateway.pid(pipe.partition("/")[0]) == pid
    assert gateway.status()["ready"]


@pytest.mark.attack("hostile-conn")
def test_a_usurper_of_conn_service_on_control_makes_way_for_the_true_one(gateway: Gateway) -> None:
    """Without a spare: for seconds the usurper alone asks for the place."""
    uid = uids.uid_of("conn")
    usurper = subprocess.Popen(
        [sys.executable, "-c", USURPER, str(gateway.run_directory / "wg0/key/control"), "8"],
        user=uid, group=uids.group(), extra_groups=[], stdout=subprocess.PIPE, env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    conn = gateway.kill("conn", signal.SIGKILL)
    until(lambda: gateway.held().get(("conn", 0), conn) != conn, 20, "another conn-service")
    until(lambda: gateway.status()["ready"], 20, "the true one to be welcomed")
    said, _ = usurper.communicate(timeout=30)
    assert int(said) > 0, "it had a line, at least until the true one came"
    until(lambda: gateway.status()["ready"], 20, "the gateway to be ready")
    assert {each["pid"] for each in gateway.status()["services"] if each["service"] == "conn-service"} == {
        gateway.pid("conn")
    }


def refusals(gateway: Gateway) -> list[str]:
    """Key-service's lines about them."""
    log = "".join(text for name, text in gateway.logs().items() if "key-service" in name)
    return [line for line in log.splitlines() if "refuses a process that may not speak here" in line]


@pytest.mark.attack("hostile-conn")
def test_1200_connections_of_one_uid_to_control_harm_nobody(gateway: Gateway) -> None:
    opened, said = Path(f"/proc/{gateway.pid('key')}/fd"), refusals(gateway)
    before = len(os.listdir(opened))  # noqa: PTH208 - names alone
    with contextlib.ExitStack() as storm:
        for _ in range(STORM):
            storm.enter_context(connect_as(uids.uid_of("conn"), gateway.run_directory / "wg0/key/control"))
        until(lambda: len(os.listdir(opened)) <= before + 8, 10, "the descriptors to be back")  # noqa: PTH208
    until(lambda: gateway.status()["ready"], 10, "the gateway to be ready")
    fresh = refusals(gateway)[len(said) :]
    assert len(fresh) <= 1  # once for each uid and pipe
    assert any(f"pipe=key/control uid={uids.uid_of('conn')}" in line for line in [*said, *fresh])
