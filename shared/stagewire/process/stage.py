"""Runs a process of any stage: environment, log, folders, slot, privileges, loop, counters.

    stage = Stage("tun")            reads the environment, sets the log up, makes the folders, waits for a slot   (as root)
    ...                             the program opens what only root may open
    stage.run(...)                  becomes the stage's own uid, turns the loop until SIGTERM

A stage pushes its counters to status-service each second, or rarely while idle. `control_line` speaks with key-service.
"""

import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import zmq

from stagewire import logs
from stagewire.control import messages, questions
from stagewire.control.codec import BadControl
from stagewire.control.messages import Hello
from stagewire.control.telemetry import CaptureReport, Counters, GatewayReport, LastReport, QueueReport, WaitReport
from stagewire.deadlines import IDLE_INTERVAL, Alarm
from stagewire.environment import Environment, EnvironmentMistake
from stagewire.linux import privileges, sandbox, uids
from stagewire.linux.peer_credentials import Credentials
from stagewire.linux.uids import UidsRefused
from stagewire.loop import Loop, boot_time
from stagewire.pipe import trains
from stagewire.pipe.contract import Sender
from stagewire.pipe.names import TELEMETRY, Pipe
from stagewire.pipe.pipes import Pipes, prepare_folders, take_listeners
from stagewire.pipe.trains import BadTrain
from stagewire.process import fd_release, hand_down, handed, holders, signals, worker_count
from stagewire.process.bell import Bell
from stagewire.process.giving_back import WhileResting
from stagewire.process.hand_down import Bequest
from stagewire.process.slots import SlotLocks, SlotLost
from stagewire.process.spare import Spare
from stagewire.proto.kernel import rule
from stagewire.reasons import Reasons
from stagewire.stages import PACKET_STAGES, WORKER

PIPES_MODULE: Final = "stagewire.linux.pipe_trains"
LINGER_MS = 100
"""ms that messages have to leave after the loop's end."""
RETRY = 1.0
"""s between two attempts to open a slot, such as on a full disk."""
SETTLED = 0.02
"""s from the first turn until the process gives up its claim to go first."""
MAX_VERSIONS = 8
"""Foreign versions that the log names at most: a sender that makes them up must not fill it."""
MAX_REFUSED = 16
"""Pairs of a pipe and a uid that the log names as refused."""
EXIT_MISTAKE = 2
"""Exit status for a mistake that the operator has to mend; another start won't help."""


class Stage:
    """Holds a process's environment, slot, loop and pipes. `name` is one of `STAGES`; `number` is the worker's."""

    def __init__(self, name: str, only: int | None = None, warm_up: Callable[[], None] = lambda: None) -> None:
        """Waits as a spare, and returns as the holder of a slot; with `only`, of the slot with that number.

        Calls `warm_up` first, for all that takes long and needs no slot.
        """
        self.name = name
        self.generation = int.from_bytes(os.urandom(8)) >> 1
        self.environment = _read_environment()
        self.log = logs.set_up(f"{name}-service", self.environment.log_level, interface=self.environment.interface)
        self.counters = Reasons()
        self._versions_met: set[tuple[str, int]] = set()
        # No stage re-reads anything on SIGHUP, and a closed terminal must not end a gateway.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            warm_up()
        except OSError as error:
            self.log.error("cannot work", reason=why(error))
            sys.exit(EXIT_MISTAKE)
        self._denied = sandbox.prepare(name)
        self._keeper = None if self.environment.managed else holders.open_keeper(self.environment.run)
        self._wait_for_slot(only)
        if self._keeper is not None and signals.wait([self._keeper], 0):
            self.log.error("ends, as the keeper has died; start the interface anew")
            sys.exit(0)
        self.number = self.slot.number
        if name == "device":
            self.log = self.log.bind(worker=self.number)
        self.bell: Bell | None = None
        self.loop = Loop(self.slot.beat, self._sleep, _phase(self.environment.interface))
        self.fault = ""
        self.at_end: Callable[[], None] = lambda: None
        """Closes what would hinder a successor."""
        self.captures: Callable[[], tuple[CaptureReport, ...]] = tuple
        """Tells which captures run in this process."""
        self.bequest: Bequest
        self.said = self.inherited.pop(handed.SAID, None)
        hand_down.close_all([self.inherited.pop(handed.WAITS)] if handed.WAITS in self.inherited else [])
        inherited, libzmq = take_listeners(self.inherited), self.environment.pipes == "libzmq"
        self.took_over = bool(inherited)
        """Whether another process has held the slot before."""
        self._refused: set[tuple[str, int]] = set()
        self.pipes = Pipes(
            zmq.Context(), self.environment.run, inherited, libzmq=libzmq, own_stages=self.environment.own_stages,
            compiled=self._compiled_pipes(), contest=SlotLocks(self.slot).holds, refused=self.refuse,
        )  # fmt: skip

    def _compiled_pipes(self) -> Any:
        try:
            return rule.load(self.environment.kernel, PIPES_MODULE)[0]
        except ImportError as error:
            self.log.error("cannot work", reason=str(error))
            sys.exit(EXIT_MISTAKE)

    def _wait_for_slot(self, only: int | None) -> None:
        """Waits before the process opens or reads anything, since two processes must never do one slot's work."""
        environment, said = self.environment, ""
        while True:
            try:
                uids.claim(environment)
                prepare_folders(environment.run, self.name)
                spare = Spare(
                    environment.run, self.name, lambda: self._numbers(only), partial(privileges.uid_of, self.name),
                    self.log, urgent=self.name in PACKET_STAGES,
                    prepared=self.name in PACKET_STAGES - {WORKER},
                )  # fmt: skip
                self.slot, self.inherited = spare.wait()
                self.presence = spare.presence
            except (OSError, UidsRefused) as error:
                reason = why(error) if isinstance(error, OSError) else str(error)
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
            return range(worker_count.wanted(self.environment.run, self.environment.workers))
        return (0,)

    def set_fault(self, fault: str) -> None:
        """Notes what keeps the stage from its work, empty for nothing. Logs each change."""
        if fault != self.fault:
            self.fault = fault
            if fault:
                self.log.error("cannot work", reason=fault)
            else:
                self.log.info("works again")

    def drop(self, bad: BadControl | BadTrain) -> None:
        """Counts an unreadable message. Logs each foreign version once; an upgrade leaves two side by side."""
        self.counters.note(bad.reason, bad.packets)
        of, ours = ("control", questions.VERSION) if isinstance(bad, BadControl) else ("packets", trains.VERSION)
        if bad.version is None or (of, bad.version) in self._versions_met or len(self._versions_met) >= MAX_VERSIONS:
            return
        self._versions_met.add((of, bad.version))
        mend = f"run `stagewire restart all -i {self.environment.interface}`"
        self.log.warning("drops messages of another version", of=of, theirs=bad.version, ours=ours, mend=mend)

    def refuse(self, pipe: Pipe, theirs: Credentials) -> None:
        """Counts a connection or a message that the kernel's word refuses, and logs the first of each uid."""
        self.counters["speaker_refused"] += 1
        if (str(pipe), theirs.uid) not in self._refused and len(self._refused) < MAX_REFUSED:
            self._refused.add((str(pipe), theirs.uid))
            self.log.warning(
                "refuses a process that may not speak here", pipe=str(pipe), uid=theirs.uid, pid=theirs.pid
            )

    def hello(self) -> Hello:
        return Hello(self.name, self.number, self.generation, os.getpid())

    def run(self, set_up: Callable[[], None], *capabilities: int) -> int:
        """Becomes the stage's own uid, calls `set_up`, gives up all else, turns the loop. Returns the exit status."""
        try:
            # From here on each socket is for the services' group alone.
            os.umask(0o117)
            try:
                if self.name == WORKER and not uids.are_shared():
                    self.pipes.open(self.name, self.number)
                    self.bequest = self._bequest()
                    privileges.give_socket(self.bequest.path, self.name, self.number)
                    privileges.drop(self.name, *capabilities, number=self.number)
                else:
                    privileges.drop(self.name, *capabilities)
                    self.bequest = self._bequest()
                if self.name == "key":
                    self.bell = Bell(self.environment.run / self.name)
                    self.bequest.leave({handed.WAITS: self.bell.descriptor}, handed.WAITS)
                    # Any stage may ring for nothing: that must not look as if this process were stopped.
                    self.loop.add(self.bell.fileno(), self._silence)
                self._give_up(lambda: sandbox.fence_in(self.name, self.environment))
                set_up()
                self._push_counters()
                self.pipes.close_inherited()
                self.pipes.leave_to(lambda left: self.bequest.leave(left, "pipes"))
            except (OSError, zmq.ZMQError) as error:  # the run folder is full, or was wiped
                self.log.error("cannot work", reason=why(error))
                return EXIT_MISTAKE
            self._give_up(lambda: sandbox.lock(self.name))
            Alarm(self.loop, self._settle).set(boot_time() + SETTLED)
            if self._keeper is not None:
                self.loop.add(self._keeper, self._on_keepers_end)
            denied = {"without": ", ".join(self._denied)} if self._denied else {}
            self.log.info("started", pid=os.getpid(), generation=self.generation, **denied)
            self.loop.run()
        except KeyboardInterrupt:
            pass
        except SlotLost as lost:
            self.log.error("the run folder was wiped; starts anew", reason=str(lost))
            return 1
        except Exception:
            self.log.exception("ends because of a bug; report it with this line")
            return 1
        finally:
            self.pipes.context.destroy(linger=LINGER_MS)
            self._make_room()
        self.log.info("stopped")
        return 0

    def _sleep(self, until: float) -> None:
        self._silence(until)  # first: what comes from here on must find a stopped process
        self.slot.sleep(until)

    def _silence(self, _now: float) -> None:
        if self.bell is not None:
            self.bell.silence()

    def _bequest(self) -> Bequest:
        return Bequest(self.loop, self.environment.run / self.name, self.number)

    def _give_up(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            self._denied.append(why(error))

    def _on_keepers_end(self, _now: float) -> None:
        """Ends the stage: without the keeper nothing can give the device again, and supervisord may be dead as well."""
        self.log.error("ends, as the keeper has died; start the interface anew")
        self.loop.stop()

    def _make_room(self) -> None:
        """Lets the spare begin before the interpreter has ended."""
        self.at_end()
        self.slot.release()
        fd_release.dismiss()
        with suppress(AttributeError):  # `run` has failed before it
            self.bequest.close()

    def _settle(self, now: float) -> None:
        """Gives up the claim to go first: all that waited during the take-over has been served."""
        if self.name in PACKET_STAGES:
            privileges.stop_going_first()
            self.loop.gathering.begin(privileges.let_trains_gather, now)
        fd_release.appoint()
        WhileResting(self.loop)

    def _push_counters(self) -> None:
        self._telemetry = self.pipes.connect(TELEMETRY)

        def push(_now: float) -> None:
            names = tuple(self.counters)
            message = Counters(
                self.name,
                self.number,
                self.generation,
                os.getpid(),
                names,
                tuple(self.counters[name] for name in names),
                self.counters.take_changed(),
                time.process_time(),
                tuple(map(_queue, self.pipes.senders.items())),
                tuple(WaitReport(pipe, tuple(each.counts), each.total) for pipe, each in self.pipes.waits.items()),
                self.captures(),
            )
            self.tell_status(message)

        if self.environment.telemetry:
            self.loop.add_paced(1.0, push)

    def tell_status(self, message: Counters | GatewayReport | LastReport) -> bool:
        """Sends status-service a message. Returns whether it could: a message is lost if status-service is away."""
        try:
            self._telemetry.send(messages.TO_STATUS.pack(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True


def _phase(interface: str) -> float:
    """Spreads the moments at which idle interfaces act: a host may have many."""
    return zlib.crc32(interface.encode()) / 2**32 * IDLE_INTERVAL


def _queue(named: tuple[str, Sender]) -> QueueReport:
    pipe, sender = named
    held, sender.most_held = sender.most_held, 0
    return QueueReport(pipe, sender.waiting, held)


def why(error: OSError | zmq.ZMQError) -> str:
    """Returns an error's text, without its number."""
    name = getattr(error, "filename", None)
    return f"{name}: {error.strerror}" if name else str(error)


def _read_environment() -> Environment:
    try:
        return Environment.read(os.environ)
    except EnvironmentMistake as mistake:
        print(f"stagewire: {mistake}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)
