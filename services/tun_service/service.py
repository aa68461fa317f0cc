"""Does what key-service says about the TUN device: attaches to it, and keeps each prefix's worker. `packets` does the rest:

TUN      ──▶ destination -> worker by longest prefix ──▶ plain-out.<n>    read only while the pipes have room
         └─▶ no peer: an ICMP unreachable, back into the TUN
plain-in ──▶ TUN
"""

from dataclasses import replace
from typing import Any, assert_never

from stagewire.control.confirm import Cleared, Confirm, Confirmed
from stagewire.control.messages import (
    Hello,
    LiveSessions,
    RoutesGone,
    RoutesSet,
    SnapshotEnd,
    ToTun,
    TunSettings,
    Welcome,
)
from stagewire.linux import tun
from stagewire.loop import boot_time
from stagewire.pipe.names import PLAIN_IN, PLAIN_OUT
from stagewire.pipe.to_workers import ToWorkers
from stagewire.pipe.train_builder import PlainBuilder
from stagewire.process.control_line import ControlLine
from stagewire.process.stage import Stage
from stagewire.proto import carriers, prefix
from stagewire.proto.allowed_ips import AllowedIps
from tun_service.packets import Packets

RETRY = 1.0
"""s between attempts to attach, after PATIENCE."""
PATIENCE = 1.0
"""s of refusals before tun-service reports a fault."""
RETRY_SOON = 0.02
"""s between attempts to attach, while host-service makes the device or another process closes it."""


class TunService:
    """Serves the OS side of one interface."""

    def __init__(self, stage: Stage, device: int, *, attached: bool, kernel: tuple[Any, str] = (None, "")) -> None:
        """Takes a descriptor of /dev/net/tun; `attached` if it is the interface's already. `kernel` is `rule.load`'s."""
        self._stage = stage
        compiled, self._kernel = kernel
        self._tun = device
        self._attached = attached
        self._version = 0
        self._wanted: TunSettings | None = None
        self._in_snapshot = False
        self._blind = False
        """Set until it is known which worker may deliver which packets; until then they wait in the pipe."""
        self._owners: AllowedIps[int] = AllowedIps()
        """The workers of each prefix, as `carriers` packs them."""
        self._workers = ToWorkers(stage.loop, stage.pipes, PLAIN_OUT, PlainBuilder, stage.counters)
        self._workers.throttle([device])
        self._packets = Packets(device, self._workers, self._owners, stage.counters, stage.drop, self._lost, compiled)
        self._retry: float | None = None
        self._refused_since = 0.0

    def set_up(self) -> None:
        """Opens the pipes. Hands the device down if it is attached already."""
        stage = self._stage
        self._line = ControlLine(stage, self)
        self._packets.cleared = lambda worker, number: self._line.say(Cleared(worker, number))
        if self._attached:
            self._packets.attached()
            stage.bequest.leave({tun.DESCRIPTOR: self._tun})
        self._plain_in = stage.pipes.receiver(
            stage.loop, PLAIN_IN, self._packets.on_plain_in, stage.drop, of_place=self._packets.from_place
        )
        stage.loop.add_timed(self)
        self._blind = not self._line.recall(boot_time())
        if self._blind:
            stage.loop.pause(self._plain_in.source)
        elif self._attached and self._wanted is not None:
            self._connect_workers(self._wanted.workers)

    # --- packets -------------------------------------------------------------------------------------------

    def _lost(self, error: OSError) -> None:
        # A descriptor attaches only once, and the stage's uid can't open another: the next process must.
        self._stage.log.error("TUN device lost; starts anew", reason=error.strerror)
        self._stage.loop.stop()

    # --- control -------------------------------------------------------------------------------------------

    def hello(self) -> list[Hello | LiveSessions]:
        return [replace(self._stage.hello(), kernel=self._kernel)]

    def on_control(self, message: ToTun, now: float) -> None:
        match message:
            case Welcome():
                self._in_snapshot = True
                self._owners.begin_naming()
            case TunSettings():
                self._on_settings(message, now)
            case RoutesSet(worker=worker):
                carrier = carriers.pack(worker, message.also)
                for packed in message.prefixes:
                    self._owners.assign(prefix.route_untrusted(packed), carrier)
            case RoutesGone():
                for packed in message.prefixes:
                    self._owners.withdraw(prefix.route_untrusted(packed))
            case SnapshotEnd(version=version):
                self._in_snapshot = False
                self._owners.end_naming()
                if self._blind:
                    self._blind = False
                    self._stage.loop.resume(self._plain_in.source)
                self._version = version
                self.act(now)
            case Confirm(number=number):
                self._line.say(Confirmed(number))
            case _:
                assert_never(message)

    def _on_settings(self, settings: TunSettings, now: float) -> None:
        self._wanted = settings
        if len(self._workers) in range(1, settings.workers):
            self._connect_workers(settings.workers)  # before the snapshot ends: its prefixes may belong to new workers
        if not self._in_snapshot:
            self.act(now)

    def act(self, now: float) -> None:
        """Attaches to the device once host-service has made it, and applies the settings. Tries again later if refused."""
        settings, stage = self._wanted, self._stage
        if settings is None:
            return
        self._retry = None
        if not self._attached:
            environment = stage.environment
            try:
                self._attached = tun.join(self._tun, environment.interface, offload=environment.offload)
            except tun.TunUnavailable as refused:
                self._refused_since = self._refused_since or now
                if now < self._refused_since + PATIENCE:  # its maker or last holder may be about to close it
                    self._retry = now + RETRY_SOON
                else:
                    stage.set_fault(str(refused))
                    self._retry = now + RETRY
                return
            if not self._attached:
                self._retry = now + RETRY_SOON
                return
            self._packets.attached()
            stage.bequest.leave({tun.DESCRIPTOR: self._tun})
        stage.set_fault("")
        if settings.workers != len(self._workers):
            self._connect_workers(settings.workers)
        if not self._in_snapshot:
            self._line.applied(self._version)

    def _connect_workers(self, workers: int) -> None:
        if not self._workers:
            self._stage.loop.add(self._tun, self._packets.on_tun)
        self._workers.connect(workers)

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Returns the time of the next attempt to attach."""
        return self._retry
