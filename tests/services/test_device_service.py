"""device-service and key-service as processes, with the test in the place of the network and the OS."""

import math
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.attack.marks import Figure
from tests.far_peer import packet
from tests.proto.packets.flows import Shape
from tests.services.house import OURS, PLACE, THEIRS, House
from tests.services.surroundings import PATIENCE, surroundings

from device_service.service import DeviceService
from lab.wait import until
from stagewire.control import capture, query
from stagewire.loop import boot_time
from stagewire.pipe import trains
from stagewire.proto import constants as c
from stagewire.proto.events import EndpointMoved, WorkerEvent
from stagewire.proto.kernel.choice import choose
from stagewire.proto.kernel.rule import COMPILED, PLAIN
from stagewire.proto.packets.merge import Merged
from stagewire.proto.tunnel import Output

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="runs services as users of their own")


@pytest.fixture(scope="module", params=[COMPILED, PLAIN])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    if choose("").name != COMPILED and request.param == COMPILED:
        pytest.skip("the compiled kernel isn't built here")
    with surroundings("house") as around:
        made = House(around, STAGEWIRE_KERNEL=request.param)
        made.shake_hands()
        yield made


def test_the_status_says_which_kernel_a_worker_has(house: House, request: pytest.FixtureRequest) -> None:
    answer = query.key_service(house.environment)
    assert answer is not None
    (worker,) = (each for each in answer.stages if each.stage == "device")
    assert worker.kernel == f"{request.node.callspec.params['house']}, as STAGEWIRE_KERNEL says"


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


def passed_on(house: House, outbound: bool, births: list[float]) -> tuple[float, float]:
    """When the trains that a worker makes of such trains were born and made, in a word. Tries again beside other load."""
    into, out = (house.plain_out, house.cipher) if outbound else (house.cipher_in, house.plain)
    found: list[bytes] = []

    def came() -> bool:
        for age in births:
            if outbound:
                train = trains.pack_plain([packet(OURS, THEIRS), packet(OURS, THEIRS, bytes(90))], boot_time() - age)
            else:
                train = trains.pack_cipher([(PLACE, house.far.sealed(packet(THEIRS, OURS)))], boot_time() - age)
            into.send(train)
        while out.poll(100):
            found.append(out.recv())
        return any(trains.sent_of(each, 0) - trains.born_of(each, 0) >= max(births) - 0.001 for each in found)

    until(came, PATIENCE, "a train")  # an old one may have been dropped
    return min(trains.born_of(each, 0) for each in found), min(trains.sent_of(each, 0) for each in found)


@pytest.mark.parametrize("outbound", [True, False])
def test_a_packet_keeps_the_age_that_it_had_before_a_worker(house: House, outbound: bool) -> None:
    """So that no packet passes through the whole gateway that is older than MAX_AGE."""
    before = boot_time()
    born, made = passed_on(house, outbound, [0.0, 0.1, 0.05])
    assert before - 0.1 <= born
    assert before <= made + 0.001


@pytest.mark.parametrize("outbound", [True, False])
@pytest.mark.attack("P20")
def test_a_birth_in_the_future_makes_no_packet_younger_than_it_is(house: House, outbound: bool) -> None:
    """Whatever a hostile stage writes there, its reader is neither ended nor misled beyond this train."""
    for age in (math.nan, math.inf, 1e300):
        train = trains.pack_plain([packet(OURS, THEIRS)], boot_time() - age)
        (house.plain_out if outbound else house.cipher_in).send(train)
    before = boot_time()
    for age in (-1e300, -math.inf, -100.0):
        born, made = passed_on(house, outbound, [age])
        assert before - 0.001 <= born <= made <= boot_time()
    house.works()


@pytest.mark.attack("roaming-storm")
def test_a_peer_that_moves_with_each_datagram_is_told_of_at_once_and_then_ten_times_a_second(figure: Figure) -> None:
    said: list[object] = []
    service = object.__new__(DeviceService)
    service._line = cast("Any", SimpleNamespace(say=said.append))
    service._worker = cast("Any", SimpleNamespace(next_deadline=lambda: None, act=lambda _: Output()))
    service._moved, service._next_moves = {}, -math.inf
    other = EndpointMoved(b"other", b"", 0.0)
    for number in range(1000):
        now = 7 + number / 1000
        if (due := service.next_deadline()) is not None and due <= now:
            service.act(now)
        events: list[WorkerEvent] = [EndpointMoved(b"peer", b"%d" % number, 0.0)]
        out = Output()
        out.events = [*events, other] if number == 500 else events
        service._emit(out, now)
    due = service.next_deadline()
    assert due is not None
    service.act(due)
    figure("messages about 1,000 moves", len(said), most=22)
    assert said[:2] == [EndpointMoved(b"peer", b"%d" % number, 0.0) for number in (0, 1)], "the first ones at once"
    assert said[-1] == EndpointMoved(b"peer", b"999", 0.0)
    assert other in said
    assert service.next_deadline() is None


def test_root_gets_a_copy_of_a_peers_packets(house: House) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(PATIENCE)
        line.connect(str(house.environment.run / "device/capture.0"))
        order = capture.Order(house.far.public, True, (), (), (), 100_000, 60.0, "test")
        socket.send_fds(line, [capture.TO_WORKER.pack(order)], [writing])
        assert capture.FROM_WORKER.unpack_untrusted(line.recv(4096)) == capture.Progress(0, 0, 0, "")
        out = [packet(OURS, THEIRS, bytes([number]) * 40) for number in range(3)]
        house.outbound(*out)
        back = [packet(THEIRS, OURS, bytes([number]) * 40) for number in range(3)]
        house.inbound(*back)
        captured = b""

        def whole() -> bool:
            nonlocal captured
            with suppress(BlockingIOError):
                captured += os.read(reading, 1 << 16)
            return all(captured.count(each) == 1 for each in (*out, *back))

        until(whole, PATIENCE, "the packets in the pipe")
        until(lambda: capture.FROM_WORKER.unpack_untrusted(line.recv(4096)).packets == 6, PATIENCE, "the count")
    for each in (reading, writing):
        os.close(each)
    house.works()


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
