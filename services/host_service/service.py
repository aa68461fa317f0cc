"""Passes what key-service wants to `network`, and reports the host's state back.

control ──▶ settings, prefixes, endpoints ──▶ HostNetwork ──▶ netlink, nft, sysctl
        ◀── HostState, LinkState          ◀── Watch       ◀── netlink
"""

from functools import partial
from typing import NamedTuple, assert_never

from host_service import ledger
from host_service.denials import INTERVAL, Denials
from host_service.ground import MAX_WARNINGS, Ground, Wanted
from host_service.ledger import Ledger
from host_service.network import HostNetwork
from host_service.route_messages import Network
from host_service.sockets import TunnelSockets
from host_service.watch import Watch
from stagewire.control.confirm import Confirm, Confirmed
from stagewire.control.messages import (
    Hello,
    HostEndpoints,
    HostSettings,
    HostState,
    LinkState,
    LiveSessions,
    RoutesGone,
    RoutesSet,
    SnapshotEnd,
    SocketSettings,
    ToHost,
    Welcome,
)
from stagewire.linux import links, privileges
from stagewire.linux.links import Link
from stagewire.linux.netlink import Netlink
from stagewire.loop import boot_time
from stagewire.process.control_line import ControlLine
from stagewire.process.stage import Stage
from stagewire.proto import prefix

RETRY = 1.0
"""s from a refusal to the next try."""
RETRY_RULES = 30.0
"""s that grow from RETRY with each refusal of the rules for packets of peers: each try runs nft."""
LONG_WORK = 10.0
"""s that nft may take on a busy machine."""


class PutBack(NamedTuple):
    """Names the counter of one kind of repair."""

    counter: str


_PUT_BACK = {
    "link": PutBack("put_back_link"),
    "address": PutBack("put_back_address"),
    "route": PutBack("put_back_route"),
    "guard": PutBack("put_back_guard"),
    "rule": PutBack("put_back_rule"),
    "firewall": PutBack("put_back_firewall"),
    "sysctl": PutBack("put_back_sysctl"),
}
_NAMES = {"address": ("address", "addresses"), "guard": ("guard route", "guard routes"),
          "firewall": ("nftables table", "nftables tables")}  # fmt: skip


class HostService:
    """Changes the host for one interface, as key-service wants."""

    def __init__(self, stage: Stage, clones: list[int]) -> None:
        """Keeps `clones`, descriptors of /dev/net/tun opened as root; none if root could not open any."""
        self._stage = stage
        self._clones = clones
        self._version = 0
        self._settings: HostSettings | None = None
        self._named: set[bytes] | None = None
        """Prefixes, packed, that the incoming snapshot has named so far; None without a snapshot."""
        self._prefixes: dict[Network, None] = {}
        self._link: Link | None = None
        self._link_said: LinkState | None = None
        self._state_said: HostState | None = None
        self._answered = 0
        """The newest request that was carried out or refused."""
        self._refused = ""
        self._put_back: tuple[str, ...] = ()
        self._put_back_at = 0
        self._warned: dict[str, str] = {}
        self._confirm: int | None = None
        """The number of an unanswered Confirm."""
        self._retry: float | None = None
        self._wait = RETRY
        """s from the next refusal to its next try."""
        self._faults: dict[str, str] = {}
        self._ground: Ground
        self._network: HostNetwork

    def set_up(self) -> None:
        """Opens the ledger, netlink, the pipes and the socket door."""
        stage = self._stage
        environment = stage.environment
        self._ground = Ground(
            environment.interface,
            privileges.uid_of("tun"),
            environment.offload,
            Ledger(environment.run / "host" / ledger.NAME),
        )
        self._line = ControlLine(stage, self)
        self._sockets = TunnelSockets(stage, self._line.say, lambda fault: self._set_fault("sockets", fault))
        self._network = HostNetwork(
            self._ground, self._clones, self._prefixes, self._on_settled, self._say_state, self._on_link, self._set_mark
        )
        watch = Watch(stage.loop, self._network)
        # nft is a program of its own: it keeps us silent, and the kernel reports its changes as foreign.
        self._network.before_nft = lambda: stage.slot.expect_silence(LONG_WORK, boot_time())
        self._network.after_nft = watch.forget_nft
        self._network.device.hear = watch.read
        stage.loop.add_timed(self)
        stage.loop.add_timed(self._network)
        self._denials = Denials(environment.interface, boot_time())
        stage.loop.add_paced(INTERVAL, self._look_for_denied)

    def _set_mark(self) -> None:
        """Marks our datagrams, so that a default route through the tunnel does not catch them. Raises OSError."""
        settings = self._settings
        self._sockets.set_mark(self._network.policy.number or (settings.fwmark if settings is not None else 0))

    def _set_fault(self, of: str, fault: str) -> None:
        self._faults[of] = fault
        self._stage.set_fault("; ".join(filter(None, self._faults.values())))

    # --- control -------------------------------------------------------------------------------------------

    def hello(self) -> list[Hello | LiveSessions]:
        return [self._stage.hello()]

    def on_control(self, message: ToHost, now: float) -> None:
        match message:
            case Welcome():
                self._named = set()
            case HostSettings():
                self._on_settings(message, now)
            case SocketSettings():
                self._sockets.want(message, now)
            case HostEndpoints(addresses=addresses):
                self._network.set_endpoints(addresses)
            case RoutesSet():
                self._add(message.prefixes)
            case RoutesGone():
                self._remove([prefix.unpack_untrusted(packed) for packed in message.prefixes])
            case SnapshotEnd(version=version):
                named, self._named = self._named or set(), None
                if len(named) != len(self._prefixes):
                    self._remove([each for each in self._prefixes if prefix.pack(each) not in named])
                self._version = version
                self._link_said = self._state_said = None  # a new key-service knows neither
                self.act(now)
            case Confirm(number=number):
                self._confirm = number
                if not self._network.busy:
                    self._say_confirmed()
            case _:
                assert_never(message)

    def _on_settings(self, settings: HostSettings, now: float) -> None:
        self._settings, self._wait = settings, RETRY
        if self._named is None:
            self.act(now)
        elif not self._network.follows(_wanted(settings)):
            self._network.distrust()  # the prefixes that follow are for the new settings

    def _add(self, packed: tuple[bytes, ...]) -> None:
        if self._named is not None:
            self._named.update(packed)
        fresh = [each for each in map(prefix.unpack_untrusted, packed) if each not in self._prefixes]
        self._prefixes.update(dict.fromkeys(fresh))
        if fresh:
            self._network.add(fresh)

    def _remove(self, prefixes: list[Network]) -> None:
        known = [each for each in prefixes if each in self._prefixes]
        for each in known:
            del self._prefixes[each]
        if known:
            self._network.remove(known)

    def act(self, _now: float) -> None:
        """Makes the host as the settings say. Tries again after a refusal."""
        self._retry = None
        settings = self._settings
        if settings is None or not settings.managed:
            self._on_settled("")
            return
        wanted = _wanted(settings)
        if not self._network.follows(wanted):
            self._network.begin(wanted)
        elif not self._network.busy:
            self._on_settled("")

    # --- reports -------------------------------------------------------------------------------------------

    def _on_settled(self, fault: str) -> None:
        self._set_fault("network", fault)
        self._refused = fault
        if fault:
            self._retry = boot_time() + self._wait
            self._wait = min(2 * self._wait, RETRY_RULES) if self._network.gateway.refused else RETRY
        elif self._named is None:  # not in the middle of a snapshot
            self._line.applied(self._version)
            if self._link is None:
                self._link = self._find()
            self._say_link(self._link)
        self._say_state()
        self._say_confirmed()
        if self._settings is not None and self._settings.request:
            self._sockets.when_taken(partial(self._answer, self._settings.request))

    def _say_confirmed(self) -> None:
        if self._confirm is not None:
            number, self._confirm = self._confirm, None
            self._line.say(Confirmed(number))

    def _look_for_denied(self, now: float) -> None:
        if self._named is None and self._network.gateway.restricts:
            self._stage.loop.worked += self._denials.look(self._line.say, now)

    def _answer(self, request: int) -> None:
        if self._settings is not None and self._settings.request == request:
            self._answered = request
            self._say_state()

    def _find(self) -> Link | None:
        with Netlink() as kernel:
            return links.find(kernel, self._stage.environment.interface)

    def _on_link(self, link: Link) -> None:
        self._link = None if link.gone else link
        self._say_link(self._link)

    def _say_link(self, link: Link | None) -> None:
        """Tells key-service the interface's MTU and state, once for each change."""
        state = LinkState(link.mtu, link.up) if link is not None else None
        if state is not None and state != self._link_said and self._named is None and self._line.say(state):
            self._link_said = state

    def _say_state(self) -> None:
        """Tells key-service and the log what has changed."""
        ground, log = self._ground, self._stage.log
        if ground.put_back:
            counts = dict(sorted(ground.put_back.items()))
            ground.put_back.clear()
            for what, count in counts.items():
                self._stage.counters[_PUT_BACK[what].counter] += count
            names = {what: _NAMES.get(what, (what, f"{what}s"))[count > 1] for what, count in counts.items()}
            self._put_back = tuple(f"{count} {names[what]}" for what, count in counts.items())
            self._put_back_at = int(boot_time())
            log.warning("put back what others undid", **counts)
        for about, text in ground.warnings.items():
            if self._warned.get(about) != text:
                log.warning("the host is not as configured", reason=text)
        self._warned = dict(ground.warnings)
        state = HostState(
            self._network.policy.number,
            tuple(self._warned.values())[:MAX_WARNINGS],
            self._put_back,
            self._put_back_at,
            self._refused,
            self._answered,
            bool(self._network.gateway.refused),
            self._network.gateway.unheld,
        )
        if state != self._state_said and self._named is None and self._line.say(state):
            self._state_said = state

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Returns when to try again after a refusal."""
        return self._retry


def _wanted(settings: HostSettings) -> Wanted:
    return Wanted(settings.addresses, settings.mtu, settings.table, settings.fwmark, settings.gateway)
