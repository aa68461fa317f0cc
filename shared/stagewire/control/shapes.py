"""Reads dataclasses out of JSON, each field by its type, and writes the schema of that JSON.

A field's `most` in its metadata bounds a text's letters, or a number.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Final, get_args, get_origin, get_type_hints

from stagewire.config.operations import MAX_TEXT


class BadOperation(ValueError):  # noqa: N818 - it is the client's mistake
    """Says in a line what is wrong with an operation; shows none of its values."""


def read(kind: Any, said: object, where: str, most: int = MAX_TEXT) -> Any:
    """Reads a value. `where` is its field, such as `peers[0].name`; an empty text is the operation itself."""
    if is_dataclass(kind):
        return _object(kind, said, where)
    if get_origin(kind) is tuple:
        if not isinstance(said, (list, tuple)):
            raise BadOperation(f"{where} must be a list")
        return tuple(read(get_args(kind)[0], each, f"{where}[{number}]") for number, each in enumerate(said))
    if type(said) is not kind:
        raise BadOperation(f"{where} must be {_WORDS[kind]}")
    if isinstance(said, int) and not isinstance(said, bool) and not 0 <= said <= most:
        raise BadOperation(f"{where} must be between 0 and {most}")
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
            values[each.name] = read(hints[each.name], said[each.name], place, _most(each))
        elif each.default is MISSING:
            raise BadOperation(f"{where or 'the operation'} lacks {each.name}")
    return kind(**values)


def _most(each: Field[Any]) -> int:
    """Returns how many letters a field may have."""
    return int(each.metadata.get("most", MAX_TEXT))


_WORDS: Final = {str: "a text", bool: "true or false", int: "a whole number"}


def schema(kind: Any, constants: Mapping[str, object] | None = None, most: int = MAX_TEXT) -> dict[str, Any]:
    """Returns the JSON Schema of values of a kind; `constants` are the fields of an object that each object has."""
    if get_origin(kind) is tuple:
        return {"type": "array", "items": schema(get_args(kind)[0])}
    if not is_dataclass(kind):
        if kind is int:
            return {"type": "integer", "minimum": 0, "maximum": most}
        return {"type": "boolean"} if kind is bool else {"type": "string", "maxLength": most}
    hints = get_type_hints(kind)
    properties: dict[str, Any] = {each.name: schema(hints[each.name], most=_most(each)) for each in fields(kind)}
    required = [each.name for each in fields(kind) if each.default is MISSING]
    if constants:
        properties = {name: {"const": value} for name, value in constants.items()} | properties
        required = [*constants, *required]
    says = {"description": kind.__doc__.partition("\n")[0]} if kind.__doc__ else {}
    return {**says, "type": "object", "properties": properties, "required": required, "additionalProperties": False}
