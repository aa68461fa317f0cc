"""Checks values against the JSON Schemas in docs/schema, with as much of JSON Schema as these use."""

import json
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[1] / "docs/schema"
_KINDS: Final = {
    "string": str, "boolean": bool, "integer": int, "number": (int, float), "array": list, "object": dict,
    "null": type(None),
}  # fmt: skip


def misfit(value: Any, schema: dict[str, Any], at: str = "$") -> str:
    """Names the first place that isn't as the schema says; empty if all is."""
    if "$ref" in schema:
        return misfit(value, json.loads((FOLDER / schema["$ref"]).read_text()), at)
    if "oneOf" in schema:
        found = [misfit(value, each, at) for each in schema["oneOf"]]
        return "" if found.count("") == 1 else f"{at}: fits {found.count('')} of: {'; '.join(found)}"
    if "const" in schema:
        return "" if value == schema["const"] and type(value) is type(schema["const"]) else f"{at}: {value!r}"
    if "enum" in schema:
        return "" if value in schema["enum"] else f"{at}: {value!r} is none of {schema['enum']}"
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_is(value, name) for name in names):
        return f"{at}: {value!r} is no {' or '.join(names)}"
    if isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{at}: {value} is out of bounds"
    if isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        return f"{at}: too long"
    if isinstance(value, list):
        return next(filter(None, (misfit(each, schema["items"], f"{at}[{n}]") for n, each in enumerate(value))), "")
    return _of_object(value, schema, at) if isinstance(value, dict) else ""


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _KINDS[name])  # type: ignore[arg-type]


def _of_object(value: dict[str, Any], schema: dict[str, Any], at: str) -> str:
    known, others = schema.get("properties", {}), schema["additionalProperties"]
    if lacking := set(schema.get("required", ())) - set(value):
        return f"{at}: lacks {sorted(lacking)}"
    if others is False and (more := set(value) - set(known)):
        return f"{at}: {sorted(more)} are not described"
    found = (misfit(each, known.get(name, others), f"{at}.{name}") for name, each in value.items())
    return next(filter(None, found), "")


def schema(name: str) -> dict[str, Any]:
    """Reads a schema."""
    read = json.loads((FOLDER / f"{name}.json").read_text())
    assert isinstance(read, dict)
    return read


def check(value: Any, name: str) -> None:
    """Fails unless a value is as `docs/schema/NAME.json` says, and the schema refuses one without a version."""
    said = json.loads(json.dumps(value))
    wrong = misfit(said, schema(name))
    assert not wrong, wrong
    assert misfit({key: each for key, each in said.items() if key != "version"}, schema(name)) != ""
