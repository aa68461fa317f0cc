"""What the other end of a pipe attaches to its words: nothing stays open, and nothing holds up the process that reads."""

import fcntl
import gc
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.fuzz.doors.door import open_descriptors
from tests.pipe.pipe import PIPE, DirectBench

from stagewire.linux import descriptors, sandbox, seccomp
from stagewire.pipe.direct import zmtp
from stagewire.pipe.direct.shared_memory import BadMemory, Memory
from stagewire.pipe.names import HANDSHAKE_IN, Pipe

LINGERS = 20
"""s that closing the attached socket takes, unless it is told otherwise."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def hand_over_lingering(pusher: socket.socket, words: bytes, stack: ExitStack) -> None:
    """Attaches a socket with unsent data to words, and leaves its last copy there."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    with socket.create_connection(server.getsockname()) as client:
        stack.enter_context(server.accept()[0]).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setblocking(False)
        with suppress(BlockingIOError):
            while client.send(bytes(1 << 16)):
                pass
        try:
            socket.send_fds(pusher, [words], [client.fileno()])
        except PermissionError:  # this kernel refuses it for the reader
            pusher.send(words)
            return
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGERS))


def connected(bench: DirectBench, stack: ExitStack, pipe: Pipe = PIPE) -> socket.socket:
    pusher = stack.enter_context(socket.socket(socket.AF_UNIX))
    pusher.connect(str(bench.pipes.path(pipe)))
    return pusher


def refuses_descriptors() -> bool:
    with socket.socket(socket.AF_UNIX) as opened:
        try:
            opened.getsockopt(socket.SOL_SOCKET, descriptors._SO_PASSRIGHTS)
        except OSError:
            return False
        return True


def test_a_socket_that_lingers_in_place_of_memory_holds_nobody_up(bench: DirectBench, stack: ExitStack) -> None:
    reader = bench.reader()
    pusher = connected(bench, stack)
    pusher.send(zmtp.PUSH)
    hand_over_lingering(pusher, zmtp.MEMORY, stack)
    pusher.send(zmtp.front(5) + b"train")
    begun = time.monotonic()
    bench.turn(lambda: reader.trains, "the train")
    assert time.monotonic() < begun + LINGERS / 2


def test_a_socket_that_lingers_behind_memory_holds_nobody_up(bench: DirectBench, stack: ExitStack) -> None:
    reader, memory = bench.reader(), Memory.make()
    stack.callback(memory.close)
    pusher = connected(bench, stack)
    pusher.send(zmtp.PUSH)
    socket.send_fds(pusher, [zmtp.MEMORY], [memory.descriptor])
    hand_over_lingering(pusher, zmtp.front(5) + b"train", stack)
    begun = time.monotonic()
    bench.turn(lambda: reader.trains, "the train")
    assert time.monotonic() < begun + LINGERS / 2
    if refuses_descriptors():
        with pytest.raises(PermissionError):
            socket.send_fds(pusher, [zmtp.front(0)], [0])


@pytest.mark.skipif(not refuses_descriptors(), reason="this kernel lets everybody attach descriptors")
def test_a_pipe_without_memory_takes_no_descriptor_even_before_its_welcome(
    bench: DirectBench, stack: ExitStack
) -> None:
    bench.pipes.path(HANDSHAKE_IN).parent.mkdir()
    receiver = bench.pipes.receiver(bench.loop, HANDSHAKE_IN, lambda *_: None, lambda _: None)
    stack.callback(receiver.close)
    pusher = connected(bench, stack, HANDSHAKE_IN)
    with pytest.raises(PermissionError):
        socket.send_fds(pusher, [zmtp.PUSH], [0])


@pytest.mark.skipif(not refuses_descriptors(), reason="this kernel lets everybody attach descriptors")
def test_a_pusher_takes_no_descriptor(bench: DirectBench, stack: ExitStack) -> None:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(bench.pipes.path(PIPE)))
    listener.listen()
    bench.sender()
    reader, _ = listener.accept()
    with reader, pytest.raises(PermissionError):
        socket.send_fds(reader, [zmtp.PULL], [0])


@pytest.mark.parametrize("count", [2, descriptors.MOST])
def test_many_descriptors_at_once_are_all_closed(bench: DirectBench, stack: ExitStack, count: int) -> None:
    reader = bench.reader()
    bench.turn(lambda: True, "the start")
    pusher = connected(bench, stack)
    pusher.send(zmtp.PUSH)
    bench.turn(lambda: reader.receiver._marks, "the greeting")
    gc.collect()  # of earlier tests
    before = open_descriptors()
    with Path(os.devnull).open() as null:
        for _ in range(3):
            socket.send_fds(pusher, [zmtp.MEMORY], [null.fileno()] * count)
    pusher.send(zmtp.front(5) + b"train")
    bench.turn(lambda: reader.trains, "the train")
    assert open_descriptors() == before


def test_memory_of_huge_pages_is_refused() -> None:
    """The kernel may have none left when one is touched, which would end the reader."""
    try:
        made = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("this kernel has no huge pages")
    os.ftruncate(made, os.fstatvfs(made).f_bsize)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    assert os.fstatvfs(made).f_bsize > mmap.PAGESIZE
    with pytest.raises(BadMemory, match="huge"):
        Memory(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may load a filter without more ado")
def test_a_stage_that_may_not_ask_for_lingering_still_closes_a_socket_that_lingers(stack: ExitStack) -> None:
    """The lingering socket is of an operator's own stage, which has no filter."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = stack.enter_context(socket.create_connection(server.getsockname()))
    stack.enter_context(server.accept()[0]).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.setblocking(False)
    with suppress(BlockingIOError):
        while client.send(bytes(1 << 16)):
            pass
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGERS))
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(tell)
            seccomp.load(seccomp.program(sandbox.calls("tun")))
            os.read(told, 1)
            descriptors.close(client.detach())
            status = 0
        finally:
            os._exit(status)
    os.close(told)
    client.close()
    os.close(tell)  # now the child's copy is the last
    begun = time.monotonic()
    assert os.waitpid(child, 0)[1] == 0
    assert time.monotonic() - begun < LINGERS / 2
