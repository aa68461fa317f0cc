"""Serves the control line: knows the processes of all other stages, and sends messages to each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import zmq

from stagewire.control import messages
from stagewire.control.chains import ChainJudged, Nested
from stagewire.control.codec import BadControl
from stagewire.control.confirm import Cleared
from stagewire.control.messages import (
    COMMAND,
    MAX_SESSIONS,
    Applied,
    Beat,
    FromCommand,
    FromKey,
    FromStage,
    Heartbeat,
    Hello,
    HostState,
    LiveSession,
    LiveSessions,
    Resolved,
    allowed,
)
from stagewire.control.questions import HandshakeNow, Scale, StatusQuery
from stagewire.control.speakers import Speaker, Speakers
from stagewire.deadlines import IDLE_INTERVAL
from stagewire.limits import MAX_WORKERS
from stagewire.linux.uids import Place
from stagewire.loop import boot_time
from stagewire.pipe.names import CONTROL
from stagewire.process.stage import Stage
from stagewire.proto import prefix
from stagewire.proto.endpoint import unpack_untrusted
from stagewire.proto.events import EndpointMoved, SessionConfirmed
from stagewire.stages import WORKER

_HELLO_AGAIN = 1.0
"""s in which a repeated Hello gets no other answer: a stage repeats Hello until Welcome arrives."""
_MAX_KERNEL: Final = 300
"""Characters of what a worker says about its kernel."""
LATE: Final = IDLE_INTERVAL + 0.5
"""s without a heartbeat after which even an idle member is late."""
MAX_MARK: Final = 0xFFFFFFFF
# As plain numbers: ZeroMQ's own are enums.
_DONTWAIT: Final = int(zmq.DONTWAIT)
_MORE: Final = int(zmq.RCVMORE)


@dataclass(slots=True)
class Member:
    """Describes one process of another stage."""

    identity: bytes
    stage: str
    number: int
    generation: int
    pid: int
    heard: float
    welcomed: float
    fault: str = ""
    spares: int = 0
    kernel: str = ""
    sessions: list[LiveSession] = field(default_factory=list)
    """The sessions that it listed behind its hello."""
    applied: int = 0
    """The version of its snapshot in force; 0 for none."""
    speaker: Speaker | None = None
    """The process by the kernel's word."""
    behind: bool = False
    """A message to it was lost: it gets only Beat until its next hello."""


class Hub:
    """Reads `control`, keeps the members, and hands each message on with its member."""

    MAX_PER_TURN = 128

    def __init__(
        self,
        stage: Stage,
        generation_of: Callable[[int], int | None],
    ) -> None:
        """Binds `control`. `generation_of` tells a worker's real generation, by its line for sessions."""
        self._stage = stage
        self._on_hello: Callable[[Member], None]
        self._on_message: Callable[[Member, FromStage, float], None]
        self._on_query: Callable[[bytes, FromCommand], None]
        self._generation_of = generation_of
        self._members: dict[bytes, Member] = {}
        self._arriving: dict[bytes, tuple[Member, int]] = {}
        """Workers whose hello is read, and how many sessions they list in all."""
        self._speakers = Speakers()
        self._socket, _ = stage.pipes.guarded(stage.loop, CONTROL)

    def serve(
        self,
        on_hello: Callable[[Member], None],
        on_message: Callable[[Member, FromStage, float], None],
        on_query: Callable[[bytes, FromCommand], None],
    ) -> None:
        """Reads from now on, and hands allowed and possible messages on. A heartbeat without news is no work."""
        self._on_hello = on_hello
        self._on_message = on_message
        self._on_query = on_query
        self._stage.loop.add(self._socket, self._read, routine=True)

    def send(self, identity: bytes, message: FromKey) -> bool:
        """Sends a message to a process. False tells that it is gone: its successor's snapshot replaces the message.

        A full pipe loses a message. The member then gets only Beat until its next hello: a SnapshotEnd would make it drop
        whatever the lost message named.
        """
        member = self._members.get(identity)
        if member is not None and member.behind and not isinstance(message, Beat):
            return True
        try:
            self._socket.send_multipart([identity, messages.FROM_KEY.pack(message)], zmq.DONTWAIT)
        except zmq.Again:
            self._stage.counters["control_full"] += 1
            if member is not None:
                member.behind = True
        except zmq.ZMQError:
            return False
        finally:
            self._stage.loop.sent(self._socket)
        return True

    def member(self, stage: str, number: int = 0) -> Member | None:
        """Returns the newest process of a stage; of a worker, the process at its line for sessions."""
        found = [member for member in self._members.values() if member.stage == stage and member.number == number]
        if stage == "device" and (generation := self._generation_of(number)) is not None:
            found = [member for member in found if member.generation == generation]
        return max(found, key=lambda member: member.welcomed, default=None)

    def numbers(self, stage: str) -> list[int]:
        """Returns the numbers of all processes of a stage that said hello."""
        return sorted({member.number for member in self._members.values() if member.stage == stage})

    def tell(self, stage: str, number: int, message: FromKey) -> bool:
        """Sends to the newest process of a stage; tells whether there is any."""
        member = self.member(stage, number)
        return member is not None and self.send(member.identity, message)

    def members(self, now: float) -> Iterator[Member]:
        """Returns the members that are not silent."""
        return (member for member in self._members.values() if self._lives(member, now))

    def awaits_heartbeat(self, now: float) -> bool:
        """Tells whether the heartbeat of a member is late, so that this soon has consequences."""
        return any(now - member.heard > LATE for member in self.members(now))

    def _lives(self, member: Member, now: float) -> bool:
        """Tells whether a member is there. An idle member is silent for long, but holds its slot."""
        silent = now - member.heard
        if silent < messages.SILENT_AFTER or silent >= messages.SILENT_AFTER + IDLE_INTERVAL:
            return silent < messages.SILENT_AFTER
        return self._stage.pipes.contest(Place(member.stage, member.number), member.pid) is True

    def forget_silent(self, now: float) -> None:
        """Forgets members after a long silence."""
        for identity, member in list(self._members.items()):
            if now - member.heard > 10 * messages.SILENT_AFTER:
                del self._members[identity]
        for identity, (member, _) in list(self._arriving.items()):
            if now - member.heard > messages.SILENT_AFTER:
                del self._arriving[identity]

    def _read(self, now: float) -> None:
        # Hot. `recv_multipart` would ask for each part twice whether more parts follow.
        receive, ask = self._socket.recv, self._socket.get
        for _ in range(self.MAX_PER_TURN):
            try:
                frame = receive(_DONTWAIT, copy=False)
            except zmq.Again:
                return
            identity = frame.bytes
            data = receive(_DONTWAIT)  # a ROUTER puts the sender's name before a whole message
            while ask(_MORE):
                data = receive(_DONTWAIT)
            if not data:
                member = self._members.get(identity)
                if member is None or member.speaker != self._speakers.of(frame):  # a stage has just connected
                    self.send(identity, Beat(0))
                    continue
            try:
                message = messages.FROM_STAGE.unpack_untrusted(data)
            except BadControl as bad:
                self._stage.drop(bad)
                if bad.version is not None:
                    # The version on this Beat tells a waiting command why it gets no answer.
                    self.send(identity, Beat(0))
                continue
            self._dispatch(identity, self._speakers.of(frame), message, now)

    def _dispatch(self, identity: bytes, speaker: Speaker, message: FromStage, now: float) -> None:
        member = self._members.get(identity)
        if member is not None and member.speaker is not speaker and member.speaker != speaker:
            del self._members[identity]  # the name was another's, and its connection has ended
            member = None
        if isinstance(message, LiveSessions) and identity in self._arriving:
            self._on_sessions(identity, speaker, message, now)
            return
        party = message.stage if isinstance(message, Hello) else member.stage if member is not None else COMMAND
        is_allowed = type(message) in allowed(party).to_key
        if not _makes_sense(message) or (not is_allowed and (member is not None or isinstance(message, Hello))):
            self._stage.counters["control_unexpected"] += 1
        elif isinstance(message, Hello):
            self._on_a_hello(identity, speaker, member, message, now)
        elif party == COMMAND and is_allowed and not speaker.is_command:
            self._stage.refuse(CONTROL, speaker.credentials)
        elif isinstance(message, (StatusQuery, Scale, HandshakeNow)):  # hot: a union would be made anew each time
            self._on_query(identity, message)
        elif member is None:  # makes the stage say hello
            self.send(identity, Beat(0))
        else:
            self._take(member, message, now)

    def _on_a_hello(self, identity: bytes, speaker: Speaker, member: Member | None, message: Hello, now: float) -> None:
        """Takes a process up that may speak for its place, and holds the place's slot."""
        pid = speaker.credentials.pid or message.pid
        if not speaker.may_be(message.stage, message.number) or (
            member is None and self._stage.pipes.contest(Place(message.stage, message.number), pid) is False
        ):
            self._stage.refuse(CONTROL, speaker.credentials)
        elif member is None or now - member.welcomed > _HELLO_AGAIN:
            member = Member(identity, message.stage, message.number, message.generation, pid, now, now)
            member.speaker, member.kernel = speaker, message.kernel
            self._arriving[identity] = member, message.sessions
            self._welcome_if_whole(identity)

    def _on_sessions(self, identity: bytes, speaker: Speaker, message: LiveSessions, now: float) -> None:
        """Notes what a worker lists behind its hello."""
        member, expected = self._arriving[identity]
        if (
            member.speaker != speaker
            or not _makes_sense(message)
            or len(member.sessions) + len(message.sessions) > expected
        ):
            del self._arriving[identity]
            self._stage.counters["control_unexpected"] += 1
            return
        member.heard = member.welcomed = now
        member.sessions += message.sessions
        self._welcome_if_whole(identity)

    def _welcome_if_whole(self, identity: bytes) -> None:
        member, expected = self._arriving[identity]
        if len(member.sessions) == expected:
            del self._arriving[identity]
            self._members[identity] = member
            self._on_hello(member)

    def _take(self, member: Member, message: FromStage, now: float) -> None:
        member.heard = now
        if isinstance(message, Heartbeat):
            if (member.fault, member.spares) != (message.fault, message.spares):
                member.fault, member.spares = message.fault, message.spares
                self._stage.loop.worked += 1
            if member.behind:  # it says hello again, and gets a new snapshot
                self.send(member.identity, Beat(0))
            return
        self._stage.loop.worked += 1
        if isinstance(message, Applied):
            member.applied = message.version
        self._on_message(member, message, now)


def _makes_sense(message: FromStage) -> bool:
    """Tells whether a message's values are possible. The codec has checked their types."""
    match message:
        case Hello(number=number, sessions=sessions, stage=stage, kernel=kernel):
            most = MAX_SESSIONS if stage == WORKER else 0
            return 0 <= number < MAX_WORKERS and 0 <= sessions <= most and len(kernel) <= _MAX_KERNEL
        case LiveSessions(sessions=listed):
            times = [at for session in listed for at in (session.created, session.handshake)]
            return _have_passed(*times) and all(_is_place(session.endpoint) for session in listed if session.endpoint)
        case SessionConfirmed(at=at):
            return _have_passed(at)
        case Cleared(worker=worker):
            return 0 <= worker < MAX_WORKERS
        case HostState(mark=mark, unheld=unheld):
            return 0 <= mark <= MAX_MARK and all(map(_is_prefix, filter(None, unheld)))
        case EndpointMoved(endpoint=endpoint) | Nested(endpoint=endpoint) | ChainJudged(endpoint=endpoint):
            return _is_place(endpoint)
        case Resolved(places=places, error=error):
            return bool(places) != bool(error) and all(map(_is_place, places))
    return True


def _have_passed(*times: float) -> bool:
    """Tells whether times (s since the boot) are no later than now. Infinite times and NaN are not."""
    now = boot_time()
    return all(0.0 <= at <= now for at in times)


def _is_prefix(packed: bytes) -> bool:
    try:
        prefix.unpack_untrusted(packed)
    except ValueError:
        return False
    return True


def _is_place(packed: bytes) -> bool:
    try:
        unpack_untrusted(packed)
    except ValueError:
        return False
    return True
