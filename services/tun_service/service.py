"""The shell around the TUN device.

TUN      ──▶ destination -> worker by longest prefix ──▶ plain-out.<n>    read only while the pipes have room
         └─▶ nobody's: an ICMP unreachable, back into the TUN
plain-in ──▶ TUN

That is `packets`; here is what key-service has to say about it.
"""

from dataclasses import replace
from typing import Any

from stagewire import privileges, tun
from stagewire.ipc import endpoints
from stagewire.ipc.control import (
    FromKey,
    Hello,
    LinkState,
    RoutesGone,
    RoutesSet,
    SnapshotEnd,
    TunSettings,
    Welcome,
)
from stagewire.ipc.loop import boot_time
from stagewire.ipc.outlet import Outlet
from stagewire.ipc.stage import ControlLine, Stage
from stagewire.proto import prefix
from stagewire.proto.allowed_ips import AllowedIps
from tun_service import network
from tun_service.link import Link, LinkWatch
from tun_service.packets import Packets
from tun_service.routes import Network, Routes

WORKER_PATIENCE = 0.15
"""s that a worker may take nothing before its packets are dropped for it; less hits one that got no CPU."""
RETRY = 1.0
RETRY_SOON = 0.05
"""s between attempts in the first second: who was at work before us may still be closing the device."""
CALM = 0.1
"""s after we took the device over before its addresses and routes are looked at, which stand: packets would wait 6 ms."""


class TunService:
    """The OS side of one interface."""

    def __init__(self, stage: Stage, netlink: Any, device: int, *, attached: bool) -> None:
        """`device` is a descriptor of /dev/net/tun; `attached`: it is the interface's already."""
        self._stage = stage
        self._tun = device
        self._attached = self._found = attached
        """Found: a tun-service before us has set its MTU, and somebody may have set another since."""
        self._version = 0
        self._wanted: TunSettings | None = None
        self._named: set[bytes] | None = None
        """While a snapshot comes in: the prefixes it has named so far, packed, as to free 130,000 networks takes 40 ms."""
        self._homes: dict[Network, int] = {}
        self._owners: AllowedIps[int] = AllowedIps()
        """The same, to be looked up by longest prefix."""
        self._routes = Routes(netlink, stage.environment.interface, self._on_routes_settled)
        self._watch: LinkWatch | None = None
        self._link: Link | None = None
        self._link_said: LinkState | None = None
        self._mtu_set: int | None = None
        """By us; what somebody sets it to afterwards stays, whatever key-service repeats."""
        self._workers: list[Outlet] = []
        self._packets = Packets(device, self._workers, self._owners, stage.counters, stage.drop, self._lost)
        self._retry: float | None = None
        self._began = boot_time()
        self._calm = self._began + CALM if attached else self._began

    def set_up(self) -> None:
        """Opens the pipes, and the device if nobody else has it."""
        stage = self._stage
        self._line = ControlLine(stage, self)
        if self._attached:
            self._packets.attached()
            stage.bequest.leave({tun.DESCRIPTOR: self._tun})
        stage.pipes.inlet(stage.loop, endpoints.PLAIN_IN, self._packets.on_plain_in, stage.drop)
        stage.loop.add_timed(self)
        stage.loop.add_timed(self._routes)
        if self._line.recall(boot_time()) and self._attached and self._wanted is not None:
            self._connect_workers(self._wanted.workers)

    # --- packets -------------------------------------------------------------------------------------------

    def _lost(self, error: OSError) -> None:
        # A descriptor of /dev/net/tun can't be attached twice, and as ourselves we can't open another.
        self._stage.log.error("TUN device lost", reason=error.strerror)
        self._stage.loop.stop()

    # --- control -------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """The plain one."""
        return self._stage.hello()

    def on_control(self, message: FromKey, now: float) -> None:
        """One message from key-service."""
        match message:
            case Welcome():
                self._named = set()
            case TunSettings():
                self._on_settings(message, now)
            case RoutesSet(worker=worker):
                self._set_owner([prefix.unpack_untrusted(packed) for packed in message.prefixes], worker)
            case RoutesGone():
                self._drop([prefix.unpack_untrusted(packed) for packed in message.prefixes])
            case SnapshotEnd(version=version):
                named, self._named = self._named or set(), None
                if len(named) != len(self._homes):  # they are all in it; 130,000 are not looked through for nothing
                    self._drop([each for each in self._homes if prefix.pack(each) not in named])
                self._version = version
                self._link_said = None  # a new key-service has to be told
                self.act(now)
            case _:
                self._stage.counters["control_unexpected"] += 1

    def _on_settings(self, settings: TunSettings, now: float) -> None:
        standing, self._wanted = self._wanted, settings
        if len(self._workers) in range(1, settings.workers):
            self._connect_workers(settings.workers)  # also in a snapshot: the prefixes in it may be theirs
        if self._named is not None:
            if not self._routes.follows(_network(settings)):
                self._routes.distrust()  # the prefixes that come now aren't for the network as it is
            return
        if standing is not None and replace(settings, workers=standing.workers) == standing and self._workers:
            self._connect_workers(settings.workers)  # nothing else has changed, and to look would take its time
        else:
            self.act(now)

    def _set_owner(self, prefixes: list[Network], worker: int) -> None:
        fresh = [each for each in prefixes if each not in self._homes]  # the others only move between workers
        for each in prefixes:
            if self._homes.get(each) != worker:
                self._homes[each] = worker
                self._owners.insert(each, worker)
        if self._named is not None:
            self._named.update(map(prefix.pack, prefixes))
        self._routes.add(fresh)

    def _drop(self, prefixes: list[Network]) -> None:
        for each in prefixes:
            worker = self._homes.pop(each, None)
            if worker is not None:
                self._owners.remove(each, worker)
        self._routes.remove(prefixes)

    def act(self, _now: float) -> None:
        """Makes the interface as the snapshot says; what the kernel refuses is tried again."""
        settings = self._wanted
        if settings is None:
            return
        try:
            if self._found:
                self._mtu_set, self._found = settings.mtu, False
            if not self._attached:
                environment = self._stage.environment
                tun.attach(self._tun, environment.interface, privileges.uid_of("tun"), offload=environment.offload)
                self._attached = True
                self._packets.attached()
                self._stage.bequest.leave({tun.DESCRIPTOR: self._tun})
            if self._watch is None:
                self._watch = LinkWatch(self._stage.loop, self._stage.environment.interface, self._on_link)
            if settings.workers != len(self._workers):
                self._connect_workers(settings.workers)
            if settings.managed:
                wanted = _network(settings)
                if not self._routes.follows(wanted):
                    changed = wanted.mtu != self._mtu_set
                    self._routes.begin(wanted, self._homes, set_mtu=changed, when=self._calm)
                elif not self._routes.busy:
                    self._on_routes_settled("")
            else:
                self._on_routes_settled("")
        except tun.TunUnavailable as refused:
            self._on_routes_settled(str(refused))
            return
        self._retry = None

    def _on_routes_settled(self, fault: str) -> None:
        self._stage.set_fault(fault)
        if fault:
            self._mtu_set = None  # it may be that which was refused
            now = boot_time()
            self._retry = now + (RETRY_SOON if now < self._began + 1.0 else RETRY)
        elif self._wanted is not None and self._named is None:  # not in the middle of a snapshot
            self._mtu_set = self._wanted.mtu
            self._line.applied(self._version)
            self._say_link()

    def _on_link(self, link: Link) -> None:
        self._link = link
        self._say_link()

    def _say_link(self) -> None:
        """Tells key-service what somebody has set the interface to, once for each change."""
        state = LinkState(self._link.mtu, self._link.up) if self._link and not self._link.gone else None
        if state is not None and state != self._link_said and self._line.say(state):
            self._link_said = state

    def _connect_workers(self, workers: int) -> None:
        """To so many; what waits for those that stay, goes on waiting."""
        stage, first = self._stage, not self._workers
        if first:
            stage.loop.add(self._tun, self._packets.on_tun)
        while len(self._workers) > workers:
            self._workers.pop().close()
        self._workers += [
            Outlet(
                stage.loop,
                stage.pipes.line(stage.loop, endpoints.PLAIN_OUT, number),
                stage.counters,
                "worker_full",
                [self._tun],
                WORKER_PATIENCE,
                expected=first,
            )
            for number in range(len(self._workers), workers)
        ]

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When to try again what the kernel refused."""
        return self._retry


def _network(settings: TunSettings) -> network.Wanted:
    return network.Wanted(settings.addresses, settings.mtu, settings.table, settings.fwmark)
