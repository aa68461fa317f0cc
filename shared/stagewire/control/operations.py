"""Puts operations into JSON and reads them: those of the command now, of other clients later. `docs/schema` has the schema.

{"version": 1, "do": "RenamePeer", "peer": "phone", "name": "old phone"}
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from typing import Any, Final, get_args, get_origin, get_type_hints

from stagewire.config.operations import MAX_TEXT, Operation

VERSION: Final = 1
_KINDS: Final[Mapping[str, type]] = {kind.__name__: kind for kind in Operation.__args__}


class BadOperation(ValueError):  # noqa: N818 - it is the client's mistake
    """Says in a line what is wrong with an operation; shows none of its values."""


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
    operation: Operation = _read(_KINDS[kind], rest, "")
    return operation


def _read(kind: Any, said: object, where: str, most: int = MAX_TEXT) -> Any:
    """Reads a value. `where` is its field, such as `peers[0].name`; an empty text is the operation itself."""
    if is_dataclass(kind):
        return _object(kind, said, where)
    if get_origin(kind) is tuple:
        if not isinstance(said, (list, tuple)):
            raise BadOperation(f"{where} must be a list")
        return tuple(_read(get_args(kind)[0], each, f"{where}[{number}]") for number, each in enumerate(said))
    if type(said) is not kind:
        raise BadOperation(f"{where} must be {_WORDS[kind]}")
    if isinstance(said, str) and (len(said) > most or "\n" in said or "\0" in said):
        raise BadOperation(f"{where} must be one line of at most {most} letters")
    return said


def _object(kind: Any, said: object, where: str) -> Any:
    if not isinstance(said, dict):
        raise BadOperation(f"{where} must be an object")
    hints = get_type_hints(kind)
    if unknown := sorted(str(key)[:40] for key in said if key not in hints):
        raise BadOperation(f"{where or 'the operation'} has no field {unknown[0]!r}")
    values = {}
    for each in fields(kind):
        if each.name in said:
            place = f"{where}.{each.name}" if where else each.name
            values[each.name] = _read(hints[each.name], said[each.name], place, _most(each))
        elif each.default is MISSING:
            raise BadOperation(f"{where or 'the operation'} lacks {each.name}")
    return kind(**values)


def _most(each: Field[Any]) -> int:
    """Returns how many letters a field may have."""
    return int(each.metadata.get("most", MAX_TEXT))


_WORDS: Final = {str: "a text", bool: "true or false"}


# --- the schema --------------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of all operations."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An operation on a gateway's peers",
        "oneOf": [_schema(kind, name) for name, kind in _KINDS.items()],
    }


def _schema(kind: Any, name: str = "", most: int = MAX_TEXT) -> dict[str, Any]:
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(get_args(kind)[0])}
    if not is_dataclass(kind):
        return {"type": "boolean"} if kind is bool else {"type": "string", "maxLength": most}
    hints = get_type_hints(kind)
    properties: dict[str, Any] = {each.name: _schema(hints[each.name], most=_most(each)) for each in fields(kind)}
    required = [each.name for each in fields(kind) if each.default is MISSING]
    if name:
        properties = {"version": {"const": VERSION}, "do": {"const": name}, **properties}
        required = ["version", "do", *required]
    says = {"description": kind.__doc__.partition("\n")[0]} if kind.__doc__ else {}
    return {**says, "type": "object", "properties": properties, "required": required, "additionalProperties": False}
