"""What every program is made of beside its own work: environment, log, folders, privileges, loop, control, counters.

    stage = Stage("tun")            read the environment, set the log up, make the folders, wait for a slot   (as root)
    ...                             open what needs root
    stage.run(...)                  become the stage's own uid, turn the loop until SIGTERM

A stage says Hello to key-service until it is welcomed, says Heartbeat from then on, and says Hello again when it meets
another key-service. Every second it pushes its counters to status-service.
"""

import gc
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import zmq

from stagewire import logs, privileges, undertaker
from stagewire.environment import Environment, EnvironmentMistake
from stagewire.ipc import control, endpoints, recall, slots, trains
from stagewire.ipc.bequest import Bequest
from stagewire.ipc.codec import BadControl
from stagewire.ipc.control import (
    Applied,
    Beat,
    ConnSettings,
    Counters,
    FromKey,
    FromStage,
    Heartbeat,
    Hello,
    PeersSet,
    PrefixesGone,
    PrefixesSet,
    RoutesGone,
    RoutesSet,
    SnapshotEnd,
    TunSettings,
    Welcome,
)
from stagewire.ipc.loop import Every, Loop, Once, boot_time
from stagewire.ipc.recall import Said
from stagewire.ipc.slots import SlotLost
from stagewire.ipc.spare import Spare
from stagewire.ipc.trains import BadTrain

LINGER_MS = 100
"""What was sent before we stop has this long to leave."""
RETRY = 1.0
"""s between two attempts to get a place, when there is no room for one."""
SETTLED = 0.02
"""s from the first turn to when one is no longer in a hurry."""
PACKETS: Final = frozenset({"tun", "device", "conn"})
"""The stages that packets go through."""
JUST_WELCOMED = 1.0
"""s."""
MAX_VERSIONS = 8
"""Other versions than ours that are said; whoever makes some up shall not fill the log."""
EXIT_MISTAKE = 2
"""The operator has to do something; starting again won't help."""


class Handler(Protocol):
    """What a stage does with what key-service says."""

    def hello(self) -> Hello:
        """The stage as it is now."""

    def on_control(self, message: FromKey, now: float) -> None:
        """One message, Welcome and SnapshotEnd included."""


class Stage:
    """One process. `name` is tun, device, conn, key or status; `number` is the worker's."""

    def __init__(self, name: str, only: int | None = None, warm_up: Callable[[], None] = lambda: None) -> None:
        """Returns when there is work: until then it is the spare. `only` is the one number to wait for.

        `warm_up` does beforehand what takes long and needs no slot.
        """
        self.name = name
        self.generation = int.from_bytes(os.urandom(8)) >> 1
        self.environment = _read_environment()
        self.log = logs.set_up(f"{name}-service", self.environment.log_level, interface=self.environment.interface)
        self.counters: Counter[str] = Counter()
        self._versions_met: set[tuple[str, int]] = set()
        # No stage re-reads anything on it; a closed terminal must not end a gateway, nor those that wait.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            warm_up()
        except OSError as error:
            self.log.error("cannot work", reason=str(error))
            sys.exit(EXIT_MISTAKE)
        self._wait_for_slot(only)
        self.number = self.slot.number
        if name == "device":
            self.log = self.log.bind(worker=self.number)
        self.loop = Loop(self.slot.beat)
        self.fault = ""
        self.at_end: Callable[[], None] = lambda: None
        """Closes what whoever takes over would stumble upon."""
        self.bequest: Bequest
        self.said = self.inherited.pop(recall.NAME, None)
        self.pipes = endpoints.Pipes(zmq.Context(), self.environment.run, endpoints.take_listeners(self.inherited))

    def _wait_for_slot(self, only: int | None) -> None:
        """Before anything is opened or read: no two processes may serve one place, nor one undo what the other does."""
        environment, said = self.environment, ""
        while True:
            try:
                endpoints.prepare_folders(environment.run, self.name)
                spare = Spare(
                    environment.run, self.name, lambda: self._numbers(only), privileges.uid_of(self.name), self.log,
                    urgent=self.name in PACKETS,
                )  # fmt: skip
                self.slot, self.inherited = spare.wait()
            except OSError as error:
                reason = f"{error.filename or environment.run}: {error.strerror}"
                if reason != said:
                    self.log.error("cannot work", reason=reason)
                said = reason
                time.sleep(RETRY)
            else:
                privileges.be_as_nice_as_parent()
                privileges.be_scheduled_apart()
                return

    def _numbers(self, only: int | None) -> Sequence[int]:
        if only is not None:
            return (only,)
        if self.name == "device":
            return range(slots.wanted_workers(self.environment.run, self.environment.workers))
        return (0,)

    def set_fault(self, fault: str) -> None:
        """Says what keeps the stage from its work (empty: nothing does); logged when it changes."""
        if fault != self.fault:
            self.fault = fault
            if fault:
                self.log.error("cannot work", reason=fault)
            else:
                self.log.info("works again")

    def drop(self, bad: BadControl | BadTrain) -> None:
        """Counts what couldn't be read; another version, which an upgrade leaves side by side with ours, is also said."""
        self.counters[bad.reason] += bad.packets
        of, ours = ("control", control.VERSION) if isinstance(bad, BadControl) else ("packets", trains.VERSION)
        if bad.version is None or (of, bad.version) in self._versions_met or len(self._versions_met) >= MAX_VERSIONS:
            return
        self._versions_met.add((of, bad.version))
        self.log.warning("drops messages of another version", of=of, theirs=bad.version, ours=ours)

    def hello(self) -> Hello:
        """The plain one."""
        return Hello(self.name, self.number, self.generation, os.getpid())

    def run(self, set_up: Callable[[], None], *capabilities: int) -> int:
        """Becomes the stage's own uid, calls `set_up`, turns the loop; returns the exit status."""
        try:
            privileges.drop(self.name, *capabilities)
            # From here on every socket is for the services' group, and nobody else.
            os.umask(0o117)
            try:
                self.bequest = Bequest(self.loop, self.environment.run / self.name, self.number)
                set_up()
                self._push_counters()
                self.pipes.close_inherited()
                self.pipes.leave_to(lambda left: self.bequest.leave(left, "pipes"))
            except (OSError, zmq.ZMQError) as error:  # no room in the run folder, or no such folder any more
                self.log.error("cannot work", reason=str(error))
                return EXIT_MISTAKE
            self.loop.add_timed(Once(boot_time() + SETTLED, self._settle))
            self.log.info("started", pid=os.getpid(), generation=self.generation)
            self.loop.run()
        except KeyboardInterrupt:
            pass
        except SlotLost as lost:
            self.log.error("the run folder was wiped; starts anew", reason=str(lost))
            return 1
        except Exception:
            self.log.exception("died of a bug")
            return 1
        finally:
            self.pipes.context.destroy(linger=LINGER_MS)
            self._make_room()
        self.log.info("stopped")
        return 0

    def _make_room(self) -> None:
        """Lets the spare begin while the interpreter takes its time to end."""
        self.at_end()
        self.slot.release()
        undertaker.dismiss()
        with suppress(AttributeError):  # not got as far as that
            self.bequest.close()

    def _settle(self, now: float) -> None:
        """What waited while one took over has been served."""
        if self.name in PACKETS:
            privileges.stop_going_first()
            self.loop.gathering.begin(privileges.let_trains_gather, now)
        undertaker.appoint()

    def _push_counters(self) -> None:
        telemetry = self.pipes.connect(zmq.PUSH, endpoints.TELEMETRY)

        def push(_now: float) -> None:
            names = tuple(self.counters)
            message = Counters(
                self.name,
                self.number,
                self.generation,
                os.getpid(),
                names,
                tuple(self.counters[name] for name in names),
            )
            with suppress(zmq.Again):  # status-service is away; the next message says it all again
                telemetry.send(control.TO_STATUS.pack(message), zmq.DONTWAIT)

        self.loop.add_timed(Every(1.0, push))


def _read_environment() -> Environment:
    try:
        return Environment.read(os.environ)
    except EnvironmentMistake as mistake:
        print(f"stagewire: {mistake}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)


_RECALLED = Welcome | ConnSettings | TunSettings | RoutesSet | RoutesGone | SnapshotEnd
"""What makes a tun- and a conn-service know all they need for packets."""


class ControlLine:
    """A stage's line to key-service."""

    MAX_PER_TURN = 4
    BUDGET = 0.001
    """s at a time, and the message that is begun; then packets have as long: 130,000 prefixes must not keep them waiting."""

    def __init__(self, stage: Stage, handler: Handler) -> None:
        self._stage = stage
        self._handler = handler
        # A name of our own, so that key-service knows us again when the connection was lost and made anew.
        name = f"{stage.name}.{stage.number}.{stage.generation:x}".encode()
        self._socket = stage.pipes.connect(zmq.DEALER, endpoints.CONTROL, routing_id=name)
        self._key_generation: int | None = None
        self._welcomed_at = -math.inf
        self._said: Said | None = None
        self._heartbeat = Every(0.05, self._beat)
        stage.loop.add(self._socket, self._read)
        stage.loop.add_timed(self._heartbeat)
        self._rest: float | None = None
        stage.loop.add_timed(self)

    def say(self, message: FromStage) -> bool:
        """Sends a message; False if key-service is away, which will ask for all it needs when it is back."""
        try:
            self._socket.send(control.FROM_STAGE.pack(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        finally:
            self._stage.loop.sent(self._socket)
        return True

    def introduce(self, now: float) -> None:
        """Says hello as soon as can be: there is a key-service that doesn't know us, whose first beat may be far.

        Unless one has just welcomed us, which is the same: it would not answer again so soon.
        """
        if now >= self._welcomed_at + JUST_WELCOMED:
            self._key_generation = None
            self._heartbeat.put_off(now)

    def recall(self, now: float) -> bool:
        """Tells the handler what our predecessor was told, all but a snapshot's end; False if that isn't known.

        A stage that inherited a kernel's queue needn't let it wait until key-service is found. From here on it is kept for
        whoever comes after us.
        """
        self._said = Said(self._stage.said)
        self._stage.bequest.leave({recall.NAME: self._said.descriptor}, recall.NAME)
        try:
            said = [control.FROM_KEY.unpack_untrusted(message) for message in self._said.messages()]
        except BadControl:  # another version's
            said = []
        if not any(isinstance(message, SnapshotEnd) for message in said):
            self._said.begin()
            return False
        for message in said:
            if not isinstance(message, SnapshotEnd):
                self._handler.on_control(message, now)
        return True

    def _note(self, message: FromKey, data: bytes) -> None:
        if self._said is not None and isinstance(message, _RECALLED):
            if isinstance(message, Welcome):
                self._said.begin()
            self._said.add(data)

    def applied(self, version: int) -> None:
        """Says that the snapshot is in force."""
        self.say(Applied(version))

    def _beat(self, now: float) -> None:
        if self._key_generation is None:
            if not self.say(self._handler.hello()):
                # The line isn't there yet. In a millisecond it may be, and while one takes over, packets wait for it.
                self._stage.loop.when_writable(self._socket, self._on_line)
            return
        self.say(Heartbeat(self._stage.generation, self._stage.fault, self._stage.bequest.spares))
        # Often while nobody knows us, so that a start is quick; rarely after.
        self._heartbeat.put_off(now + control.HEARTBEAT_INTERVAL)

    def _on_line(self, now: float) -> None:
        self._stage.loop.when_writable(self._socket, None)
        self._heartbeat.put_off(now)

    def next_deadline(self) -> float | None:
        """The end of a rest."""
        return self._rest

    def act(self, _now: float) -> None:
        """Goes on reading."""
        self._rest = None
        self._stage.loop.resume(self._socket)

    def _read(self, _now: float) -> None:
        begun = boot_time()
        self._read_some(begun)
        now = boot_time()
        if now >= begun + self.BUDGET:
            self._stage.loop.pause(self._socket)
            self._rest = now + (now - begun)

    def _read_some(self, now: float) -> None:
        until = now + self.BUDGET
        for position in range(self.MAX_PER_TURN):
            if position and boot_time() >= until:
                return
            try:
                data = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = control.FROM_KEY.unpack_untrusted(data)
            except BadControl as bad:
                self._stage.drop(bad)
                continue
            if isinstance(message, Beat):
                if message.generation != self._key_generation:
                    self._key_generation = None
                    self._heartbeat.put_off(now)
                continue
            if isinstance(message, Welcome):
                self._key_generation = message.generation
                self._welcomed_at = now
            self._note(message, data)
            self._handler.on_control(message, now)
            if isinstance(message, PeersSet | PrefixesSet | PrefixesGone | RoutesSet | RoutesGone):
                # What they leave has no cycles; to look for some among 130,000 prefixes would take 60 ms each time.
                gc.freeze()
            if isinstance(message, SnapshotEnd):
                self._stage.log.info("configured", version=message.version)
