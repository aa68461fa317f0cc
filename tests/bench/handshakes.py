"""Measures how many handshakes a second a gateway answers: 1,000 peers initiate, each from its own address."""

import base64
import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tests.bench import loads
from tests.bench.contestants import OUTER, PORT, SETTLE, Entry, freeze, thaw
from tests.bench.cost import Bill, Meter, Reading
from tests.bench.handshake_load import SOURCES, private_key, write_pool
from tests.bench.hubs import bare
from tests.bench.tcp import Values

from lab.namespaces import Namespace, veth
from lab.wireguard_go import KeyPair, Peer

PEERS: Final = 1000
_GATEWAY_INNER: Final = "10.9.0.2/24"


@dataclass(slots=True)
class Gateway:
    """Holds a gateway that is up, and the namespace of its peers."""

    name: str
    near: Namespace
    far: Namespace
    device: str

    def rest(self) -> None:
        """Stops the gateway; the other namespace is empty."""
        freeze((self.near,))

    def wake(self) -> None:
        """Waits for some heartbeats, as no packet can show that the gateway is ready."""
        thaw((self.near,))
        time.sleep(3 * SETTLE)


@dataclass(slots=True)
class Answerer(Gateway):
    """Holds what its peers need as well. `pool` is the file of their initiations."""

    target: bytes
    pool: Path
    each: int
    """Initiations for one run."""
    runs: int = 0


@contextlib.contextmanager
def answerers(chosen: Sequence[Entry], directory: Path, each: int, rounds: int) -> Iterator[list[Answerer]]:
    """Brings up all gateways with the same key, so the initiations need be made only once."""
    seed, pool = secrets.token_bytes(32), directory / "initiations"
    target, keys = key_and_pair()
    write_pool(pool, target, seed, PEERS, each * rounds)
    peers = peers_of(seed, PEERS)
    with ExitStack() as stack:
        found = []
        for number, entry in enumerate(chosen):
            up = gateway_of_many(stack, f"benchk{number}", entry, directory, keys, peers)
            found.append(Answerer(up.name, up.near, up.far, up.device, target, pool, each))
        yield found


def key_and_pair() -> tuple[bytes, KeyPair]:
    """Makes a key pair. Returns the public key as bytes, then both keys as text."""
    key = X25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    return public, KeyPair(_text(key.private_bytes_raw()), _text(public))


def peers_of(seed: bytes, count: int) -> list[Peer]:
    """Makes the peers whose private keys `private_key` derives, each with an address in 10.200.0.0/16."""
    keys = (X25519PrivateKey.from_private_bytes(private_key(seed, number)) for number in range(count))
    return [
        Peer(_text(key.public_key().public_bytes_raw()), [f"10.200.{number >> 8}.{number & 255}/32"])
        for number, key in enumerate(keys)
    ]


def _text(key: bytes) -> str:
    return base64.b64encode(key).decode()


def gateway_of_many(
    stack: ExitStack, label: str, entry: Entry, directory: Path, keys: KeyPair, peers: Sequence[Peer]
) -> Gateway:
    """Brings up a gateway, and a namespace in which each peer can speak from an address of its own."""
    near, far = (stack.enter_context(Namespace(f"{label}{side}")) for side in "ab")
    veth(far, near, [f"{OUTER[0]}/24"], [f"{OUTER[1]}/24"])
    far.run("ip", "route", "add", "local", f"{SOURCES}/16", "dev", "lo")
    near.run("ip", "route", "add", f"{SOURCES}/16", "via", OUTER[0])
    program = stack.enter_context(bare(str(entry.a), near, directory, keys, [_GATEWAY_INNER], peers))
    stack.callback(thaw, (near,))
    return Gateway(entry.name, near, far, program.interface)


def measure(answerer: Answerer, seconds: float) -> Values:
    """Returns `rate` in answers/s, `loss` as a part, and the CPU (s) of an answer, in all and of the answering process.

    `per_core` is how many a second that process could answer with a core to itself.
    """
    meters = (Meter(answerer.near, answerer.device),)
    before = Reading.of(meters)
    first = answerer.each * answerer.runs
    answerer.runs += 1
    how = (answerer.pool, answerer.target.hex(), OUTER[1], PORT, first, answerer.each, seconds)
    said = json.loads(loads.run(answerer.far, "tests.bench.handshake_load", *how, seconds=seconds))
    bill = Bill.between(before, Reading.of(meters))
    answered = said["answered"]
    if not answered:
        raise RuntimeError(f"{answerer.name} answered no handshake: {said}")
    values = {"rate": answered / said["seconds"], "loss": said["lost"] / said["sent"], "cookies": said["cookies"]}
    values["cpu_each"] = sum(bill.cpu.values()) / answered
    # Stagewire cannot run two key-services; wireguard-go is one process.
    busiest = bill.cpu.get("key-service", max(bill.cpu.values(), default=0.0))
    if busiest:
        values |= {"cpu_answerer": busiest / answered, "per_core": answered / busiest}
    return values, {}
