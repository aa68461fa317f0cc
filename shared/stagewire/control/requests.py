"""Puts what a command asks of key-service into JSON and reads it. `docs/schema/requests.json` has the schema.

{"version": 1, "do": "apply", "dry_run": false, "confirm": 60, "trial": "…", "by": "anna", "length": N}

`length` is the size of a file's text that follows. `by` is a name that the client gives itself. A request without a version
counts as version 1: a client that runs since before an upgrade may say none.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from stagewire.config.operations import Operation
from stagewire.control import operations, shapes
from stagewire.control.shapes import BadOperation
from stagewire.limits import MAX_ACCEPTED, MAX_TRIAL

VERSION: Final = 1
_MAX_NAME: Final = 64


@dataclass(frozen=True, slots=True)
class Apply:
    """Puts the file's text in force. With `confirm`, all goes back unless it is confirmed within so many seconds."""

    dry_run: bool = False
    confirm: int = field(default=0, metadata={"most": MAX_TRIAL})
    trial: str = field(default="", metadata={"most": _MAX_NAME})


@dataclass(frozen=True, slots=True)
class Confirm:
    """Keeps what was applied."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """Asks how a trial stands."""

    trial: str = field(default="", metadata={"most": _MAX_NAME})


@dataclass(frozen=True, slots=True)
class Operate:
    """Carries an operation out on the file's text, which must be in force."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Adopt:
    """Puts a text in force that differs in peers alone."""


@dataclass(frozen=True, slots=True)
class BackedUp:
    """Notes a backup in the audit."""

    output: str


Request = Apply | Confirm | Unconfirmed | Operate | Adopt | BackedUp
_KINDS: Final[dict[str, type[Request]]] = {
    "apply": Apply, "confirm": Confirm, "unconfirmed": Unconfirmed, "operate": Operate, "adopt": Adopt,
    "backed_up": BackedUp,
}  # fmt: skip
_NAMES: Final = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class _Frame:
    by: str = field(default="", metadata={"most": _MAX_NAME})
    length: int = field(default=0, metadata={"most": MAX_ACCEPTED})


@dataclass(frozen=True, slots=True)
class Asked:
    """Holds a request with its sender's name and the length of the text that follows."""

    request: Request
    by: str
    length: int


def to_json(request: Request, by: str, length: int) -> dict[str, Any]:
    """Returns a request as an object for `json.dumps`."""
    body = {"operation": operations.to_json(request.operation)} if isinstance(request, Operate) else asdict(request)
    return {"version": VERSION, "do": _NAMES[type(request)], **body, "by": by[:_MAX_NAME], "length": length}


def from_json_untrusted(said: object) -> Asked:
    """Reads what `json.loads` made of a client's line. Raises BadOperation."""
    if not isinstance(said, dict):
        raise BadOperation("a request is an object")
    if type(version := said.get("version", VERSION)) is not int or version != VERSION:
        raise BadOperation(f"the request has another version than {VERSION}")
    kind = _KINDS.get(name) if isinstance(name := said.get("do"), str) else None
    if kind is None:
        raise BadOperation(f"`do` must be one of {', '.join(_KINDS)}")
    frame = shapes.read(_Frame, {key: said[key] for key in ("by", "length") if key in said}, "")
    rest = {key: value for key, value in said.items() if key not in {"version", "do", "by", "length"}}
    if kind is not Operate:
        return Asked(shapes.read(kind, rest, ""), frame.by, frame.length)
    if rest.keys() != {"operation"}:
        raise BadOperation("the request must have the field operation alone")
    return Asked(Operate(operations.from_json_untrusted(rest["operation"])), frame.by, frame.length)


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of all requests."""
    frame = shapes.schema(_Frame)["properties"]
    kinds = []
    for name, kind in _KINDS.items():
        constants = {"version": VERSION, "do": name}
        if kind is Operate:
            one = shapes.schema(Adopt, constants) | {"description": (Operate.__doc__ or "").partition("\n")[0]}
            one["properties"]["operation"] = {"$ref": "operations.json"}
            one["required"].append("operation")
        else:
            one = shapes.schema(kind, constants)
        one["properties"] |= frame
        kinds.append(one)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A command's request to key-service",
        "oneOf": kinds,
    }
