"""What a real gateway remembers, and what it tells, while its disk is full, its file is damaged, and readers hang."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.services.disks import full_disk
from tests.system.whys import works

from lab.hub import Hub, Spoke
from lab.namespaces import Topology
from lab.traffic import ping
from lab.wait import until

pytestmark = pytest.mark.system

ANNA, BERT = Spoke(1), Spoke(2)
SCRAPERS = 1000
PINGS = 20
ON_THE_WIRE = 16 + 1040 + 16
"""Bytes of a message with a ping of 1,000 bytes, padded."""


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with Topology("f") as topology:
        yield topology


@pytest.fixture(scope="module")
def hub(network: Topology, shared_directory: Path) -> Iterator[Hub]:
    state = shared_directory / "state"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "none", state], check=True)
    try:
        with Hub(network.b, shared_directory, {"anna": ANNA, "bert": BERT}) as gateway:
            yield gateway
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


def received(hub: Hub, spoke: Spoke) -> int:
    """The bytes of all time, as the file on the disk has them."""
    told = hub.gateway.command("history", spoke.keys.public, "-i", hub.name, "--json", check=False)
    return int(json.loads(told.stdout)["rx_bytes"]) if told.returncode == 0 else 0


def said(hub: Hub) -> str:
    """What status-service has logged."""
    return "".join(text for name, text in hub.gateway.logs().items() if "status-service" in name)


def file(hub: Hub) -> Path:
    return hub.gateway.state_directory / hub.name / "history" / "history.db"


def test_a_full_disk_is_said_and_loses_no_byte_whoever_is_killed_meanwhile(network: Topology, hub: Hub) -> None:
    until(lambda: file(hub).exists(), 10, "the history")
    with full_disk(hub.gateway.state_directory) as ballast, hub.wireguard_go(ANNA, network.a, Topology.B4):
        assert works(network.a, ANNA.gateway_inner[0])
        until(lambda: "cannot keep the history" in said(hub), 20, "the full disk to be said")
        hub.gateway.kill("status", signal.SIGKILL)
        until(lambda: said(hub).count("event=started") > 1, 30, "the next status-service")
        ping(network.a, ANNA.gateway_inner[0], count=PINGS + 5, interval=0, size=1000)
        until(lambda: hub.peer(ANNA)["rx_bytes"] > PINGS * ON_THE_WIRE, 10, "the bytes to be counted")
        ballast.unlink()
        until(lambda: received(hub, ANNA) > PINGS * ON_THE_WIRE, 90, "the history to go on")
        assert received(hub, ANNA) <= hub.peer(ANNA)["rx_bytes"], "nothing counts twice"


def test_a_file_that_is_damaged_meanwhile_is_kept_aside_and_begun_anew(network: Topology, hub: Hub) -> None:
    damaged = file(hub).with_name("history.db.damaged")
    size = file(hub).stat().st_size
    with file(hub).open("r+b") as opened:
        opened.write(b"no database " * (size // 12))
    with hub.wireguard_go(BERT, network.a, Topology.B4):
        assert works(network.a, BERT.gateway_inner[0])
        until(damaged.exists, 20, "the damaged file to be put aside")
        assert damaged.read_bytes().startswith(b"no database")
        until(lambda: received(hub, BERT) > 0, 20, "the new history")
        assert works(network.a, BERT.gateway_inner[0])
    until(lambda: "keeps the damaged file" in said(hub), 5, "it to be said")


def test_a_thousand_readers_that_hang_keep_no_other_from_its_answer(network: Topology, hub: Hub) -> None:
    host, port = hub.gateway.status()["metrics"].removeprefix("http://").partition("/")[0].rsplit(":", 1)

    def connect(count: int) -> list[socket.socket]:
        opened = [socket.create_connection((host, int(port)), timeout=10) for _ in range(count)]
        for each in opened:
            with suppress(ConnectionError):  # the server has ended the oldest
                each.send(b"GET /met")
        return opened

    with ExitStack() as stack, hub.wireguard_go(BERT, network.a, Topology.B4):
        assert works(network.a, BERT.gateway_inner[0])
        for hanging in hub.namespace.call(lambda: connect(SCRAPERS)):
            stack.enter_context(hanging)
        [opened] = hub.namespace.call(lambda: connect(1))
        with opened:
            opened.send(b"rics HTTP/1.1\r\n\r\n")
            assert opened.recv(100).startswith(b"HTTP/1.1 200 ")
        assert works(network.a, BERT.gateway_inner[0])
    assert hub.gateway.command("ready", hub.name).stdout == "ready\n"
