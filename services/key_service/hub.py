"""The control line's hub: who is there, how they are, and a way to speak to each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import zmq

from stagewire.environment import MAX_WORKERS
from stagewire.ipc import control, endpoints
from stagewire.ipc.codec import BadControl
from stagewire.ipc.control import (
    Applied,
    Beat,
    FromKey,
    FromStage,
    Heartbeat,
    Hello,
    LiveSession,
    Resolved,
    Scale,
    StatusQuery,
)
from stagewire.ipc.stage import Stage
from stagewire.proto.endpoint import unpack_untrusted
from stagewire.proto.events import EndpointMoved

_HELLO_AGAIN = 1.0
"""s; a stage repeats its Hello until it hears a Welcome, and one answer is enough."""


_STAGES = ("tun", "device", "conn", "status")
_QUERIES: Final = (StatusQuery, Scale)
# As plain numbers: ZeroMQ's own are enums.
_DONTWAIT: Final = int(zmq.DONTWAIT)
_MORE: Final = int(zmq.RCVMORE)


@dataclass(slots=True)
class Member:
    """One process of another stage."""

    identity: bytes
    stage: str
    number: int
    generation: int
    pid: int
    heard: float
    welcomed: float
    fault: str = ""
    spares: int = 0
    sessions: tuple[LiveSession, ...] = ()
    """Those it said it runs."""
    applied: int = 0
    """The version of the snapshot that it has in force; 0 for none."""
    behind: bool = False
    """Something could not be told to it: it is told nothing until it has said hello again."""


class Hub:
    """Reads `control`, keeps the members, hands messages on with the member that said them."""

    MAX_PER_TURN = 128

    def __init__(
        self,
        stage: Stage,
        on_hello: Callable[[Member], None],
        on_message: Callable[[Member, FromStage, float], None],
        on_query: Callable[[bytes, StatusQuery | Scale], None],
        generation_of: Callable[[int], int | None],
    ) -> None:
        """`generation_of` tells which life of a worker is really there: its line for sessions has been checked."""
        self._stage = stage
        self._on_hello = on_hello
        self._on_message = on_message
        self._on_query = on_query
        self._generation_of = generation_of
        self._members: dict[bytes, Member] = {}
        self._socket = stage.pipes.bind(zmq.ROUTER, endpoints.CONTROL)
        stage.loop.add(self._socket, self._read)

    def send(self, identity: bytes, message: FromKey) -> None:
        """Sends to one; what a stage that is away would have heard is in the snapshot it gets when it is back.

        One whose pipe is full, because it hangs or was told more than it can hold, needs a new snapshot as well. It
        gets the rest of none: what that didn't name it would drop.
        """
        member = self._members.get(identity)
        if member is not None and member.behind and not isinstance(message, Beat):
            return
        try:
            self._socket.send_multipart([identity, control.FROM_KEY.pack(message)], zmq.DONTWAIT)
        except zmq.Again:
            self._stage.counters["control_full"] += 1
            if member is not None:
                member.behind = True
        except zmq.ZMQError:
            pass  # it is gone
        finally:
            self._stage.loop.sent(self._socket)

    def member(self, stage: str, number: int = 0) -> Member | None:
        """The newest process of a stage; of a worker, the one that holds its line for sessions."""
        found = [member for member in self._members.values() if member.stage == stage and member.number == number]
        if stage == "device" and (generation := self._generation_of(number)) is not None:
            found = [member for member in found if member.generation == generation]
        return max(found, key=lambda member: member.welcomed, default=None)

    def numbers(self, stage: str) -> list[int]:
        """Of all processes of a stage that said hello."""
        return sorted({member.number for member in self._members.values() if member.stage == stage})

    def tell(self, stage: str, number: int, message: FromKey) -> None:
        """Sends to the newest process of a stage, if there is one."""
        member = self.member(stage, number)
        if member is not None:
            self.send(member.identity, message)

    def members(self, now: float) -> Iterator[Member]:
        """Those that live."""
        return (member for member in self._members.values() if now - member.heard < control.SILENT_AFTER)

    def forget_silent(self, now: float) -> None:
        """Forgets processes long gone."""
        for identity, member in list(self._members.items()):
            if now - member.heard > 10 * control.SILENT_AFTER:
                del self._members[identity]

    def _read(self, now: float) -> None:
        # Hot: 1.5 us for a message, where `recv_multipart` took 2.7, asking twice whether there is more.
        receive, ask = self._socket.recv, self._socket.get
        for _ in range(self.MAX_PER_TURN):
            try:
                identity = receive(_DONTWAIT)
            except zmq.Again:
                return
            data = receive(
                _DONTWAIT
            )  # a ROUTER puts the sender's name before a whole message, which has a part at least
            while ask(_MORE):
                data = receive(_DONTWAIT)
            try:
                message = control.FROM_STAGE.unpack_untrusted(data)
            except BadControl as bad:
                self._stage.drop(bad)
                if bad.version is not None:
                    # Our version on it says to a command that waits for an answer why it gets none.
                    self.send(identity, Beat(0))
                continue
            self._dispatch(identity, message, now)

    def _dispatch(self, identity: bytes, message: FromStage, now: float) -> None:
        member = self._members.get(identity)
        if not _makes_sense(message):
            self._stage.counters["control_unexpected"] += 1
            return
        if isinstance(message, _QUERIES):
            self._on_query(identity, message)
        elif isinstance(message, Hello):
            if member is None or now - member.welcomed > _HELLO_AGAIN:
                member = Member(identity, message.stage, message.number, message.generation, message.pid, now, now)
                member.sessions = message.sessions
                self._members[identity] = member
                self._on_hello(member)
        elif member is None:
            self.send(identity, Beat(0))
        else:
            member.heard = now
            if isinstance(message, Heartbeat):
                member.fault, member.spares = message.fault, message.spares
                # Nobody's generation: it says hello again, and is welcomed with all that is to be known.
                self.send(identity, Beat(0 if member.behind else self._stage.generation))
            else:
                if isinstance(message, Applied):
                    member.applied = message.version
                self._on_message(member, message, now)


def _makes_sense(message: FromStage) -> bool:
    """Whether a message can be meant; that its fields have the right types, the codec has seen to."""
    match message:
        case Hello(stage=stage, number=number, sessions=sessions):
            known = stage in _STAGES and 0 <= number < MAX_WORKERS
            return known and all(_is_place(session.endpoint) for session in sessions if session.endpoint)
        case EndpointMoved(endpoint=endpoint):
            return _is_place(endpoint)
        case Resolved(endpoint=endpoint, error=error):
            return bool(error) or _is_place(endpoint)
    return True


def _is_place(packed: bytes) -> bool:
    try:
        unpack_untrusted(packed)
    except ValueError:
        return False
    return True
