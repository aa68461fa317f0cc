"""Events and effects: values that show no key."""

from typing import get_args

from stagewire.proto.events import (
    Effect,
    EndpointMoved,
    GaveUp,
    InstallSession,
    RememberTimestamp,
    SendHandshake,
    SessionConfirmed,
    SessionsEnded,
    WantHandshake,
    WorkerEvent,
)
from stagewire.proto.handshake import TransportKeys

KEY = b"K" * 32
SEND, RECEIVE = b"S" * 32, b"R" * 32


def test_each_is_an_event_or_an_effect() -> None:
    assert set(get_args(WorkerEvent)) == {WantHandshake, SessionConfirmed, SessionsEnded, EndpointMoved}
    assert set(get_args(Effect)) == {RememberTimestamp, InstallSession, SendHandshake, GaveUp}


def test_equal_facts_are_equal() -> None:
    assert WantHandshake(KEY, "rekey") == WantHandshake(KEY, "rekey") != WantHandshake(KEY, "no_session")
    assert SessionsEnded((1, 2)) != SessionsEnded((2, 1))
    assert SendHandshake(KEY, b"there", b"message", initiation=True) == SendHandshake(KEY, b"there", b"message", True)


def test_a_session_shows_no_key() -> None:
    keys = TransportKeys(send=SEND, receive=RECEIVE)
    shown = repr(InstallSession(KEY, 0, 1, 2, True, 1000.0, b"there", keys))
    assert repr(SEND) not in shown
    assert repr(RECEIVE) not in shown
