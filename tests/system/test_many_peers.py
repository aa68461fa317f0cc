"""A real gateway with 10,000 peers answers an operator at once.

Other programs on the machine slow all commands alike. So the bound is on CPU time, in units of an import that each command
needs. docs/performance has the figures.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hub import PORT, configuration
from lab.namespaces import Topology
from lab.stagewire import DEGRADED, Gateway
from lab.wireguard_go import Peer, new_key_pair
from stagewire.config import encode_key

pytestmark = [pytest.mark.system, pytest.mark.alone]

MANY = 10_000
FEW = 50
WITHIN, WITHIN_FOR_FEW = 12.0, 4.0
"""CPU time that a command may use, as a multiple of `UNIT`'s."""
UNIT = [sys.executable, "-c", "import zmq, click"]
KNOWN = new_key_pair()


OWN = new_key_pair()


def text(count: int) -> str:
    """The configuration with so many peers."""
    peers = [Peer(KNOWN.public, ["10.0.0.1/32"])]
    for number in range(2, count + 1):
        key = encode_key(number.to_bytes(4) + bytes(range(28)))
        peers.append(Peer(key, [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32"]))
    return configuration(OWN, PORT, ["10.255.0.1/8"], peers)


@pytest.fixture(scope="module")
def gateway(shared_directory: Path) -> Iterator[Gateway]:
    with Topology("m") as network:
        shared_directory.mkdir(exist_ok=True)
        with Gateway(network.b, "wg0", shared_directory, text(MANY)) as gateway:
            yield gateway


@pytest.fixture
def many(gateway: Gateway) -> Gateway:
    """The gateway with all its peers."""
    if gateway.config_path.read_text() != text(MANY):
        gateway.write_config(text(MANY))
        gateway.command("reload", "wg0")
    return gateway


def used() -> float:
    """CPU time of the commands so far, in s."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def unit() -> float:
    """Returns the least CPU time of a few runs of UNIT, in s."""
    found = []
    for _ in range(3):
        begun = used()
        subprocess.run(UNIT, check=True)
        found.append(used() - begun)
    return min(found)


def measured(gateway: Gateway, *words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs a command. Returns its result, and its CPU time in units."""
    before, begun = unit(), used()
    asked = gateway.program(*words, check=False, timeout=120)
    took = used() - begun
    multiple = took / max(before, unit())
    print(f"{' '.join(words)}: {took:.3f} s, {multiple:.1f} units")
    return asked, multiple


@pytest.mark.parametrize(
    "words",
    [
        ["status", "wg0"], ["status", "wg0", "--json"], ["top", "wg0", "--once"],
        ["why", KNOWN.public, "wg0", "--no-try"], ["history", KNOWN.public, "-i", "wg0"],
    ],
    ids=lambda words: words[0] + words[-1] * (words[-1] == "--json"),
)  # fmt: skip
def test_a_command_answers_at_once(many: Gateway, words: list[str]) -> None:
    asked, multiple = measured(many, *words)
    assert asked.returncode in {0, DEGRADED}, asked.stderr
    if words[0] == "top":
        assert asked.stdout.count("never") == MANY
    if words[-1] == "--json":
        assert len(json.loads(asked.stdout)["peers"]) == MANY
    assert multiple < WITHIN


def test_the_status_of_few_peers_costs_little_more_than_the_command_itself(gateway: Gateway) -> None:
    gateway.write_config(text(FEW))
    gateway.command("reload", "wg0")
    asked, multiple = measured(gateway, "status", "wg0")
    assert asked.stdout.count("no handshake yet") == FEW
    assert multiple < WITHIN_FOR_FEW
