"""Whoever may write to a pipe may write anything to it: the stage behind it counts that, and serves the others.

The services run as processes, the test has their neighbours' places. Every run has a seed, which it prints.
"""

import dataclasses
import os
import random
import socket
import typing
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.services.house import PLACE, House
from tests.services.surroundings import PATIENCE, Program, Surroundings, surroundings

from lab.wait import until
from stagewire.config import public_key
from stagewire.control import messages, query
from stagewire.control.codec import Codec
from stagewire.control.messages import FROM_STAGE, TO_STATUS, FromKey, FromStage, Hello
from stagewire.control.questions import StatusQuery
from stagewire.control.status import CountersStatus, GatewayStatus
from stagewire.control.telemetry import Counters
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import CONTROL, MAX_CONTROL, STATUS_QUERY, TELEMETRY
from stagewire.proto.endpoint import LENGTH

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs services as users of their own")

SEED = random.randrange(1 << 32)
ROUNDS = 1500


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with surroundings("fuzz") as around:
        made = House(around)
        made.shake_hands()
        yield made


class Nonsense:
    """Bytes and messages that nobody in his right mind would send."""

    def __init__(self, name: str) -> None:
        print(f"seed {SEED} {name}")
        self.random = random.Random(f"{SEED} {name}")

    def value(self, expected: Any, known: list[bytes]) -> Any:
        """Of the right type, and otherwise anything."""
        draw = self.random
        if expected is int:
            return draw.choice([0, 1, -1, 255, 256, 2**32 - 1, 2**32, 2**63, 2**64 - 1, -(2**63), draw.getrandbits(40)])
        if expected is float:
            return draw.choice([0.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"), 180.0])
        if expected is str:
            return draw.choice(["", "tun", "device", "conn", "key", "nonsense", "\0", "x" * 5000, "ü", "%s%n", "\n"])
        if expected is bytes:
            return draw.choice([b"", bytes(32), PLACE, bytes(44), b"\xff" * LENGTH, draw.randbytes(32), *known])
        if expected is bool:
            return draw.random() < 0.5
        if dataclasses.is_dataclass(expected):
            assert isinstance(expected, type)
            return self.message(expected, known)
        element, _ = typing.get_args(expected)
        return tuple(self.value(element, known) for _ in range(draw.choice([0, 1, 3, 40])))

    def message(self, kind: type, known: list[bytes]) -> Any:
        """One of a kind."""
        hints = typing.get_type_hints(kind)
        return kind(*[self.value(hints[field.name], known) for field in dataclasses.fields(kind)])

    def frame(self, valid: bytes) -> bytes:
        """Like a valid one, or not at all."""
        draw = self.random
        match draw.randrange(4):
            case 0:
                return draw.randbytes(draw.choice([0, 1, 11, 12, 60, 2000]))
            case 1:
                return valid[: draw.randrange(len(valid) + 1)]
            case 2:
                return valid + draw.randbytes(draw.randrange(1, 100))
        damaged = bytearray(valid)
        for _ in range(draw.randrange(1, 8)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        return bytes(damaged)


def unharmed(*programs: Program) -> None:
    for program in programs:
        assert program.alive(), program.log[-3000:]
        assert "Traceback" not in program.log


def flood(line: "zmq.Socket[bytes]", data: bytes) -> None:
    """Sends when there is room."""
    assert line.poll(PATIENCE * 1000, zmq.POLLOUT), "nothing is taken any more"
    line.send(data)
    while line.getsockopt(zmq.TYPE) == zmq.DEALER and line.poll(0):
        line.recv()


def test_damaged_trains_and_handshakes(house: House) -> None:
    nonsense = Nonsense("trains")
    valid = {
        house.plain_out: trains.pack_plain([bytes(range(200)), b"", bytes(1400)], boot_time()),
        house.cipher_in: trains.pack_cipher([(PLACE, [bytes(1452)] * 3 + [bytes(60)])], boot_time()),
        house.handshake_in: trains.pack_handshake(PLACE, house.far.initiation(), boot_time()),
    }
    for number in range(ROUNDS):
        for pipe, frame in valid.items():
            flood(pipe, nonsense.frame(frame))
        if number % 100 == 0:
            drain(house)
    drain(house)
    house.works()
    house.shake_hands()
    house.works()
    unharmed(house.key, house.device)


def drain(house: House) -> None:
    for pipe in (house.cipher, house.plain, house.handshakes):
        while pipe.poll(0):
            pipe.recv()


def test_every_message_that_a_stage_may_say_with_anything_in_it(house: House) -> None:
    """By compromised stages, about a peer that is there and others that aren't."""
    nonsense = Nonsense("control")
    known = [public_key(house.far.private), public_key(house.private)]
    lines = []
    # Not as the worker that is there.
    for stage, number in (("tun", 0), ("device", 1), ("device", 63), ("conn", 0), ("status", 0)):
        line = house.around.connect_as(CONTROL, stage, number)
        for claimed in (number, 0, 64, 2**40, -3):
            flood(line, FROM_STAGE.pack(Hello(stage, claimed, nonsense.random.getrandbits(60), 4)))
        lines.append(line)
    kinds = [kind for kind in FromStage.__args__ if kind is not Hello]
    for _ in range(ROUNDS):
        kind = nonsense.random.choice([*kinds, Hello])
        message = hello(nonsense) if kind is Hello else nonsense.message(kind, known)
        flood(nonsense.random.choice(lines), FROM_STAGE.pack(message))
    status(house)
    unharmed(house.key, house.device)
    drain(house)


def hello(nonsense: Nonsense) -> Hello:
    """A stage that isn't a worker, or one that isn't there, announces sessions."""
    number = nonsense.random.choice([9, 1, 63])
    sessions = nonsense.random.choice([5, 0, -1, 1 << 16, 2**40])
    return Hello(
        nonsense.random.choice(["tun", "nonsense", "device"]), number, nonsense.random.getrandbits(60), 1, sessions
    )


def status(house: House) -> GatewayStatus:
    answer = until(lambda: query.key_service(house.environment), PATIENCE, f"an answer: {house.key.log[-2000:]}")
    assert answer is not None
    return answer


def test_damaged_control_messages(house: House) -> None:
    nonsense = Nonsense("damage")
    line = house.around.connect(CONTROL)
    valid = FROM_STAGE.pack(Hello("conn", 0, 5, 6))
    for _ in range(ROUNDS):
        flood(line, nonsense.frame(valid))
    for bomb in (b"\x91" * 500_000, b"\xdd\xff\xff\xff\xff" + bytes(1000), bytes(MAX_CONTROL)):
        flood(line, bomb)
    begun = boot_time()
    assert status(house).interface == "wg0"
    assert boot_time() - begun < 5
    unharmed(house.key)


def test_too_much_in_one_message_costs_its_sender_the_connection(house: House) -> None:
    line = house.around.connect(CONTROL)
    flood(line, bytes(MAX_CONTROL + 1))
    assert status(house).interface == "wg0"
    unharmed(house.key)


def test_idle_and_babbling_strangers_at_every_socket(house: House) -> None:
    run = house.around.pipes.run
    paths = [run / name for name in ("key/control", "key/handshake-in", "device/plain-out.0", "device/cipher-in.0")]
    with ExitStack() as strangers:
        for babble in (b"", b"\xff" + bytes(8) + b"\x7f", bytes(range(64))):
            for _ in range(50):
                for path in paths:
                    strangers.enter_context(stranger(path, socket.SOCK_STREAM, babble))
            strangers.enter_context(stranger(run / "key/sessions", socket.SOCK_SEQPACKET, babble))
        house.works()
        house.shake_hands()
        house.works()
    unharmed(house.key, house.device)


def stranger(path: Path, kind: int, babble: bytes) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    made.connect(str(path))
    if babble:
        with suppress(OSError):  # cut off already
            made.send(babble)
    return made


class StatusHouse:
    """A real status-service."""

    def __init__(self, around: Surroundings) -> None:
        self.program = around.start("status-service")
        self.telemetry = around.connect(TELEMETRY)
        self.question = around.connect(STATUS_QUERY)

    def ask(self, data: bytes) -> CountersStatus:
        self.question.send(data)
        assert self.question.poll(PATIENCE * 1000)
        reply = TO_STATUS.unpack_untrusted(self.question.recv())
        assert isinstance(reply, CountersStatus)
        return reply


def test_telemetry_and_questions_of_any_kind() -> None:
    nonsense = Nonsense("telemetry")
    with surroundings("telemetry") as around:
        house = StatusHouse(around)
        for number in range(ROUNDS):
            message = nonsense.message(Counters, [])
            if number % 3:
                names = tuple(f"name-{index}" for index in range(len(message.values)))
                message = dataclasses.replace(message, names=names)
            flood(house.telemetry, TO_STATUS.pack(message))
            flood(house.telemetry, nonsense.frame(TO_STATUS.pack(message)))
        for _ in range(100):
            house.ask(nonsense.frame(TO_STATUS.pack(StatusQuery())))
        assert house.ask(TO_STATUS.pack(StatusQuery())).services is not None
        unharmed(house.program)


def test_every_codec_knows_its_own_messages_only() -> None:
    """What the doors above let in is what the tables in `control` say."""
    sets: list[tuple[Codec[Any], tuple[type, ...]]] = [
        (FROM_STAGE, FromStage.__args__),
        (messages.FROM_KEY, FromKey.__args__),
    ]
    for codec, kinds in sets:
        assert set(codec._kinds) == {kind.__name__ for kind in kinds}
