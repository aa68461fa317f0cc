"""A host's network that is looked after in this process, in a namespace."""

import os
import select
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

from host_service.ground import Ground, Wanted
from host_service.ledger import Ledger
from host_service.network import HostNetwork
from host_service.watch import Watch
from lab.namespaces import Namespace
from lab.wait import until
from stagewire.loop import Handler, Loop, Source, boot_time

WANTED = Wanted(("10.9.0.1/24",), 1420, "auto", 0)


class Turned(Loop):
    """A loop that is turned by hand."""

    def __init__(self) -> None:
        super().__init__(lambda _now: None)
        self.sources: list[tuple[int, Handler]] = []

    def add(self, source: Source, handler: Handler, **_more: object) -> None:
        assert isinstance(source, int)
        self.sources.append((source, handler))


class Kept:
    """wg0 in a namespace, made and looked after by us."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        prefixes: tuple[str, ...] = ("10.8.0.0/16", "fd08::/48"),
        wanted: Wanted = WANTED,
    ) -> None:
        self.namespace = namespace
        self.said: list[str] = []
        self.prefixes = dict.fromkeys(map(ip_network, prefixes))
        self._loop = Turned()
        self.ground, self.network = namespace.call(lambda: self._made(directory))
        self.begin(wanted)

    def _made(self, directory: Path) -> tuple[Ground, HostNetwork]:
        ground = Ground("wg0", 0, False, Ledger(directory / "ledger"))
        nothing: Callable[..., None] = lambda *_: None  # noqa: E731
        network = HostNetwork(ground, [], self.prefixes, self.said.append, nothing, nothing, nothing)
        watch = Watch(self._loop, network)
        network.after_nft, network.device.hear = watch.forget_nft, watch.read
        return ground, network

    def begin(self, wanted: Wanted) -> None:
        self.namespace.call(lambda: self.network.begin(wanted))
        self.until(lambda: not self.network.busy, "the work to be done")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Turns until it holds."""

        def turned() -> object:
            for source, handler in self._loop.sources:
                while select.select([source], [], [], 0)[0]:
                    handler(boot_time())
            due, now = self.network.next_deadline(), boot_time()
            if due is not None and due <= now:
                self.namespace.call(lambda: self.network.act(now))
            return condition()

        until(turned, 5, what)

    def shows(self, *arguments: str) -> str:
        """What `ip` says."""
        return self.namespace.run("ip", *arguments, check=False).stdout

    def close(self) -> None:
        for source, _ in self._loop.sources:
            os.close(source)
        self.ground.close()


def whole(kept: Kept) -> bool:
    routes = kept.shows("route", "show", "dev", "wg0") + kept.shows("-6", "route", "show", "dev", "wg0")
    return "10.8.0.0/16 proto 87" in routes and "fd08::/48 proto 87" in routes and "10.9.0.0/24" in routes
