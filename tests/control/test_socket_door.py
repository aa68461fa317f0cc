"""The socket door: copies of sockets get to whom they are for, and nobody else gets any, nor keeps it busy."""

import gc
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from tests.speakers import admission, connect_as
from tests.turning import turn_until

from stagewire.control import socket_door
from stagewire.control.socket_door import TCP4, UDP4, UDP6, Door, SocketsTaker
from stagewire.linux import uids
from stagewire.loop import Loop, boot_time
from stagewire.pipe.names import SOCKETS
from stagewire.pipe.speakers import MAX_ROOTS
from stagewire.stages import STAGES

NOBODY = 65534


def udp() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    return opened


class House:
    """The door, and what came through it."""

    def __init__(self, path: Path) -> None:
        self.path, self.loop = path, Loop()
        self.offers: list[dict[str, int]] = []
        self.given: list[dict[str, int]] = []
        self.takers: list[SocketsTaker] = []
        self.asked: list[tuple[str, ...]] = []
        self.door = self.opened()

    def opened(self) -> Door:
        admitted = admission(SOCKETS, socket_door.LINES)
        return Door(self.loop, self.path, lambda offer, _now: self.offers.append(offer), self._on_ask, admitted)

    def _on_ask(self, kinds: Iterable[str]) -> dict[str, socket.socket]:
        self.asked.append(tuple(kinds))
        return {kind: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for kind in kinds}

    def taker(self, *has: socket.socket) -> SocketsTaker:
        held = dict(zip((UDP4, UDP6), (each.fileno() for each in has), strict=False))
        made = SocketsTaker(self.loop, self.path, lambda: held, lambda given, _now: self.given.append(given))
        self.takers.append(made)
        return made

    def turn(self, condition: Callable[[], object], what: str) -> None:
        turn_until(self.loop, condition, what)

    def line(self, *words: bytes) -> socket.socket:
        """A connection made by hand."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.connect(str(self.path))
        for each in words:
            line.send(each)
        line.setblocking(False)
        return line

    def ends(self, line: socket.socket) -> bool:
        try:
            return line.recv(100) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


@pytest.fixture
def house() -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name:
        made = House(Path(name) / "sockets")
        yield made
        made.door.close()
        for taker in made.takers:
            if taker._line is not None:
                taker._line.close()
        for descriptors in (*made.offers, *made.given):
            for descriptor in descriptors.values():
                os.close(descriptor)


def port(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return int(copy.getsockname()[1])


def test_copies_go_to_those_who_are_there_and_to_those_who_come(house: House) -> None:
    with udp() as first, udp() as second:
        taker = house.taker()
        house.turn(lambda: house.offers, "an offer")
        assert house.offers == [{}]
        house.door.give({UDP4: first.fileno()})
        house.turn(lambda: len(house.given) == 1, "sockets")
        house.door.give({UDP4: second.fileno(), UDP6: first.fileno()})
        house.turn(lambda: len(house.given) == 2, "other sockets")
        house.taker()
        house.turn(lambda: len(house.given) == 3, "sockets for the next")
        found = [{name: port(each) for name, each in given.items()} for given in house.given]
        ports = first.getsockname()[1], second.getsockname()[1]
        assert found == [{UDP4: ports[0]}, *[{UDP4: ports[1], UDP6: ports[0]}] * 2]
    assert taker.next_deadline() is None


def test_a_new_host_service_is_offered_what_there_is(house: House) -> None:
    with udp() as mine:
        house.taker(mine)
        house.turn(lambda: house.offers, "an offer")
        for opened in (house.door._listener, *house.door._lines):
            house.loop.remove(opened.fileno())
        house.door.close()
        house.loop.remove_timed(house.door)
        before = house.offers
        house.door = house.opened()
        house.turn(lambda: len(house.offers) == 2, "an offer to the next")
        assert [port(offer[UDP4]) for offer in before] == [mine.getsockname()[1]] * 2


def test_who_asks_gets_new_sockets(house: House) -> None:
    got: list[dict[str, socket.socket]] = []
    asking = Thread(target=lambda: got.append(socket_door.ask(house.path, [UDP4, TCP4], 5)))
    asking.start()
    house.turn(lambda: not asking.is_alive(), "an answer")
    assert house.asked == [(UDP4, TCP4)]
    assert {name: each.family for name, each in got[0].items()} == {UDP4: socket.AF_INET, TCP4: socket.AF_INET}
    for each in got[0].values():
        each.close()


def test_without_a_host_service_asking_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        socket_door.ask(tmp_path / "sockets", [UDP4], 5)


@pytest.mark.parametrize(
    "words",
    [
        b"\xff",
        socket_door._TO_HOST.pack(socket_door.Ask(("raw4",))),
        socket_door._TO_HOST.pack(socket_door.Ask((UDP4, UDP4))),
        socket_door._TO_HOST.pack(socket_door.Offer((UDP4,))),
        bytes(5000),
    ],
)
def test_who_breaks_a_rule_is_cut_off(house: House, words: bytes) -> None:
    line = house.line(words)
    house.turn(lambda: house.ends(line), "the end of the line")
    assert (house.offers, house.asked) == ([], [])
    line.close()


def test_sockets_that_are_not_named_are_closed(house: House) -> None:
    gc.collect()  # what other tests have left may go meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    with udp() as mine:
        line = house.line()
        socket.send_fds(line, [socket_door._TO_HOST.pack(socket_door.Offer(()))], [mine.fileno()] * 3)
        house.turn(lambda: house.ends(line), "the end of the line")
        line.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_who_says_nothing_is_cut_off_in_time(house: House) -> None:
    line = house.line()
    house.turn(lambda: house.door._lines, "the connection")
    deadline = house.door.next_deadline()
    assert deadline == pytest.approx(boot_time() + socket_door.SPEAK_WITHIN, abs=1)
    house.door.act(deadline or 0.0)
    assert house.ends(line)
    line.close()


def test_a_flood_of_connections_leaves_a_bounded_number(house: House) -> None:
    lines = []
    for _ in range(MAX_ROOTS):
        lines.append(house.line())
        house.turn(lambda: len(house.door._lines) == len(lines), "all of them")
    late = house.line()
    house.turn(lambda: house.ends(late), "the end of one too many")
    for line in (*lines, late):
        line.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("message", [socket_door.Ask((UDP4,)), socket_door.Offer(())])
def test_a_stranger_gets_nothing(house: House, message: socket_door.Ask | socket_door.Offer) -> None:
    house.path.parent.chmod(0o755)
    house.path.chmod(0o777)
    os.seteuid(NOBODY)
    try:
        line = house.line(socket_door._TO_HOST.pack(message))
    finally:
        os.seteuid(0)
    house.turn(lambda: house.ends(line), "the end of the line")
    assert (house.offers, house.asked) == ([], [])
    line.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gets_the_sockets_that_are_for_it_and_no_other(house: House, stage: str) -> None:
    """New ones are resolver-service's, the tunnel's are conn-service's."""
    house.path.parent.chmod(0o755)
    house.path.chmod(0o777)
    got: list[int] = []

    def comes(line: socket.socket) -> bool:
        with suppress(BlockingIOError):
            got.extend(socket.recv_fds(line, 4096, 4)[1])
        return bool(got)

    with udp() as tunnel:
        house.door.give({UDP4: tunnel.fileno()})
        for message, whose in ((socket_door.Ask((UDP4,)), "resolver"), (socket_door.Offer(()), "conn")):
            with connect_as(uids.uid_of(stage), house.path, socket.SOCK_SEQPACKET) as line:
                line.setblocking(False)
                with suppress(BrokenPipeError):  # it is hung up on already
                    line.send(socket_door._TO_HOST.pack(message))
                house.turn(partial(comes if stage == whose else house.ends, line), "an answer, or the end")
        ports = {port(each) for each in got}
        assert ports == {"resolver": {0}, "conn": {tunnel.getsockname()[1]}}.get(stage, set())
    for each in got:
        os.close(each)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_strangers_door_is_not_entered(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name:
        Path(name).chmod(0o777)
        path = Path(name) / "sockets"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            path.chmod(0o777)
            os.seteuid(NOBODY)
            try:
                listener.listen(1)  # whose it is, is who listens
            finally:
                os.seteuid(0)
            with pytest.raises(PermissionError):
                socket_door.ask(path, [UDP4], 1)
