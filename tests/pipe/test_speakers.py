"""Who may connect where: each pair of a party and a pipe, by the uid that the kernel notes for a real socket."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.speakers import acting_as, admission

from stagewire.linux import uids
from stagewire.linux.peer_credentials import Credentials
from stagewire.linux.uids import ROOT, Place
from stagewire.pipe.names import PIPES, Pipe
from stagewire.pipe.speakers import MAX_ROOTS, Admission, speakers, speaks_for
from stagewire.stages import STAGES

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

PLACES = [*map(Place, STAGES), Place("device", 1), Place("device", 63)]
NOBODY = 65534
ANOTHER_INTERFACES = uids.uid_of("tun") + 128
WORKER = Place("device", 1)
PIPE = next(pipe for pipe in PIPES if pipe.name == "plain-in")


class Lines:
    """Makes connections of other users."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def of(self, uid: int) -> tuple[socket.socket, socket.socket]:
        """Our end and theirs."""
        with acting_as(uid, uids.group()):
            ends = socket.socketpair()
        for end in ends:
            self._stack.enter_context(end)
        return ends


@pytest.fixture
def lines() -> Iterator[Lines]:
    with ExitStack() as stack:
        yield Lines(stack)


@pytest.mark.parametrize("pipe", PIPES, ids=str)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.stage}{place.number}")
def test_a_party_connects_to_the_pipes_that_list_it_and_to_no_other(lines: Lines, place: Place, pipe: Pipe) -> None:
    refused: list[tuple[Pipe, Credentials]] = []
    admits = admission(pipe, refused=lambda at, theirs: refused.append((at, theirs)))
    uid = uids.uid_of(*place)
    ours, _ = lines.of(uid)
    assert admits.admit(ours) == (place in speakers(pipe)) == (place.stage in pipe.connects)
    if refused:
        assert refused == [(pipe, Credentials(os.getpid(), uid, uids.group()))]
    else:
        assert admits.place(uid) == place


@pytest.mark.parametrize("pipe", PIPES, ids=str)
def test_strangers_and_other_interfaces_connect_nowhere_and_root_everywhere(lines: Lines, pipe: Pipe) -> None:
    admits = admission(pipe)
    assert not admits.admit(lines.of(NOBODY)[0])
    assert not admits.admit(lines.of(ANOTHER_INTERFACES)[0])
    kept = [lines.of(ROOT)[0] for _ in range(MAX_ROOTS)]
    assert all(map(admits.admit, kept))
    assert not admits.admit(lines.of(ROOT)[0])


def test_no_two_places_share_a_uid() -> None:
    numbers = [uids.uid_of(stage) for stage in STAGES if stage != "device"]
    numbers += [uids.uid_of("device", number) for number in range(64)]
    assert len({*numbers, uids.group(), ROOT}) == len(numbers) + 2
    assert max(numbers) - uids.group() < 128


# --- a place that is held ------------------------------------------------------------------------------------


class Contest:
    """Says which process holds the slot, where that is known, and how often it was asked."""

    def __init__(self, holds: bool | None) -> None:
        self.holds, self.asked = holds, 0

    def __call__(self, place: Place, pid: int) -> bool | None:
        assert (place, pid) == (WORKER, os.getpid())
        self.asked += 1
        return self.holds


def held(lines: Lines, contest: Contest) -> tuple[Admission, socket.socket, socket.socket]:
    """An admission with one connection of WORKER's."""
    admits = admission(PIPE, contest=contest)
    ours, theirs = lines.of(uids.uid_of(*WORKER))
    assert admits.admit(ours)
    assert contest.asked == 0
    return admits, ours, theirs


@pytest.mark.parametrize("holds", [True, None])
def test_a_second_process_for_a_place_that_is_held_is_refused_and_asks_for_nothing(
    lines: Lines, holds: bool | None
) -> None:
    contest = Contest(holds)
    admits, _, _ = held(lines, contest)
    for _ in range(1200):
        ours, theirs = lines.of(uids.uid_of(*WORKER))
        assert not admits.admit(ours)
        ours.close()
        theirs.close()
    assert holds is None or contest.asked == 1
    assert admits.admit(lines.of(uids.uid_of("device", 2))[0])


def test_a_usurper_makes_way_for_the_holder_once_it_is_read(lines: Lines) -> None:
    contest = Contest(False)
    admits, usurper, far = held(lines, contest)
    far.send(b"before")
    assert not admits.admit(lines.of(uids.uid_of(*WORKER))[0])  # it doesn't hold the slot either
    answers = iter([False, True])
    contest.__class__ = type("Later", (Contest,), {"__call__": lambda *_: next(answers)})
    holder, _ = lines.of(uids.uid_of(*WORKER))
    assert admits.admit(holder)
    assert usurper.recv(100) == b"before"
    assert usurper.recv(100) == b""
    with pytest.raises(BrokenPipeError):
        far.send(b"after")


def test_a_successor_is_admitted_while_its_dead_predecessor_is_read(lines: Lines) -> None:
    admits, ours, theirs = held(lines, Contest(True))
    theirs.send(b"last words")
    theirs.close()
    successor, _ = lines.of(uids.uid_of(*WORKER))
    assert admits.admit(successor)
    assert ours.recv(100) == b"last words"
    assert not admits.admit(lines.of(uids.uid_of(*WORKER))[0])
    admits.forget(ours.fileno())
    admits.forget(successor.fileno())
    assert admits.admit(lines.of(uids.uid_of(*WORKER))[0])


def test_a_stage_of_the_operators_own_speaks_at_its_pipe(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uids, "_own_stages", ("tap", "filter"))
    uid = uids.uid_of("filter")
    admits = Admission(PIPE, own_stages=["filter"], contest=Contest(None), refused=lambda _pipe, _theirs: None)
    assert admits.admit(lines.of(uid)[0])
    assert not admits.admit(lines.of(uids.uid_of("tap"))[0])
    assert not admission(PIPE).admit(lines.of(uid)[0])


def test_a_worker_speaks_for_itself_alone() -> None:
    assert speaks_for(Place("device", 1), 1)
    assert not speaks_for(Place("device", 1), 0)
    assert speaks_for(None, 0)
    assert speaks_for(Place("own"), 0)
