"""A descriptor passes only under a name that means such a thing; everything else is closed."""

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from stagewire.linux.descriptors import close
from stagewire.pipe.direct.shared_memory import Memory
from stagewire.process import hand_down

Make = Callable[[Path, ExitStack], int]


def memory(_folder: Path, _stack: ExitStack) -> int:
    return os.memfd_create("x")


def big_memory(_folder: Path, _stack: ExitStack) -> int:
    made = os.memfd_create("x")
    os.ftruncate(made, 1 << 40)
    return made


def sealed_memory(_folder: Path, _stack: ExitStack) -> int:
    made = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return made


def read_only_memory(_folder: Path, _stack: ExitStack) -> int:
    made = os.memfd_create("x")
    try:
        return os.open(f"/proc/self/fd/{made}", os.O_RDONLY)
    finally:
        os.close(made)


def shared(_folder: Path, _stack: ExitStack) -> int:
    return os.dup(Memory.make().descriptor)


def a_file(folder: Path, _stack: ExitStack) -> int:
    return os.open(folder / "file", os.O_RDWR | os.O_CREAT)


def null(_folder: Path, _stack: ExitStack) -> int:
    return os.open("/dev/null", os.O_RDWR)


def unattached_tun(_folder: Path, _stack: ExitStack) -> int:
    return os.open("/dev/net/tun", os.O_RDWR)


def udp(_folder: Path, _stack: ExitStack) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        return made.detach()


def unbound_udp(_folder: Path, _stack: ExitStack) -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


def connected_udp(_folder: Path, _stack: ExitStack) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect(("127.0.0.1", 9))
        return made.detach()


def tcp(_folder: Path, _stack: ExitStack) -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


def listener(folder: Path, _stack: ExitStack) -> int:
    return listening(folder / "plain-in").detach()


def listener_elsewhere(folder: Path, _stack: ExitStack) -> int:
    return listening(folder / "elsewhere").detach()


def ended_listener(folder: Path, _stack: ExitStack) -> int:
    made = listening(folder / "plain-in")
    made.shutdown(socket.SHUT_RDWR)
    return made.detach()


def pusher(_folder: Path, stack: ExitStack) -> int:
    ours, theirs = socket.socketpair()
    stack.enter_context(theirs)
    return ours.detach()


ALL = [
    memory, big_memory, sealed_memory, read_only_memory, shared, a_file, null, unattached_tun, udp, unbound_udp,
    connected_udp, tcp, listener, listener_elsewhere, ended_listener, pusher,
]  # fmt: skip
MEANT: dict[str, list[Make]] = {
    "said": [memory],
    "configuration": [memory, sealed_memory, shared],
    "pipe-marks": [memory, sealed_memory],
    "pipe-memory:7": [memory, sealed_memory, shared],
    "udp4": [udp],
    "udp6": [],
    "tun": [],
    "pipe:plain-in:1:2": [listener],
    "pipe-pusher:99:plain-in": [pusher],
    "pipe-sharer:0:cipher-in.3": [pusher],
    "pipe-pusher:100:plain-in": [],
    "pipe-pusher:x:plain-in": [],
    "pipe-pusher:1:../../etc": [],
    "anything": [],
    "": [],
    "said\n": [],
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.mark.skipif(os.geteuid() != 0, reason="opens /dev/net/tun")
@pytest.mark.parametrize("name", MEANT)
@pytest.mark.parametrize("make", ALL)
def test_a_thing_passes_under_a_name_that_means_it(tmp_path: Path, stack: ExitStack, name: str, make: Make) -> None:
    (tmp_path / "tun").mkdir()
    made = make(tmp_path / "tun", stack)
    left = hand_down.sound({name: made}, tmp_path, "tun", os.geteuid())
    assert left == ({name: made} if make in MEANT[name] else {})
    if left:
        os.close(made)
    else:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(made)


def test_what_passes_never_makes_its_reader_wait(tmp_path: Path, stack: ExitStack) -> None:
    made = pusher(tmp_path, stack)
    os.set_blocking(made, True)
    hand_down.sound({"pipe-pusher:0:plain-in": made}, tmp_path, "tun", 0)
    assert not os.get_blocking(made)
    os.close(made)


def test_a_socket_that_lingers_holds_nobody_up(stack: ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        theirs = stack.enter_context(server.accept()[0])
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
        client.setblocking(False)
        with suppress(BlockingIOError):
            while client.send(bytes(1 << 16)):
                pass
        close(client.detach())
