"""Puts operations into JSON and reads them: those of the command now, of other clients later. `docs/schema` has the schema.

{"version": 1, "do": "RenamePeer", "peer": "phone", "name": "old phone"}
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from stagewire.config.operations import Operation
from stagewire.control import shapes
from stagewire.control.shapes import BadOperation

VERSION: Final = 1
_KINDS: Final[Mapping[str, type]] = {kind.__name__: kind for kind in Operation.__args__}


def to_json(operation: Operation) -> dict[str, Any]:
    """Returns an operation as an object for `json.dumps`."""
    return {"version": VERSION, "do": type(operation).__name__, **asdict(operation)}


def from_json_untrusted(said: object) -> Operation:
    """Reads what `json.loads` made of a client's text. Raises BadOperation."""
    if not isinstance(said, dict):
        raise BadOperation("an operation is an object")
    if (version := said.get("version")) != VERSION or isinstance(version, bool):
        raise BadOperation(f"the operation has another version than {VERSION}: use a client of the gateway's version")
    kind = said.get("do")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise BadOperation(f"`do` must be one of {', '.join(_KINDS)}")
    rest = {key: value for key, value in said.items() if key not in {"version", "do"}}
    operation: Operation = shapes.read(_KINDS[kind], rest, "")
    return operation


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of all operations."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An operation on a gateway's peers",
        "oneOf": [shapes.schema(kind, {"version": VERSION, "do": name}) for name, kind in _KINDS.items()],
    }
