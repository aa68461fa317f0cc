"""device-service and key-service as processes, with the test in the place of the network and the OS."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.proto.offload.flows import Shape
from tests.services.house import OURS, PLACE, THEIRS, House, packet
from tests.services.surroundings import PATIENCE, surroundings

from lab.wait import until
from stagewire.ipc import trains
from stagewire.ipc.loop import boot_time
from stagewire.proto import constants as c
from stagewire.proto.offload.coalesce import Merged

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs services as users of their own")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with surroundings("house") as around:
        made = House(around)
        made.shake_hands()
        yield made


def test_packets_go_both_ways(house: House) -> None:
    train = [packet(OURS, THEIRS, bytes([number]) * number) for number in range(64)]
    assert house.outbound(*train) == train
    train = [packet(THEIRS, OURS, bytes([number]) * 32) for number in range(64)]
    assert house.inbound(*train) == train


def test_what_is_replayed_foreign_or_too_old_is_counted_and_goes_nowhere(house: House) -> None:
    before = dict(house.counters.wait_for())
    datagrams = house.far.sealed(*[packet(THEIRS, OURS, bytes(8)) for _ in range(5)])
    for _ in range(3):
        house.send(datagrams)
    assert len(house.received()) == 5

    house.send(house.far.sealed(packet("10.9.0.3", OURS), packet("192.0.2.1", OURS)))

    late = boot_time() - trains.MAX_AGE - 0.1
    house.plain_out.send(trains.pack_plain([packet(OURS, THEIRS)], late))
    house.cipher_in.send(trains.pack_cipher([(PLACE, house.far.sealed(packet(THEIRS, OURS)))], late))
    house.works()
    assert not house.plain.poll(0)

    expected = {"replayed": 10, "inner_source_not_allowed": 2, "train_too_old": 2}
    house.counters.wait_for(**{name: before.get(name, 0) + count for name, count in expected.items()})


def test_packets_larger_than_any_datagram_cost_a_worker_nothing(house: House) -> None:
    """tun-service, which knows that, passes none on; one that was broken into might."""
    huge = packet(OURS, THEIRS, bytes(c.MAX_INNER + 1 - 20))
    whole = Merged(*Shape(size=65460, payload=bytes(65490)).as_read(), 2)
    before = house.counters.wait_for()
    for train in ([huge], [huge, packet(OURS, THEIRS)], [whole]):
        house.plain_out.send(trains.pack_plain(train, boot_time()))
    house.works()
    expected = {"train_malformed": 2, "outbound_malformed": 2}
    house.counters.wait_for(**{name: before.get(name, 0) + count for name, count in expected.items()})


def test_a_response_leaves_only_when_the_worker_has_the_session(house: House) -> None:
    """Stopped, the worker can't say so; the response waits for it, and is then good at once."""
    os.kill(house.device.process.pid, 19)
    try:
        house.say(house.far.initiation())
        assert house.answer(0.3) == b""
    finally:
        os.kill(house.device.process.pid, 18)
    out = house.far.take(house.answer())
    for _, datagrams in out.runs:
        house.send(datagrams)
    house.works()


def test_a_dead_key_service_costs_no_packet_and_no_old_initiation_is_answered_after(house: House) -> None:
    recorded = [house.shake_hands() for _ in range(3)]
    house.key.kill()
    house.works()
    house.restart_key_service()
    house.works()
    before = house.counters.wait_for().get("initiation_replayed", 0)
    for initiation in recorded:
        house.say(initiation)
    until(lambda: house.counters.wait_for().get("initiation_replayed", 0) >= before + 3, PATIENCE, "the refusals")
    assert house.answer(0.05) == b""
    house.works()
    house.shake_hands()
    house.works()


def test_a_full_state_disk_is_said_in_one_line(house: House, tmp_path: Path) -> None:
    with surroundings("full") as around:
        state = around.directory / "state"
        state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(state)], check=True)
        try:
            around.config.write_text(house.around.config.read_text())
            around.config.chmod(0o600)
            key = around.start("key-service")
            assert key.process.wait(PATIENCE) == 2
            complaints = [line for line in key.log.splitlines() if "level=error" in line]
            assert len(complaints) == 1
            assert "No space left on device" in complaints[0]
            assert "Traceback" not in key.log
        finally:
            subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_they_stop_when_told_to(house: House) -> None:
    for program in (house.device, house.key):
        assert program.stop() == 0
        assert "event=stopped" in program.log
        assert "Traceback" not in program.log
