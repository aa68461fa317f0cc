"""A stage's line to key-service: what takes long on it leaves packets as much time, and a new one is greeted at once."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from stagewire.control import messages
from stagewire.control.messages import Applied, FromKey, FromStage, Heartbeat, Hello, RoutesSet, Welcome
from stagewire.loop import Loop, boot_time
from stagewire.pipe.names import CONTROL
from stagewire.pipe.pipes import Pipes, prepare_folders
from stagewire.process.control_line import JUST_WELCOMED, ControlLine

MESSAGES = 20


class Slow:
    """Takes a while for each message, as when 128 prefixes are in it."""

    def __init__(self) -> None:
        self.heard = 0

    def hello(self) -> list[messages.Hello | messages.LiveSessions]:
        return [messages.Hello("tun", 0, 1, 1)]

    def on_control(self, _message: FromKey, now: float) -> None:
        self.heard += 1
        while boot_time() < now + ControlLine.BUDGET:
            pass


@pytest.fixture
def pipes(tmp_path: Path) -> Iterator[Pipes]:
    prepare_folders(tmp_path, "key")
    made = Pipes(zmq.Context(), tmp_path)
    yield made
    made.context.destroy(linger=0)


def stage_of(pipes: Pipes, loop: Loop, handler: Slow) -> Any:
    return SimpleNamespace(
        name="tun",
        number=0,
        generation=1,
        pipes=pipes,
        loop=loop,
        counters=Counter[str](),
        hello=handler.hello,
        fault="",
        bequest=SimpleNamespace(spares=0),
    )


def test_packets_have_as_much_time_as_what_key_service_says_takes(pipes: Pipes) -> None:
    loop, slow = Loop(), Slow()
    key = pipes.bind(CONTROL)
    stage = stage_of(pipes, loop, slow)
    ControlLine(stage, slow)
    while not key.poll(0):
        loop._turn()
    identity, _ = key.recv_multipart()
    packets = pipes.context.socket(zmq.PULL)
    packets.bind("inproc://packets")
    feed = pipes.context.socket(zmq.PUSH)
    feed.connect("inproc://packets")
    feed.send(b"always something to read")
    visits = 0

    def visit(_now: float) -> None:
        nonlocal visits
        visits += 1

    loop.add(packets, visit)
    for _ in range(MESSAGES):
        key.send_multipart([identity, messages.FROM_KEY.pack(RoutesSet(0, ()))])
    begun = boot_time()
    while slow.heard < MESSAGES:
        loop._turn()
    # A turn with nothing but a visit takes some hundredths of a millisecond.
    assert boot_time() - begun > 1.5 * MESSAGES * ControlLine.BUDGET
    assert visits > 3 * MESSAGES
    pipes.context.destroy(linger=0)


def test_a_new_key_service_is_greeted_at_once_and_only_once(pipes: Pipes) -> None:
    loop, handler = Loop(), Slow()
    key = pipes.bind(CONTROL)
    stage = stage_of(pipes, loop, handler)
    line = ControlLine(stage, handler)

    def hear() -> bytes:
        while not key.poll(0):
            loop._turn()
        identity, said = key.recv_multipart()
        if not said:  # the greeting of a connection
            return hear()
        heard.append(messages.FROM_STAGE.unpack_untrusted(said))
        return identity

    heard: list[FromStage] = []
    identity = hear()
    key.send_multipart([identity, messages.FROM_KEY.pack(Welcome(1, 1))])
    while not handler.heard:
        loop._turn()
    line.say(Applied(1))  # what was said before it may be hellos
    while not isinstance(heard[-1], Applied):
        hear()
    line.introduce(boot_time())  # the line for sessions stands, to the same one
    hear()
    line._welcomed_at -= JUST_WELCOMED
    line.introduce(boot_time())
    hear()
    assert [type(each).__name__ for each in heard[-3:]] == ["Applied", "Heartbeat", "Hello"]
    pipes.context.destroy(linger=0)


def test_news_are_told_at_once_and_heartbeats_seldom(pipes: Pipes) -> None:
    loop, handler = Loop(), Slow()
    key = pipes.bind(CONTROL)
    stage = stage_of(pipes, loop, handler)
    ControlLine(stage, handler)
    said: list[FromStage] = []

    def hear(beats: int) -> None:
        while sum(isinstance(each, Heartbeat) for each in said) < beats:
            loop._turn()
            while key.poll(0):
                identity, data = key.recv_multipart()
                said.extend([messages.FROM_STAGE.unpack_untrusted(data)] if data else [])
                if said and isinstance(said[-1], Hello):
                    key.send_multipart([identity, messages.FROM_KEY.pack(Welcome(1, 1))])

    hear(beats=1)
    begun = boot_time()
    stage.bequest.spares = 1
    hear(beats=2)
    stage.fault = "no device"
    hear(beats=3)
    assert boot_time() < begun + messages.HEARTBEAT_INTERVAL
    assert [each for each in said if isinstance(each, Heartbeat)][1:] == [
        Heartbeat(1, "", 1),
        Heartbeat(1, "no device", 1),
    ]
    pipes.context.destroy(linger=0)


def test_a_key_service_is_greeted_before_anything_is_said(pipes: Pipes) -> None:
    key = pipes.bind(CONTROL)
    with pipes.connect(CONTROL, announced=True) as line:
        while not key.poll(0):  # libzmq attaches a new connection in a call of ours, as a loop makes it
            line.get(zmq.EVENTS)
        assert key.recv_multipart()[1] == b""
    pipes.context.destroy(linger=0)
