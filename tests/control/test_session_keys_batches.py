"""Several sessions in one packet: each with its own keys, to its own worker, and none for one that has gone."""

import errno
import os
import socket
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.control.test_session_keys import Line, grant, install, line, page_of, raw_key_service, raw_worker

from stagewire.control import session_keys
from stagewire.control.session_keys import BATCH, WorkerHello
from stagewire.loop import boot_time
from stagewire.proto.handshake import TransportKeys

__all__ = ["line"]


def keys_of(number: int) -> TransportKeys:
    return TransportKeys(bytes([number]) * 32, bytes([100 + number]) * 32)


def test_each_session_of_a_packet_has_its_own_keys_and_all_are_wiped(line: Line) -> None:
    _, connection = raw_key_service(line)
    page = page_of(b"".join(keys_of(number).send + keys_of(number).receive for number in range(3)))
    line.closing.callback(os.close, page)
    socket.send_fds(connection, [grant(0, 1, 2)], [page])
    line.turn(lambda: len(line.sessions) == 3, "the sessions")
    for number, (granted, session) in enumerate(line.sessions):
        assert granted.index == session.index == number
        (sealed,) = session.seal([b"packet".ljust(16)], 1420)
        assert ChaCha20Poly1305(keys_of(number).send).decrypt(bytes(12), sealed[16:], None) == b"packet".ljust(16)
        theirs = ChaCha20Poly1305(keys_of(number).receive).encrypt(bytes(12), b"answer", None)
        assert session.receiver.decrypt(bytes(12), theirs, None) == b"answer"
    assert os.pread(page, 1000, 0) == bytes(3 * 64)


def test_what_a_turn_brings_goes_in_few_packets_each_to_its_worker(line: Line) -> None:
    line.serve()
    workers = {number: raw_worker(line) for number in (2, 3)}
    for number, worker in workers.items():
        worker.send(session_keys._HELLO.pack(WorkerHello(number, 5)))
    line.turn(lambda: len(line.up) == 2, "the workers")
    for index in range(BATCH + 2):
        line.giver.give(replace(install(index=index), keys=keys_of(index)))
        line.giver.give(replace(install(worker=3, index=50 + index), keys=keys_of(50 + index)))
    assert line.giver.next_deadline() == 0.0
    line.loop._turn()
    assert line.giver.next_deadline() is None
    for number, first in ((2, 0), (3, 50)):
        for expected in (range(first, first + BATCH), range(first + BATCH, first + BATCH + 2)):
            packet, (page,), _, _ = socket.recv_fds(workers[number], 4096, 4)
            line.closing.callback(os.close, page)
            assert [each.index for each in session_keys._GRANTS.unpack_untrusted(packet).grants] == list(expected)
            keys = [keys_of(index) for index in expected]
            assert os.pread(page, 4096, 0) == b"".join(each.send + each.receive for each in keys)
    assert line.refused == []


def test_what_waits_for_the_end_of_a_turn_goes_with_its_worker(line: Line) -> None:
    line.serve()
    first = raw_worker(line)
    first.send(session_keys._HELLO.pack(WorkerHello(2, 5)))
    line.turn(lambda: line.up == [2], "the worker")
    second = raw_worker(line)
    second.send(session_keys._HELLO.pack(WorkerHello(2, 6)))
    line.giver.give(install(index=1))
    line.giver._close(line.giver._workers[2][0])
    line.turn(lambda: line.up == [2, 2], "the next")
    line.giver.give(install(index=2))
    line.loop._turn()
    packet, (page,), _, _ = socket.recv_fds(second, 4096, 4)
    os.close(page)
    assert [each.index for each in session_keys._GRANTS.unpack_untrusted(packet).grants] == [2]


def test_without_a_descriptor_to_spare_sessions_are_refused(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.serve()
    line.take()
    line.turn(lambda: line.up == [2], "the worker")

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", none_left)
        line.giver.give(install(index=1))
        line.giver.give(install(index=2))
        line.loop._turn()
    assert line.refused == [1, 2]
    line.giver.give(install(index=3))
    line.turn(lambda: line.sessions, "the next")


def test_a_worker_that_takes_nothing_is_refused_without_waiting(line: Line) -> None:
    line.serve()
    worker = raw_worker(line)
    worker.send(session_keys._HELLO.pack(WorkerHello(2, 5)))
    line.turn(lambda: line.up, "the worker")
    begun = boot_time()
    for index in range(5000):
        line.giver.give(install(index=index))
    line.loop._turn()
    assert boot_time() - begun < 1
    taken = 5000 - len(line.refused)
    assert BATCH < taken < 5000
    assert line.refused == list(range(taken, 5000))
