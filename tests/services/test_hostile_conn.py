"""I6: conn-service is the attacker's, and asks key-service for more than its part. The test has conn-service's place."""

import base64
import os
import random
import statistics
from collections.abc import Iterator
from contextlib import suppress

import pytest
import zmq
from tests.attack.marks import Figure
from tests.control.spoken import TO_KEY, sensible
from tests.services.house import PLACE, House
from tests.services.surroundings import PATIENCE, surroundings

from lab.wait import until
from stagewire.config import public_key
from stagewire.control import query
from stagewire.control.messages import ALLOWED, FROM_KEY, FROM_STAGE, Hello
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.pipe.names import CONTROL
from stagewire.proto.cookie import MacSealer

pytestmark = [
    pytest.mark.attack("I6"),
    pytest.mark.skipif(os.geteuid() != 0, reason="runs services as users of their own"),
]

STORM = 20_000
ANSWERED = 0.5
"""s; the command line waits longer."""


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with surroundings("i6") as around:
        made = House(around)
        made.shake_hands()
        yield made


def forms(key: bytes) -> tuple[bytes, ...]:
    return key, key.hex().encode(), base64.b64encode(key)


def test_no_question_of_conn_service_is_answered_with_a_key_or_a_session(house: House) -> None:
    """It says whatever any party may say, thrice, in any order."""
    line = house.around.connect_as(CONTROL, "conn")
    line.send(FROM_STAGE.pack(Hello("conn", 0, 77, os.getpid())))
    heard: list[bytes] = []

    def listen() -> bool:
        while line.poll(20):
            heard.append(line.recv())
        return bool(heard)

    until(listen, PATIENCE, "conn-service's own settings")
    kinds = [kind for kind in TO_KEY if kind is not Hello] * 3
    random.Random(6).shuffle(kinds)
    for kind in kinds:
        line.send(FROM_STAGE.pack(sensible(kind)))
    listen()
    said = b"".join(heard)
    assert not [form for form in forms(house.private) if form in said]
    kinds_heard = {type(FROM_KEY.unpack_untrusted(each)) for each in heard}
    assert kinds_heard <= ALLOWED["conn"].from_key
    house.works()


def test_initiations_past_the_gate_leave_key_service_time_for_others(house: House, figure: Figure) -> None:
    """Each has a good mac1 over garbage, and costs key-service an X25519."""
    luck, sealer = random.Random(6), MacSealer(public_key(house.private))
    made = [sealer.seal(b"\1\0\0\0" + luck.randbytes(112), boot_time()) for _ in range(200)]
    sent, waits = 0, list[float]()
    while sent < STORM:
        with suppress(zmq.Again):
            for _ in range(64):
                message = trains.pack_handshake(PLACE, made[sent % len(made)], boot_time())
                house.handshake_in.send(message, zmq.DONTWAIT)
                sent += 1
        begun = boot_time()
        assert query.key_service(house.environment) is not None
        waits.append(boot_time() - begun)
    figure("median wait of a command", statistics.median(waits), "s", most=ANSWERED)
    house.shake_hands()
    house.works()
