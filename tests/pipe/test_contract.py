"""Tests what every transport promises (`pipe.contract`), with `direct` and with `libzmq` at both ends."""

import os
import socket

import zmq
from tests.pipe.pipe import PIPE, Bench, Reader

from stagewire.pipe.direct.shared_memory import SLOTS
from stagewire.pipe.names import MAX_TRAIN
from stagewire.pipe.pipes import Pipes

TRAINS = [b"", b"a", bytes(255), os.urandom(256), os.urandom(70_000), os.urandom(MAX_TRAIN), b"the last one"]
BIG = 64 * 1024


def test_trains_of_all_lengths_arrive_whole_and_in_order(bench: Bench) -> None:
    reader, sender = bench.reader(), bench.sender()
    for train in TRAINS * 3:
        bench.send(sender, train)
    bench.turn(lambda: len(reader.trains) == 3 * len(TRAINS), "all trains")
    assert reader.trains == TRAINS * 3


def test_a_train_in_pieces_arrives_as_one_and_may_be_changed_at_once(bench: Bench) -> None:
    reader, sender = bench.connected()
    for size in (100, 50_000):
        train = bytearray(b"x" * size)
        bench.turn(lambda train=train: sender.send(b"head", memoryview(train), b"tail"), "room")  # type: ignore[misc]
        train[:] = bytes(size)
        bench.turn(lambda: len(reader.trains) == 2, "the train")
        assert reader.trains.pop() == b"head" + b"x" * size + b"tail"


def test_several_trains_at_once_arrive_as_they_are_until_the_pipe_is_full(bench: Bench) -> None:
    reader, sender = bench.connected()
    bench.loop.pause(reader.receiver.source)
    sent: list[bytes] = []
    while taken := sender.send_each(batch := [bytes([at]) * 20_000 for at in range(3)]):
        sent += batch[:taken]
    assert sent
    bench.loop.resume(reader.receiver.source)
    bench.turn(lambda: sender.send(b"after"), "room")
    bench.turn(lambda: reader.trains[-1] == b"after", "the train after")
    assert reader.trains == [b"first", *sent, b"after"]


def test_each_sender_keeps_its_order_beside_others(bench: Bench) -> None:
    reader, senders = bench.reader(), [bench.sender() for _ in range(3)]
    for number in range(50):
        for position, sender in enumerate(senders):
            bench.send(sender, bytes([position, number]))
    bench.turn(lambda: len(reader.trains) == 150, "all trains")
    for position in range(3):
        assert [train[1] for train in reader.trains if train[0] == position] == [*range(50)]


def test_nothing_waits_for_a_reader_that_is_not_there(bench: Bench) -> None:
    sender = bench.sender()
    assert not sender.connected
    assert not sender.send(b"old")
    reader = bench.reader()
    bench.turn(lambda: sender.connected, "the connection")
    bench.send(sender, b"new")
    bench.turn(lambda: reader.trains, "the train")
    assert reader.trains == [b"new"]


def test_what_a_reader_left_behind_is_not_given_to_the_next(bench: Bench) -> None:
    reader, sender = bench.connected()
    bench.loop.pause(reader.receiver.source)
    while sender.send(b"old" * 20_000):
        pass
    reader.close()
    bench.turn(lambda: not sender.connected, "the end to be noticed")
    after = bench.reader()

    def arrived() -> bool:  # libzmq may take one more for the dead reader
        sender.send(b"new")
        return bool(after.trains)

    bench.turn(arrived, "a train")
    assert {*after.trains} == {b"new"}


def test_a_successor_that_inherits_the_listening_socket_is_found(bench: Bench) -> None:
    reader, sender = bench.connected()
    file = bench.pipes.path(PIPE).stat().st_ino
    left = {name: os.dup(descriptor) for name, descriptor in bench.pipes.listeners.items()}
    reader.close()
    bench.pipes.close_listeners()
    with zmq.Context() as context:
        after = Pipes(context, bench.pipes.run, left, libzmq=bench.pipes.libzmq, compiled=bench.pipes.compiled)
        successor = Reader(after, bench.loop)

        def arrived() -> bool:
            sender.send(b"new")
            return bool(successor.trains)

        bench.turn(arrived, "a train")
        assert {*successor.trains} == {b"new"}
        assert bench.pipes.path(PIPE).stat().st_ino == file
        successor.close()
        after.close_listeners()


def test_a_full_pipe_holds_a_few_trains_only_and_tells_of_room(bench: Bench) -> None:
    reader, sender = bench.connected()
    bench.loop.pause(reader.receiver.source)
    sent, told = 0, list[float]()

    def full() -> bool:  # libzmq's threads may still move some on
        nonlocal sent
        before = sent
        while sender.send(bytes(BIG)):
            sent += 1
        return sent == before

    bench.turn(full, "a full pipe")
    assert 3 <= sent <= 20
    bench.loop.resume(reader.receiver.source)
    sender.when_room(told.append)
    bench.turn(lambda: told, "room")
    sender.when_room(None)
    bench.turn(lambda: len(reader.trains) == 1 + sent, "all that was sent")


def test_a_waiter_is_called_only_when_there_is_room(bench: Bench) -> None:
    sender, told = bench.sender(), list[float]()
    sender.when_room(told.append)
    for _ in range(3):
        bench.turn(lambda: True, "a turn")
    assert not told
    reader = bench.reader()
    bench.turn(lambda: told, "room")
    assert sender.send(b"train")
    sender.when_room(None)
    bench.turn(lambda: reader.trains, "the train")
    calls = len(told)
    for _ in range(3):
        bench.turn(lambda: True, "a turn")
    assert len(told) == calls


def test_a_turn_takes_a_bounded_part_of_what_waits(bench: Bench) -> None:
    reader, sender = bench.connected()
    bench.loop.pause(reader.receiver.source)
    while sender.send(bytes(BIG)):
        pass
    begun = reader.turns
    bench.loop.resume(reader.receiver.source)
    bench.turn(lambda: reader.turns > begun, "a turn")
    assert len(reader.trains) - 1 <= SLOTS + 1


def test_the_pushers_of_a_paused_pipe_wait_those_that_come_later_as_well(bench: Bench) -> None:
    reader = bench.reader()
    senders = [bench.sender()]
    bench.send(senders[0], b"0")
    bench.turn(lambda: reader.trains, "the connection")
    bench.loop.pause(reader.receiver.source)
    bench.loop.pause(reader.receiver.source)
    senders.append(bench.sender())
    bench.turn(lambda: senders[1].connected, "the welcome: who is paused may still come")
    for number, sender in enumerate(senders):
        bench.send(sender, str(number).encode())
    bench.loop.resume(reader.receiver.source)
    for _ in range(3):
        bench.turn(lambda: True, "a turn")
    assert reader.trains == [b"0"]
    bench.loop.resume(reader.receiver.source)
    bench.turn(lambda: sorted(reader.trains) == [b"0", b"0", b"1"], "both")


def test_a_sender_of_nonsense_holds_up_nobody_else(bench: Bench) -> None:
    reader = bench.reader()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(bench.pipes.path(PIPE)))
        stranger.send(b"GET / HTTP/1.1\r\n" * 10)
        sender = bench.sender()
        bench.send(sender, b"train")
        bench.turn(lambda: b"train" in reader.trains, "the train")


def test_a_train_over_the_limit_is_refused_and_the_next_one_served(bench: Bench) -> None:
    reader, sender = bench.connected()
    bench.send(sender, bytes(MAX_TRAIN + 1))
    bench.turn(lambda: sender.send(b"small") and len(reader.trains) > 1, "the next one")
    assert set(reader.trains[1:]) == {b"small"}
