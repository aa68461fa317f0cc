"""Measures what a flood costs a tunnel: the goodput of a stream beside it, and the time of a new peer's handshake.

Both peers of the gateway are wireguard-go, and share their address with the flood. Turns with and
without the flood alternate.

python -m tests.attack.flooded [--kind KIND …] [--rate RATE] [--turns N]     compares with wireguard-go and prints a table
"""

import argparse
import base64
import contextlib
import itertools
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.attack.floods import KINDS, Flood
from tests.bench import loads
from tests.bench.contestants import short_directory, stagewire_end
from tests.bench.udp import PORT as STREAM_PORT

from lab.hub import configuration
from lab.namespaces import Namespace, veth
from lab.wait import until
from lab.wireguard_go import Peer, WireguardGo, new_key_pair

STAGEWIRE: Final = "stagewire"
REFERENCE: Final = "wireguard-go"
PORT: Final = 51820
GATEWAY, PEERS = "192.0.2.1", "192.0.2.2"
MARK: Final = "78"
"""Of the new peer's datagrams, and its routing table."""
INNER: Final = ("10.9.0.1", "10.9.0.2", "10.9.0.3")
SIZE: Final = 1000
SECONDS: Final = 3.0
STRANGE_SECONDS: Final = 7.0
"""s of a stream beside a peer from a new network, which may need a second try."""
SPENT_WITHIN: Final = 1.0
"""s from a flood's beginning, after which it has spent what the gateway allows at once."""
MARGIN: Final = 0.5
"""s by which two implementations' tries may differ, for their jitter."""
PATIENCE: Final = 30.0
"""s that a new peer's first packet may take."""
_scenes: Final = itertools.count()


@dataclass(slots=True)
class Turn:
    """Holds the figures of one turn."""

    goodput: float
    """Received of sent."""
    handshake: float
    """s from a new peer's first packet to its answer; PATIENCE if none came."""
    rate: float = 0.0
    """Of the flood, a second."""


@dataclass(slots=True)
class Scene:
    """Holds a gateway, a peer with a stream, and a peer that comes anew each turn."""

    near: Namespace
    far: Namespace
    public_key: bytes
    _peer: WireguardGo
    _new: WireguardGo
    _gateway: Peer
    _link: str
    """The far end's link."""
    _networks: Iterator[int] = field(default_factory=lambda: itertools.count(113))
    _ports: Iterator[int] = field(default_factory=lambda: itertools.count(20_000))
    """Of the new peer; below those that the kernel gives to other sockets."""

    def stream(self, rate: float, seconds: float = SECONDS) -> tuple[int, int]:
        """Returns how many packets of the peer were sent and received."""
        sink = loads.start(self.near, "tests.bench.udp_load", "sink", STREAM_PORT)
        how = ("source", STREAM_PORT, SIZE, rate, seconds, INNER[0])
        said = loads.run(self.far, "tests.bench.udp_load", *how, seconds=seconds)
        received = loads.finish(sink)["received"]
        return int(re.findall(r'"sent": (\d+)', said)[0]), int(received)

    def capacity(self) -> float:
        """Returns the packets a second that the gateway carries at most."""
        return max(self.stream(rate, 2.0)[1] / 2.0 for rate in (30_000, 60_000, 120_000))

    def handshake(self, address: str = PEERS) -> float:
        """Returns how long a peer takes that the gateway has never heard from this port, or address."""
        if address != PEERS:
            self.far.run("ip", "address", "replace", f"{address}/32", "dev", "lo")
        self.far.run("ip", "route", "replace", GATEWAY, "dev", self._link, "src", address, "table", MARK)
        self._new.set("listen-port", str(next(self._ports)), "peer", self._gateway.public_key, "remove")
        allowed = ("allowed-ips", ",".join(self._gateway.allowed_ips), "endpoint", str(self._gateway.endpoint))
        self._new.set("peer", self._gateway.public_key, *allowed)
        command = ("ping", "-n", "-c", "1", "-W", str(int(PATIENCE)), "-I", INNER[2], INNER[0])
        said = self.far.run(*command, check=False, timeout=PATIENCE + 5).stdout
        found = re.search(r"time=([\d.]+) ms", said)
        return float(found[1]) / 1000 if found else PATIENCE

    def strange_handshake(self, kind: str, flood_rate: float, rate: float = 0.0) -> float:
        """Returns how long a peer takes beside a flood that comes from a network without any peer so far.

        With a `rate`, a stream of so many packets a second runs as well.
        """
        address = f"203.0.{next(self._networks)}.2"
        with Flood(self.far, kind, (GATEWAY, PORT), self.public_key, flood_rate):
            stream = threading.Thread(target=lambda: self.stream(rate, STRANGE_SECONDS)) if rate else None
            if stream:
                stream.start()
            time.sleep(SPENT_WITHIN)
            took = self.handshake(address)
            if stream:
                stream.join()
            return took

    def turn(self, rate: float, kind: str | None, flood_rate: float | None) -> Turn:
        """Measures stream and handshake at once, beside a flood or without."""
        flood = None if kind is None else Flood(self.far, kind, (GATEWAY, PORT), self.public_key, flood_rate)
        handshakes: list[float] = []
        with flood or contextlib.nullcontext():
            thread = threading.Thread(target=lambda: handshakes.append(self.handshake()))
            thread.start()
            sent, received = self.stream(rate)
            thread.join()
        return Turn(received / sent, handshakes[0], flood.rate if flood else 0.0)


@contextlib.contextmanager
def scene(implementation: str, directory: Path) -> Iterator[Scene]:
    """Brings a gateway up, and its peers."""
    with ExitStack() as stack:
        number = next(_scenes)
        near, far = (stack.enter_context(Namespace(f"fl{number}{side}")) for side in "nf")
        link = veth(near, far, [f"{GATEWAY}/24"], [f"{PEERS}/24"])
        for space, other in ((near, PEERS), (far, GATEWAY)):
            space.sysctl("net.ipv4.conf.all.rp_filter", 0)
            for each in ("default", *_links(space)):
                space.sysctl(f"net.ipv4.conf.{each}.rp_filter", 0)
            space.run("ip", "route", "add", "default", "via", other)  # for answers to spoofed sources
        keys = [new_key_pair() for _ in INNER]
        peers = [Peer(keys[n].public, [f"{INNER[n]}/32"]) for n in (1, 2)]
        addresses = [f"{INNER[0]}/24"]
        if implementation == STAGEWIRE:
            text = configuration(keys[0], PORT, addresses, peers)
            stack.enter_context(stagewire_end(near, directory / "gateway", text))
        else:
            stack.enter_context(WireguardGo(near, keys[0], addresses, peers, PORT))
        gateway = Peer(keys[0].public, [f"{INNER[0]}/32"], f"{GATEWAY}:{PORT}")
        peer = stack.enter_context(WireguardGo(far, keys[1], [f"{INNER[1]}/32"], [gateway]))
        new = stack.enter_context(WireguardGo(far, keys[2], [f"{INNER[2]}/32"], []))
        new.set("fwmark", MARK)
        far.run("ip", "rule", "add", "fwmark", MARK, "lookup", MARK)
        far.run("ip", "rule", "add", "from", INNER[2], "lookup", "77")
        far.run("ip", "route", "add", INNER[0], "dev", new.interface, "table", "77")
        made = Scene(near, far, _raw(keys[0].public), peer, new, gateway, link.b_interface)
        until(lambda: far.run("ping", "-c", "1", "-W", "1", INNER[0], check=False).returncode == 0, 30, "the tunnel")
        yield made


def _links(space: Namespace) -> list[str]:
    return [line.split(":")[1].strip().split("@")[0] for line in space.run("ip", "-o", "link").stdout.splitlines()]


def _raw(key: str) -> bytes:
    return base64.b64decode(key)


@dataclass(frozen=True, slots=True)
class Compared:
    """Holds medians of all turns of one kind."""

    share: float
    """Goodput beside the flood, of that without."""
    handshake: float
    longest: float
    rate: float

    @classmethod
    def of(cls, quiet: list[Turn], flooded: list[Turn]) -> "Compared":
        middle = statistics.median
        share = middle(turn.goodput for turn in flooded) / middle(turn.goodput for turn in quiet)
        times = [turn.handshake for turn in flooded]
        return cls(share, middle(times), max(times), middle(turn.rate for turn in flooded))


def compare(at: Scene, rate: float, kind: str, flood_rate: float | None, turns: int) -> Compared:
    """Measures turns without and with the flood, one after another."""
    quiet, flooded = [], []
    for _ in range(turns):
        quiet.append(at.turn(rate, None, None))
        flooded.append(at.turn(rate, kind, flood_rate))
    return Compared.of(quiet, flooded)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--rate", type=float, default=20_000.0, help="0: as fast as the machine can")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=[STAGEWIRE, REFERENCE])
    options = parser.parse_args()
    with short_directory() as directory:
        for name in [options.only] if options.only else [STAGEWIRE, REFERENCE]:
            with scene(name, directory) as at:
                rate = at.capacity() / 2
                print(f"{name}: stream of {rate:,.0f} packets/s", flush=True)
                for kind in options.kind or KINDS:
                    found = compare(at, rate, kind, options.rate or None, options.turns)
                    print(
                        f"  {kind:22} {found.rate:9,.0f}/s: goodput {found.share:7.2%}, "
                        f"handshake {found.handshake:.2f} s, at most {found.longest:.2f} s",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
