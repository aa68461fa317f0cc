"""Operations as JSON: read back as they were written, refused in a line otherwise, and described by a schema."""

import json
from pathlib import Path

import pytest

from stagewire.config.operations import (
    AddPeers,
    ExpirePeers,
    NewPeer,
    Operation,
    RotatePeer,
    SetPeer,
    SwitchPeers,
)
from stagewire.config.settings import Setting
from stagewire.control.operations import from_json_untrusted, schema, to_json
from stagewire.control.shapes import BadOperation

SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "operations.json"


@pytest.mark.parametrize(
    "operation",
    [
        AddPeers((NewPeer("a", "b", "c", ("d",), ("e", "f"), (Setting("g", "h"),)), NewPeer("i", "j"))),
        SwitchPeers(("a", "b"), on=True),
        SetPeer("a", ()),
        RotatePeer("a", "b"),
        ExpirePeers(),
    ],
)
def test_what_is_written_is_read(operation: Operation) -> None:
    assert from_json_untrusted(json.loads(json.dumps(to_json(operation)))) == operation


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([], "is an object"),
        ({"do": "SetPeer"}, "another version than 1"),
        ({"version": True, "do": "SetPeer"}, "another version than 1"),
        ({"version": 2, "do": "SetPeer"}, "another version than 1"),
        ({"version": 1, "do": "Format"}, "`do` must be one of"),
        ({"version": 1, "do": ["SetPeer"]}, "`do` must be one of"),
        ({"version": 1, "do": "RenamePeer", "peer": "a"}, "the operation lacks name"),
        ({"version": 1, "do": "RenamePeer", "peer": "a", "name": 5}, "^name must be a text"),
        ({"version": 1, "do": "RenamePeer", "peer": "a", "name": "b\nc"}, "must be one line"),
        ({"version": 1, "do": "RenamePeer", "peer": "a", "name": "b" * 5000}, "must be one line"),
        ({"version": 1, "do": "RenamePeer", "peer": "a", "name": "b", "hook": "c"}, "has no field 'hook'"),
        ({"version": 1, "do": "SwitchPeers", "peers": "ab", "on": True}, "^peers must be a list"),
        ({"version": 1, "do": "SwitchPeers", "peers": ["a"], "on": 1}, "^on must be true or false"),
        ({"version": 1, "do": "AddPeers", "peers": [5]}, r"^peers\[0\] must be an object"),
    ],
)
def test_bad_input_is_refused_in_a_line(said: object, why: str) -> None:
    with pytest.raises(BadOperation, match=why) as bad:
        from_json_untrusted(said)
    assert "\n" not in str(bad.value)


def test_the_schema_in_docs_is_the_one_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == schema(), "write it anew from stagewire.control.operations.schema()"
