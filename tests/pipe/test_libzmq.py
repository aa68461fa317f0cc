"""What one turn of libzmq's reading end takes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import zmq

from stagewire.loop import Loop
from stagewire.pipe import libzmq
from stagewire.pipe.contract import Frame
from stagewire.pipe.doorman import Doorman
from stagewire.pipe.libzmq import LibzmqReceiver
from stagewire.pipe.names import CIPHER_OUT
from stagewire.pipe.speakers import Admission
from stagewire.pipe.trains import HEADER
from stagewire.pipe.waits import Waits
from stagewire.pipe.zmq_ends import limits


@pytest.mark.parametrize("apart", [False, True])
def test_a_turn_ends_even_if_all_messages_are_empty(monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    monkeypatch.setattr(libzmq, "uid_of", lambda _: 0)  # nothing within a process has one
    loop, took, most = Loop(), list[int](), limits(CIPHER_OUT).read // HEADER.size

    def take(frames: Sequence[Frame], _now: float) -> None:
        took.append(len(frames))

    with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        for each in (pull, push):
            each.set(zmq.RCVHWM, 0)
            each.set(zmq.SNDHWM, 0)
            each.set(zmq.LINGER, 0)
        pull.bind("inproc://pipe")
        push.connect("inproc://pipe")
        admission = Admission(CIPHER_OUT, contest=lambda *_: None, refused=lambda *_: None)
        doorman = Doorman(loop, pull, Path("pipe"), admission)
        of_uid = (lambda _uid: take) if apart else None
        receiver = LibzmqReceiver(loop, pull, limits(CIPHER_OUT), take, doorman, Waits(), of_uid)
        for _ in range(3 * most):
            push.send(b"")
        while not took:
            loop._serve(1.0)
        assert sum(took) <= most
        receiver.close()
