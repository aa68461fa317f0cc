"""Pipes of trains, ours at one end or at both, and libzmq at the other: what goes through, what waits, what is refused."""

import errno
import os
import socket
from contextlib import suppress

import pytest
import zmq
from tests.pipe.pipe import PIPE, DirectBench

from stagewire.pipe.direct import zmtp
from stagewire.pipe.direct.sender import ABSENT_MAX, ABSENT_PART, RECONNECT_MAX
from stagewire.pipe.direct.shared_memory import SLOTS
from stagewire.pipe.names import MAX_TRAIN
from stagewire.pipe.speakers import MAX_ROOTS

TRAINS = [b"", b"a", bytes(255), os.urandom(256), os.urandom(70_000), os.urandom(MAX_TRAIN), b"the last one"]


def test_trains_of_all_lengths_arrive_whole_and_in_order(bench: DirectBench) -> None:
    reader = bench.reader()
    sender = bench.sender()
    for train in TRAINS * 3:
        bench.send(sender, train)
    bench.turn(lambda: len(reader.trains) == 3 * len(TRAINS), "all trains")
    assert reader.trains == TRAINS * 3
    assert reader.laid == 3  # the others are too short, or too long for a slot
    assert reader.turns < len(reader.trains)  # what was there at once came at once


def test_zeromq_reads_what_we_send(bench: DirectBench) -> None:
    with bench.pipes.bind(PIPE) as pull:
        sender = bench.sender()
        arrived: list[bytes] = []
        for train in TRAINS:
            bench.send(sender, train)
            bench.turn(lambda: pull.poll(0), "the train")
            arrived.append(pull.recv())
        assert arrived == TRAINS


def test_we_read_what_zeromq_sends(bench: DirectBench) -> None:
    reader = bench.reader()
    with bench.pipes.connect(PIPE) as push:
        bench.turn(lambda: push.poll(0, zmq.POLLOUT), "the connection")
        for train in TRAINS:
            bench.turn(lambda: push.poll(0, zmq.POLLOUT), "room")
            push.send(train)
        bench.turn(lambda: len(reader.trains) == len(TRAINS), "all trains")
    assert reader.trains == TRAINS


def test_a_train_over_the_limit_is_refused_and_the_next_one_served(bench: DirectBench) -> None:
    reader = bench.reader()
    sender = bench.sender()
    bench.send(sender, bytes(MAX_TRAIN + 1))
    bench.turn(lambda: reader.bad, "its being refused")
    assert reader.bad == ["train_malformed"]
    bench.send(sender, b"small")
    bench.turn(lambda: reader.trains, "the next one")
    assert reader.trains == [b"small"]


def test_who_speaks_something_else_is_hung_up_on_and_holds_nobody_up(bench: DirectBench) -> None:
    reader = bench.reader()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(bench.pipes.path(PIPE)))
        stranger.send(b"GET / HTTP/1.1\r\n" * 10)
        sender = bench.sender()
        bench.send(sender, b"train")
        bench.turn(lambda: reader.trains and reader.bad, "both")
        stranger.setblocking(False)
        bench.turn(lambda: _ended(stranger), "being sent away")
    assert reader.trains == [b"train"]


def test_only_so_many_may_connect(bench: DirectBench) -> None:
    reader = bench.reader()
    senders = []
    for _ in range(MAX_ROOTS):
        senders.append(bench.sender())
        bench.turn(lambda: len(reader.receiver._pushers) == len(senders), "the welcome")
    with socket.socket(socket.AF_UNIX) as one_more:
        one_more.connect(str(bench.pipes.path(PIPE)))
        one_more.setblocking(False)
        bench.turn(lambda: _ended(one_more), "being sent away")
    for sender in senders:
        bench.send(sender, b"train")
    bench.turn(lambda: len(reader.trains) == MAX_ROOTS, "everybody's train")


def _ended(opened: socket.socket) -> bool:
    try:
        return opened.recv(1000) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:  # with words of ours unread
        return True


def test_a_full_pipe_holds_a_few_trains_only_and_tells_of_room(bench: DirectBench) -> None:
    reader, sender = bench.connected()
    bench.loop.pause(reader.receiver.source)
    sent, told = 0, list[float]()
    while sender.send(bytes(64 * 1024)):
        sent += 1
    assert 1 + SLOTS <= sent <= 4 + SLOTS
    sender.when_room(told.append)
    bench.turn(lambda: True, "a turn")
    assert not told
    bench.loop.resume(reader.receiver.source)
    bench.turn(lambda: told, "room")
    sender.when_room(None)
    bench.turn(lambda: len(reader.trains) == 1 + sent, "all that was sent")


def test_a_sender_that_finds_no_descriptor_tries_again(bench: DirectBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many")

    reader = bench.reader()
    with monkeypatch.context() as out_of_descriptors:
        out_of_descriptors.setattr("stagewire.pipe.direct.sender.sockets.socket", refuse)
        sender = bench.sender()
    bench.send(sender, b"train")
    bench.turn(lambda: reader.trains, "the train")


def test_a_train_of_which_the_kernel_took_a_part_is_finished(bench: DirectBench) -> None:
    reader, sender = bench.connected()
    bench.loop.pause(reader.receiver.source)
    trains = [os.urandom(MAX_TRAIN - number) for number in range(5)]
    sent = [train for train in trains if sender.send(train)]
    assert sender._rest  # otherwise this tries nothing
    bench.loop.resume(reader.receiver.source)
    bench.turn(lambda: len(reader.trains) == 1 + len(sent), "all that was sent")
    assert reader.trains[1:] == sent
    assert not sender._rest
    bench.send(sender, b"and on")
    bench.turn(lambda: reader.trains[-1] == b"and on", "the next one")


def test_a_reader_that_dies_takes_a_train_in_the_middle_with_it_and_no_more(bench: DirectBench) -> None:
    reader, sender = bench.connected()
    bench.loop.pause(reader.receiver.source)
    while sender.send(b"x" * MAX_TRAIN):
        pass
    assert sender._rest
    reader.close()
    after = bench.reader()
    bench.turn(lambda: sender.connected and not sender._rest, "the new one to be found")
    bench.send(sender, b"whole")
    bench.turn(lambda: after.trains, "a train")
    assert after.trains == [b"whole"]
    assert not after.bad


def test_what_a_pusher_sent_before_it_went_is_read(bench: DirectBench) -> None:
    reader = bench.reader()
    sender = bench.sender()
    bench.send(sender, b"its last")
    sender._disconnect()
    bench.turn(lambda: reader.trains and not reader.receiver._pushers, "the train and the end")
    assert reader.trains == [b"its last"]


def accepted(bench: DirectBench, listener: socket.socket) -> socket.socket:
    """Turns the loop until a sender has connected to a listener that doesn't block."""
    found: list[socket.socket] = []

    def come() -> bool:
        with suppress(BlockingIOError):
            found.append(listener.accept()[0])
        return bool(found)

    bench.turn(come, "a connection")
    return found[0]


def test_a_sender_waits_to_be_welcomed_and_hangs_up_on_nonsense(bench: DirectBench) -> None:
    path = bench.pipes.path(PIPE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        sender = bench.sender()
        for _ in range(2):
            talker = accepted(bench, listener)
            with talker:
                assert talker.recv(1000) == zmtp.PUSH
                assert not sender.send(b"too early")
                talker.send(bytes(100))
                talker.setblocking(False)
                bench.turn(lambda talker=talker: _ended(talker), "the end")  # type: ignore[misc]
        talker = accepted(bench, listener)
        with talker:
            talker.send(zmtp.PULL[:-1])
            bench.turn(lambda: True, "a turn")
            assert not sender.send(b"too early")
            talker.send(zmtp.PULL[-1:])
            bench.send(sender, b"train")
            assert talker.recv(1000) == zmtp.PUSH + zmtp.front(5) + b"train"


def test_a_reader_that_hangs_up_at_once_is_left_alone_for_a_while(bench: DirectBench) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bench.pipes.path(PIPE)))
        listener.listen()
        listener.setblocking(False)
        sender = bench.sender()
        for _ in range(6):
            talker = accepted(bench, listener)
            sender._since = float("inf")  # however slow the machine is, the connection was brief
            sender._absent_since = None  # and the absence short
            talker.send(zmtp.PULL)  # a welcome doesn't help
            talker.close()
            bench.turn(lambda: sender._socket is None, "the end")
            with pytest.raises(BlockingIOError):
                listener.accept()
        assert sender._pause == RECONNECT_MAX
        with accepted(bench, listener) as talker:
            sender._since = 0.0
            talker.send(zmtp.PULL)
            bench.send(sender, b"train")
        bench.turn(lambda: not sender.connected, "the end")
        listener.accept()[0].close()  # one that had lasted is looked for at once


def test_the_longer_a_reader_is_away_the_rarer_it_is_looked_for(
    bench: DirectBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = now = 1000.0
    monkeypatch.setattr("stagewire.pipe.direct.sender.boot_time", lambda: now)
    sender, looks = bench.sender(), [now]
    while now < begun + 20:
        now = sender._retry.next_deadline() or begun
        pause = now - looks[-1]
        assert pause <= max(RECONNECT_MAX, min(ABSENT_MAX, ABSENT_PART * (now - begun))) + 1e-9
        looks.append(now)
        sender._lost()
    assert looks[-1] - looks[-2] == pytest.approx(ABSENT_MAX)
    assert sum(look < begun + 0.1 for look in looks) > 10


def test_a_sender_that_nobody_welcomes_is_made_anew(bench: DirectBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagewire.pipe.direct.sender.WELCOME_WITHIN", 0.01)
    path = bench.pipes.path(PIPE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        sender = bench.sender()
        first, _ = listener.accept()
        with first:
            first.setblocking(False)
            bench.turn(lambda: _ended(first), "the end")
        second, _ = listener.accept()
        with second:
            second.send(zmtp.PULL)
            bench.send(sender, b"train")


def test_a_pipe_is_finished_before_the_loop_stops(bench: DirectBench) -> None:
    reader = bench.reader()
    sender = bench.sender()
    bench.turn(lambda: sender.connected, "the welcome")
    for number in range(3):
        assert sender.send(bytes([number]) * 60_000)
    bench.loop.stop()
    bench.loop.run()
    assert [train[0] for train in reader.trains] == [0, 1, 2]
