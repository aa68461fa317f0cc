"""Session keys on their way from key-service to a worker: over the real socket, in a page that is wiped."""

import gc
import os
import select
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from tests.speakers import admission, connect_as
from tests.turning import turn_until

from stagewire.control import session_keys
from stagewire.control.codec import BadControl
from stagewire.control.session_keys import Grant, Grants, SessionsGiver, SessionsTaker, WorkerHello
from stagewire.linux import privileges
from stagewire.loop import Loop, boot_time
from stagewire.pipe.names import SESSIONS
from stagewire.pipe.speakers import Admission
from stagewire.proto.events import InstallSession
from stagewire.proto.handshake import TransportKeys
from stagewire.proto.kernel.choice import choose
from stagewire.proto.session import Session
from stagewire.stages import STAGES, WORKER

SEND, RECEIVE = bytes(range(32)), bytes(range(100, 132))
PEER, PLACE = bytes(range(200, 232)), bytes(44)
NOBODY = 65534
OURS = os.geteuid()


def install(worker: int = 2, index: int = 0x0102) -> InstallSession:
    keys = TransportKeys(SEND, RECEIVE)
    return InstallSession(PEER, worker, index, 77, initiator=True, created=12.5, endpoint=PLACE, keys=keys)


class Now:
    """Keeps a turn from waiting."""

    def next_deadline(self) -> float:
        return boot_time()

    def act(self, _now: float) -> None:
        pass


class Line:
    """Both ends on one loop, and what each was told."""

    def __init__(self, path: Path) -> None:
        self.path, self.loop = path, Loop()
        self.loop.add_timed(Now())
        self.up: list[int] = []
        self.down: list[tuple[int, int]] = []
        self.sessions: list[tuple[Grant, Session]] = []
        self.refused: list[int] = []
        self.giver: SessionsGiver
        self.drops: Counter[str] = Counter()
        self.closing = ExitStack()

    def serve(self, admitted: Admission | None = None) -> SessionsGiver:
        self.giver = SessionsGiver(
            self.loop,
            self.path,
            admitted or admission(SESSIONS),
            self.refused.append,
        )
        self.giver.serve(
            lambda number, _now: self.up.append(number), lambda number, life: self.down.append((number, life))
        )
        self.closing.callback(lambda: self.stop_serving(self.giver))
        return self.giver

    def stop_serving(self, giver: SessionsGiver) -> None:
        """As the death of key-service does."""
        for opened in (giver._listener, *giver._new, *(connection for connection, _ in giver._workers.values())):
            if opened.fileno() >= 0:
                self.loop.remove(opened.fileno())
                opened.close()
        giver._new.clear()

    def take(self, key_uid: int = OURS, number: int = 2, life: int = 11) -> SessionsTaker:
        taker = SessionsTaker(
            self.loop,
            self.path,
            key_uid,
            WorkerHello(number, life),
            self.sessions.extend,
            self.drops,
            choose("").session,
        )
        self.closing.callback(lambda: self.leave(taker))
        return taker

    def leave(self, taker: SessionsTaker) -> None:
        """As the death of the worker does."""
        taker._retry = None
        if taker._connection is not None:
            self.loop.remove(taker._connection.fileno())
            taker._connection.close()
            taker._connection = None

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.loop, condition, what)


@pytest.fixture
def line() -> Iterator[Line]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as folder:
        made = Line(Path(folder) / "sessions")
        with made.closing:
            yield made


def raw_worker(line: Line) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.closing.callback(connection.close)
    connection.connect(str(line.path))
    return connection


def raw_key_service(line: Line) -> tuple[socket.socket, socket.socket]:
    """A listener and its one connection, by which a test may give a worker whatever it likes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.closing.callback(listener.close)
    listener.bind(str(line.path))
    listener.listen()
    taken: list[socket.socket] = []
    thread = threading.Thread(target=lambda: taken.append(listener.accept()[0]))
    thread.start()
    line.take()
    line.turn(lambda: taken, "the worker to connect")
    thread.join()
    line.closing.callback(taken[0].close)
    return listener, taken[0]


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def page_of(keys: bytes) -> int:
    page = os.memfd_create("test")
    os.write(page, keys)
    return page


def grant(*indices: int) -> bytes:
    grants = tuple(Grant(PEER, index, 77, True, 12.5, PLACE) for index in indices or (0x0102,))
    return session_keys._GRANTS.pack(Grants(grants))


def test_a_session_arrives_with_its_keys(line: Line) -> None:
    line.serve()
    line.take()
    line.turn(lambda: line.up == [2], "the worker")
    assert line.giver.generation(2) == 11
    assert line.giver.generation(1) is None
    line.giver.give(install())
    line.turn(lambda: line.sessions, "the session")
    assert line.refused == []
    given, session = line.sessions[0]
    assert given == Grant(PEER, 0x0102, 77, initiator=True, created=12.5, endpoint=PLACE)
    assert (session.index, session.remote_index, session.created, session.initiator) == (0x0102, 77, 12.5, True)
    (sealed,) = session.seal([b"packet".ljust(16)], 1420)
    assert ChaCha20Poly1305(SEND).decrypt(bytes(12), sealed[16:], None) == b"packet".ljust(16)
    theirs = ChaCha20Poly1305(RECEIVE).encrypt(bytes(12), b"answer", None)
    assert session.receiver.decrypt(bytes(12), theirs, None) == b"answer"


def test_sessions_arrive_in_order(line: Line) -> None:
    line.serve()
    line.take()
    line.turn(lambda: line.up, "the worker")
    for index in range(50):
        line.giver.give(install(index=index))
    line.turn(lambda: len(line.sessions) == 50, "the sessions")
    assert [given.index for given, _ in line.sessions] == list(range(50))


def test_the_page_is_wiped_by_the_time_the_session_is_there(line: Line) -> None:
    _, connection = raw_key_service(line)
    page = page_of(SEND + RECEIVE)
    line.closing.callback(os.close, page)
    socket.send_fds(connection, [grant()], [page])
    line.turn(lambda: line.sessions, "the session")
    assert os.pread(page, 100, 0) == bytes(64)


def test_what_key_service_gives_is_one_page_with_the_keys_and_nothing_else(line: Line) -> None:
    line.serve()
    worker = raw_worker(line)
    worker.send(session_keys._HELLO.pack(WorkerHello(2, 5)))
    line.turn(lambda: line.up, "the worker")
    before = descriptors()
    line.giver.give(install())
    line.loop._turn()
    assert descriptors() == before  # its own descriptor of the page is closed
    packet, (page,), _, _ = socket.recv_fds(worker, 4096, 4)
    line.closing.callback(os.close, page)
    assert SEND not in packet
    assert RECEIVE not in packet
    assert os.pread(page, 1000, 0) == SEND + RECEIVE
    assert "memfd:" in str(Path(f"/proc/self/fd/{page}").readlink())


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(
    "uid", [NOBODY, privileges.uid_of("device", 3), *(privileges.uid_of(each) for each in STAGES if each != WORKER)]
)
def test_a_process_with_another_uid_than_the_workers_gets_no_session(line: Line, uid: int) -> None:
    giver = line.serve()
    line.path.parent.chmod(0o755)
    line.path.chmod(0o777)
    with connect_as(uid, line.path, socket.SOCK_SEQPACKET) as worker:
        worker.send(session_keys._HELLO.pack(WorkerHello(2, 5)))
        worker.setblocking(False)
        line.turn(lambda: ended(worker), "the end")
    assert line.up == []
    giver.give(install())
    assert line.refused == [0x0102]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_worker_gets_its_own_sessions_by_one_connection(line: Line) -> None:
    line.serve()
    line.path.parent.chmod(0o755)
    line.path.chmod(0o777)
    with (
        connect_as(privileges.uid_of("device", 2), line.path, socket.SOCK_SEQPACKET) as worker,
        connect_as(privileges.uid_of("device", 2), line.path, socket.SOCK_SEQPACKET) as again,
    ):
        again.setblocking(False)
        line.turn(lambda: ended(again), "the end of the second")
        worker.send(session_keys._HELLO.pack(WorkerHello(2, 5)))
        line.turn(lambda: line.up == [2], "the worker")


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_worker_takes_nothing_from_another_user(line: Line) -> None:
    line.serve()
    line.take(key_uid=NOBODY)
    for _ in range(50):
        line.loop._turn()
    assert line.up == []
    assert line.sessions == []


def test_the_end_of_a_worker_is_told_at_once_with_its_life(line: Line) -> None:
    line.serve()
    first = line.take(life=11)
    line.turn(lambda: line.up == [2], "the worker")
    line.leave(first)
    line.turn(lambda: line.down == [(2, 11)], "its end")
    line.giver.give(install())
    assert line.refused == [0x0102]
    line.take(life=12)
    line.turn(lambda: line.up == [2, 2], "the next")
    assert line.giver.generation(2) == 12


def test_a_new_life_replaces_an_old_one_that_is_still_there(line: Line) -> None:
    line.serve()
    line.take(life=11)
    line.turn(lambda: line.up == [2], "the worker")
    worker = raw_worker(line)
    worker.send(session_keys._HELLO.pack(WorkerHello(2, 12)))
    line.turn(lambda: line.giver.generation(2) == 12, "the next")
    assert line.down == [(2, 11)]
    line.giver.give(install())
    line.turn(lambda: select.select([worker], [], [], 0)[0], "the session")
    assert len(socket.recv_fds(worker, 4096, 1)[1]) == 1


def test_a_worker_finds_a_key_service_that_starts_later_or_again(line: Line) -> None:
    line.take()
    for _ in range(20):
        line.loop._turn()
    for life in range(3):
        giver = line.serve()
        line.turn(lambda life=life: len(line.up) == life + 1, "the worker to be back")  # type: ignore[misc]
        giver.give(install(index=life))
        line.turn(lambda life=life: len(line.sessions) == life + 1, "the session")  # type: ignore[misc]
        line.stop_serving(giver)
        line.turn(lambda: True, "the end to be seen")


def test_a_killed_connection_between_two_sessions_is_no_error_of_ours(line: Line) -> None:
    line.serve()
    worker = raw_worker(line)
    worker.send(session_keys._HELLO.pack(WorkerHello(2, 5)))
    line.turn(lambda: line.up, "the worker")
    worker.close()
    line.giver.give(install())
    line.giver.act(boot_time())
    assert line.refused == [0x0102]
    line.turn(lambda: line.down == [(2, 5)], "its end")


@pytest.mark.parametrize(
    "packet", [b"\0", b"\xff" * 4096, b"\x93\x01\xabWorkerHello\x02", session_keys._HELLO.pack(WorkerHello(1, 2))[:-1]]
)
def test_a_worker_that_talks_nonsense_is_cut_off(line: Line, packet: bytes) -> None:
    line.serve()
    line.take()
    line.turn(lambda: line.up == [2], "the worker")
    stranger = raw_worker(line)
    stranger.send(packet)
    stranger.setblocking(False)
    line.turn(lambda: ended(stranger), "the end")
    assert line.up == [2]
    assert line.down == []
    line.giver.give(install())
    line.turn(lambda: line.sessions, "a session")


def test_a_second_hello_and_a_number_that_no_worker_has_are_nonsense_too(line: Line) -> None:
    line.serve()
    worker = raw_worker(line)
    worker.setblocking(False)
    worker.send(session_keys._HELLO.pack(WorkerHello(3, 5)))
    line.turn(lambda: line.up == [3], "the worker")
    worker.send(session_keys._HELLO.pack(WorkerHello(4, 5)))
    line.turn(lambda: ended(worker), "the end")
    assert line.down == [(3, 5)]
    for number in (-1, 64):
        stranger = raw_worker(line)
        stranger.setblocking(False)
        stranger.send(session_keys._HELLO.pack(WorkerHello(number, 5)))
        line.turn(lambda stranger=stranger: ended(stranger), "the end")  # type: ignore[misc]
    assert line.up == [3]


def test_who_connects_and_says_nothing_goes_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    giver = line.serve()
    silent = [raw_worker(line) for _ in range(2)]
    line.turn(lambda: len(giver._new) == 2, "the connections")
    deadline = giver.next_deadline()
    assert deadline is not None
    giver.act(deadline - 0.001)
    assert len(giver._new) == 2
    giver.act(deadline + 1)
    assert giver.next_deadline() is None
    for each in silent:
        each.setblocking(False)
        assert ended(each)


def test_a_grant_that_is_none_is_ignored_and_the_next_is_taken(line: Line) -> None:
    _, connection = raw_key_service(line)
    gc.collect()  # what earlier tests left open
    before = len(descriptors())
    pipe = os.pipe()
    pages = [page_of(b""), page_of(bytes(63)), page_of(SEND + RECEIVE), os.open("/dev/null", os.O_RDWR), *pipe]
    for page in pages:
        socket.send_fds(connection, [grant()[:-1]], [page])
        socket.send_fds(connection, [b"\xc1"], [page])
    for page in [pages[0], pages[1], *pages[3:]]:
        socket.send_fds(connection, [grant()], [page])  # no keys in it
    socket.send_fds(connection, [grant(1, 2)], [pages[1]])  # fewer keys than sessions
    socket.send_fds(connection, [session_keys._GRANTS.pack(Grants(()))], [pages[2]])
    connection.send(grant())  # nothing with it
    socket.send_fds(connection, [grant(9)], [pages[2]])
    line.turn(lambda: line.sessions, "the good one")
    assert [given.index for given, _ in line.sessions] == [9]
    assert line.drops == {"grant_malformed": 20}
    for page in pages:
        os.close(page)
    assert len(descriptors()) == before  # no descriptor stays behind


@given(st.binary(max_size=200))
def test_garbage_raises_bad_control_only(packet: bytes) -> None:
    for codec in (session_keys._HELLO, session_keys._GRANTS):
        with suppress(BadControl):
            codec.unpack_untrusted(packet)


def test_a_page_that_cannot_be_wiped_makes_no_session() -> None:
    """Read-only, so the keys would stay in it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page"
        file.write_bytes(SEND + RECEIVE)
        page = os.open(file, os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="Bad file descriptor"):
                session_keys._sessions(session_keys._GRANTS.unpack_untrusted(grant()).grants, page, choose("").session)
        finally:
            os.close(page)
