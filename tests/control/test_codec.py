"""Control messages on the wire: each comes back equal, and nothing else comes back at all."""

import typing
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.control.spoken import simplest

from stagewire.control import questions, session_keys, telemetry
from stagewire.control.codec import BadControl, Codec
from stagewire.control.event import Event
from stagewire.control.messages import FROM_KEY, FROM_STAGE, TO_STATUS, FromKey, FromStage, ToStatus
from stagewire.control.questions import VERSION
from stagewire.control.status import EventsStatus

REASONS = {"control_malformed", "control_of_unknown_version", "control_of_unknown_kind"}
SETS: list[tuple[Codec[Any], tuple[type, ...]]] = [
    (FROM_STAGE, FromStage.__args__),
    (FROM_KEY, FromKey.__args__),
    (TO_STATUS, ToStatus.__args__),
]
KINDS = [(codec, kind) for codec, kinds in SETS for kind in kinds]
IDS = [kind.__name__ for _, kind in KINDS]

PLAIN: dict[object, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=40),
}
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | PLAIN[int] | PLAIN[float] | PLAIN[bool] | PLAIN[str] | PLAIN[bytes],
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def of_type(expected: Any) -> st.SearchStrategy[Any]:
    if expected in PLAIN:
        return PLAIN[expected]
    if is_dataclass(expected):
        assert isinstance(expected, type)
        return of_kind(expected)
    if isinstance(expected, UnionType):
        return st.none() | of_type(typing.get_args(expected)[0])
    element, _ = typing.get_args(expected)
    return st.lists(of_type(element), max_size=3).map(tuple)


def of_kind(kind: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, *[of_type(hints[field.name]) for field in fields(kind)])


def reason_of(codec: Codec[Any], data: bytes) -> str:
    with pytest.raises(BadControl) as refused:
        codec.unpack_untrusted(data)
    return refused.value.reason


def packed(*parts: Any) -> bytes:
    data: bytes = msgpack.packb(parts)
    return data


@pytest.mark.parametrize(("codec", "kind"), KINDS, ids=IDS)
@settings(max_examples=12)
@given(st.data())
def test_every_message_comes_back_equal(codec: Codec[Any], kind: type, data: st.DataObject) -> None:
    message = data.draw(of_kind(kind))
    arrived = codec.unpack_untrusted(codec.pack(message))
    assert arrived == message
    assert type(arrived) is kind


@pytest.mark.parametrize(("codec", "kind"), KINDS, ids=IDS)
@settings(max_examples=12)
@given(st.data())
def test_a_field_too_many_or_too_few_is_refused(codec: Codec[Any], kind: type, data: st.DataObject) -> None:
    body = msgpack.unpackb(codec.pack(data.draw(of_kind(kind))))[2:]
    assert reason_of(codec, packed(VERSION, kind.__name__, *body, 1)) == "control_malformed"
    if body:
        assert reason_of(codec, packed(VERSION, kind.__name__, *body[:-1])) == "control_malformed"


@pytest.mark.parametrize(("codec", "kind"), KINDS, ids=IDS)
@settings(max_examples=12)
@given(st.data())
def test_a_field_of_another_type_is_refused(codec: Codec[Any], kind: type, data: st.DataObject) -> None:
    body = msgpack.unpackb(codec.pack(data.draw(of_kind(kind))))[2:]
    hints = typing.get_type_hints(kind)
    for position, field in enumerate(fields(kind)):
        wrong = data.draw(anything)
        if fits(wrong, hints[field.name]):
            continue
        broken = [*body[:position], wrong, *body[position + 1 :]]
        assert reason_of(codec, packed(VERSION, kind.__name__, *broken)) == "control_malformed"


def fits(value: Any, expected: Any) -> bool:
    """Whether what msgpack makes of `value` is of the expected type; written without the codec's help."""
    if expected in PLAIN:
        return type(value) is expected
    if isinstance(expected, UnionType):
        return value is None or fits(value, typing.get_args(expected)[0])
    if type(value) is not list:
        return False
    if is_dataclass(expected):
        hints = typing.get_type_hints(expected)
        return len(value) == len(hints) and all(map(fits, value, hints.values()))
    return all(fits(item, typing.get_args(expected)[0]) for item in value)


@pytest.mark.parametrize("version", [0, VERSION + 1, -1, True, 1.0, "1", None, [], b"\1"])
def test_another_version_is_refused(version: Any) -> None:
    assert reason_of(FROM_KEY, packed(version, "Beat", 3)) == "control_of_unknown_version"


@pytest.mark.parametrize("kind", ["", "beat", "Beat\0", "Codec", "__class__", 7, None, [], b"Beat", ["Beat"]])
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    assert reason_of(FROM_KEY, packed(VERSION, kind, 3)) == "control_of_unknown_kind"


def test_what_one_side_says_the_other_may_not() -> None:
    for codec, kinds in SETS:
        for other, others in SETS:
            for kind in set(others) - set(kinds):
                hello = other.pack(simplest(kind))
                assert reason_of(codec, hello) == "control_of_unknown_kind", kind


def test_only_questions_and_answers_go_both_ways() -> None:
    shared = [set(a) & set(b) for _, a in SETS for _, b in SETS if a is not b]
    assert set().union(*shared) == {questions.StatusQuery}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # never used in msgpack
        packed(),
        packed(VERSION),
        msgpack.packb(VERSION),
        msgpack.packb({"version": 1}),
        packed(VERSION, "Beat", 3) + b"\0",  # something after the end
        packed(VERSION, "Beat", 3)[:-1],
        b"\xdd\xff\xff\xff\xff",  # an array said to have four billion elements
        b"\xc6\xff\xff\xff\xff",  # bytes said to be 4 GiB
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000,  # arrays in arrays
        b"\x93\x01\xa4Beat\xc7\x01\x05\x00",  # an extension type
        b"\x93\x01\xa2\xff\xfe\x03",  # a string that isn't UTF-8
        packed(VERSION, "Beat", {1: 2}),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    for codec, _ in SETS:
        assert reason_of(codec, data) == "control_malformed"


def test_a_timestamp_extension_is_refused() -> None:
    assert reason_of(FROM_KEY, packed(VERSION, "Beat", msgpack.Timestamp(1, 2))) == "control_malformed"


@given(st.binary(max_size=200))
def test_garbage_is_refused_by_everyone(data: bytes) -> None:
    for codec, _ in SETS:
        survives(codec, data)


@pytest.mark.parametrize(("codec", "kind"), KINDS, ids=IDS)
@settings(max_examples=12)
@given(st.data())
def test_damage_is_refused_or_makes_another_message(codec: Codec[Any], kind: type, data: st.DataObject) -> None:
    frame = bytearray(codec.pack(data.draw(of_kind(kind))))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    survives(codec, bytes(frame))


@given(st.lists(anything, max_size=12), st.sampled_from(KINDS))
def test_the_right_head_with_any_body_is_refused_or_a_message(body: list[Any], kind: tuple[Codec[Any], type]) -> None:
    survives(kind[0], packed(VERSION, kind[1].__name__, *body))


def survives(codec: Codec[Any], data: bytes) -> None:
    """A message or BadControl; and what is a message means the same when it is packed again."""
    try:
        message = codec.unpack_untrusted(data)
    except BadControl as bad:
        reason = bad.reason
    else:
        reason = ""
        assert repr(codec.unpack_untrusted(codec.pack(message))) == repr(message)
    assert reason in {"", *REASONS}


def test_no_message_has_a_place_for_a_secret() -> None:
    """Session keys go by `handover`, long-term ones go nowhere."""
    names = {field.name for _, kinds in SETS for kind in kinds for field in fields(kind)}
    names |= {field.name for kind in (session_keys.Grant, session_keys.WorkerHello) for field in fields(kind)}
    assert {name for name in names if "key" in name.split("_")} == {"public_key"}
    assert not {name for name in names if "secret" in name or "psk" in name or "private" in name}


@pytest.mark.parametrize(
    ("number", "arrives"), [(1 << 64, (1 << 64) - 1), (1 << 900, (1 << 64) - 1), (-(1 << 64), -(1 << 63))]
)
def test_a_number_beyond_64_bits_becomes_the_nearest(number: int, arrives: int) -> None:
    message = telemetry.PeerTraffic((telemetry.Traffic(bytes(32), number, 5),))
    assert FROM_STAGE.unpack_untrusted(FROM_STAGE.pack(message)) == telemetry.PeerTraffic(
        (telemetry.Traffic(bytes(32), arrives, 5),)
    )


def test_text_of_a_file_that_is_no_utf_8_arrives_as_its_escape() -> None:
    """A reload of a file with a hook in Latin-1 once killed key-service, once for each try."""

    def status(changed: str) -> EventsStatus:
        return EventsStatus((Event("reloaded", 1, changes=(changed, "+ MTU 1400")),), 1, lost=False)

    assert TO_STATUS.unpack_untrusted(TO_STATUS.pack(status("+ PostUp echo \udcfc"))) == status("+ PostUp echo \\udcfc")
