"""What is said on a pipe of trains, byte by byte; `test_pipe` tries it with libzmq at the other end."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.pipe import trains
from stagewire.pipe.direct import zmtp
from stagewire.pipe.direct.zmtp import BadStream, Stream
from stagewire.pipe.names import PIPES

LIMIT = 1000


def said(*messages: bytes) -> bytes:
    return zmtp.PUSH + b"".join(zmtp.front(len(message)) + message for message in messages)


def taken(stream: Stream, *pieces: bytes) -> list[bytes]:
    return [data[start:end] for piece in pieces for data, start, end in stream.take_untrusted(piece)]


def test_the_greeting_is_the_specifications() -> None:
    """RFC 23: signature, version 3.0, mechanism NULL, no server, filler; then READY with the socket's type."""
    assert zmtp.PUSH[:64] == b"\xff" + (1).to_bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL" + bytes(16) + bytes(32)
    assert zmtp.PUSH[64:] == b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"


@pytest.mark.parametrize(("greeting", "shares"), [(zmtp.PULL, False), (zmtp.PULL_SHARING, True)])
def test_a_puller_says_whether_it_takes_memory(greeting: bytes, shares: bool) -> None:
    stream = Stream(LIMIT)
    assert stream.take_untrusted(greeting) == []
    assert stream.ready
    assert stream.shares == shares


@given(st.lists(st.binary(max_size=LIMIT), max_size=8), st.lists(st.integers(0, 9000), max_size=20))
def test_wherever_it_is_cut_the_messages_are_the_same(messages: list[bytes], cuts: list[int]) -> None:
    whole = said(*messages)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(places)]
    assert taken(Stream(LIMIT), *pieces) == messages


def test_short_messages_may_have_a_short_length_and_commands_are_passed_over() -> None:
    assert taken(Stream(LIMIT), zmtp.PUSH + b"\x00\x03abc" + b"\x04\x05\x04PING" + b"\x00\x00") == [b"abc", b""]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(bytes(64), id="no greeting"),
        pytest.param(zmtp.PUSH[:10] + b"\x01" + zmtp.PUSH[11:], id="an old version"),
        pytest.param(zmtp.PUSH.replace(b"NULL\0", b"CURVE"), id="another mechanism"),
        pytest.param(zmtp.PUSH + b"\x01\x01a", id="a message of several frames"),
        pytest.param(zmtp.PUSH + b"\x80\x01a", id="a flag that there isn't"),
        pytest.param(zmtp.PUSH + zmtp.front(LIMIT + 1), id="too long, said before it is sent"),
        pytest.param(zmtp.PUSH + zmtp.train_in(0, 5), id="a train in memory that there isn't"),
        pytest.param(zmtp.PUSH + b"\x04\x06\x05TRAIN", id="a train in memory, nobody knows where"),
        pytest.param(zmtp.PUSH + b"\x06" + (2**63).to_bytes(8), id="a command without end"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(BadStream):
        Stream(LIMIT).take_untrusted(data)


@given(st.lists(st.binary(max_size=300), max_size=6), st.booleans())
def test_whatever_comes_is_taken_or_refused(pieces: list[bytes], greeted: bool) -> None:
    stream = Stream(LIMIT)
    try:
        for piece in ([zmtp.PUSH] if greeted else []) + pieces:
            for data, start, end in stream.take_untrusted(piece):
                assert 0 <= start <= end <= len(data)
                assert end - start <= LIMIT
    except BadStream:
        pass


@pytest.mark.parametrize("frame", [b"\0\0", b"\4\0", zmtp.front(0)])
def test_a_turn_cuts_no_more_frames_than_trains_can_be(frame: bytes) -> None:
    """Each costs its reader work, however short it is."""
    stream = Stream(LIMIT, ready=True)
    assert len(stream.take_untrusted(frame * (zmtp.MOST_AT_ONCE - 1))) in {0, zmtp.MOST_AT_ONCE - 1}
    with pytest.raises(BadStream):
        stream.take_untrusted(frame * (zmtp.MOST_AT_ONCE + 1))
    read = max(pipe.limits.read for pipe in PIPES if pipe.limits)
    assert read // (trains.HEADER.size + 2) < zmtp.MOST_AT_ONCE
