"""Sets up network, gateway, streams and watch, and takes all down again whatever happens."""

import contextlib
import random
from collections.abc import Callable
from typing import Self

from tests.chaos.house import House
from tests.chaos.load import Flood
from tests.chaos.network import GATEWAY, TCP_PORT, TRANSFERRING, Network
from tests.chaos.record import Record
from tests.chaos.stream import Streams
from tests.chaos.transfer import Transfer
from tests.chaos.watch import Watch


class Scene:
    """Holds a run's scene from the start of the context to its end."""

    def __init__(self, seconds: float, seed: int) -> None:
        """Takes `seconds`, the longest possible run."""
        self._seconds, self._seed = seconds, seed
        self._stack = contextlib.ExitStack()
        self.network: Network
        self.record: Record
        self.streams: Streams
        self.transfer: Transfer
        self.watch: Watch
        self.flood: Flood
        self.house: House

    def __enter__(self) -> Self:
        with self._stack:
            self._set_up(self._stack.enter_context)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self, enter: Callable[[contextlib.AbstractContextManager[object]], object]) -> None:
        self.network = network = Network()
        enter(network)
        self.record = record = Record(2 * len(network.hosts), self._seconds)
        wire = network.gateway, network.link.a_interface
        self.watch = Watch(
            record, wire, network.router, (GATEWAY, network.hub.port), network.places(), self._seed
        )  # fmt: skip
        enter(self.watch)  # before any packet can leave
        enter(network.hub)
        network.start_peers()
        self._meet()
        self.streams = Streams(record, network.flows())
        spoke = network.spokes[TRANSFERRING]
        self.transfer = Transfer(record, network.gateway, network.hosts[TRANSFERRING], (spoke.inner[0], TCP_PORT))
        self.flood = Flood(network)
        enter(self.flood)
        enter(self.streams)
        enter(self.transfer)
        self.house = House(network, record, self.watch, self.flood, random.Random(self._seed))

    def _meet(self) -> None:
        """Lets the gateway learn the last peer's endpoint."""
        network = self.network
        last = max(network.hosts)
        address = network.spokes[last].gateway_inner[0]
        said = network.hosts[last].run("ping", "-n", "-c", "1", "-W", "5", address, check=False)
        if said.returncode:
            raise RuntimeError(f"peer {last} cannot ping the gateway through the tunnel: {said.stdout}")
