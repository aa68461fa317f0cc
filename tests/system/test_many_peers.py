"""A real gateway with 10,000 peers answers an operator at once. The bounds are wide: docs/performance has the figures."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import wait
from lab.hub import PORT, configuration
from lab.namespaces import Topology
from lab.stagewire import DEGRADED, Gateway
from lab.wireguard_go import Peer, new_key_pair
from stagewire.config import encode_key

pytestmark = [pytest.mark.system, pytest.mark.alone]

MANY = 10_000
WITHIN = 3.0
"""s of CPU, times the slack of all tests: busy processors take longer for the same."""
KNOWN = new_key_pair()


@pytest.fixture(scope="module")
def gateway(shared_directory: Path) -> Iterator[Gateway]:
    peers = [Peer(KNOWN.public, ["10.0.0.1/32"])]
    for number in range(2, MANY + 1):
        key = encode_key(number.to_bytes(4) + bytes(range(28)))
        peers.append(Peer(key, [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32"]))
    text = configuration(new_key_pair(), PORT, ["10.255.0.1/8"], peers)
    with Topology("m") as network:
        shared_directory.mkdir(exist_ok=True)
        with Gateway(network.b, "wg0", shared_directory, text) as gateway:
            yield gateway


def used() -> float:
    """CPU time of the commands so far, in s."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


@pytest.mark.parametrize(
    "words",
    [
        ["status", "wg0"], ["status", "wg0", "--json"], ["top", "wg0", "--once", "--interval", "0.5"],
        ["why", KNOWN.public, "wg0", "--no-try"], ["history", KNOWN.public, "-i", "wg0"],
    ],
    ids=lambda words: words[0] + words[-1] * (words[-1] == "--json"),
)  # fmt: skip
def test_a_command_answers_at_once(gateway: Gateway, words: list[str]) -> None:
    begun = used()
    asked = gateway.command(*words, check=False, timeout=120)
    took = used() - begun
    print(f"{' '.join(words)}: {took:.3f} s")
    assert asked.returncode in {0, DEGRADED}, asked.stderr
    if words[0] == "top":
        assert asked.stdout.count("never") == MANY
    if words[-1] == "--json":
        assert len(json.loads(asked.stdout)["peers"]) == MANY
    assert took < WITHIN * wait.slack
