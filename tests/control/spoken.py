"""Messages to say: one of each kind, with as little in it as makes sense."""

import typing
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any

from stagewire.control.chains import ChainJudged, Nested
from stagewire.control.messages import (
    FromKey,
    FromStage,
    Resolved,
)
from stagewire.proto.endpoint import Endpoint
from stagewire.proto.events import EndpointMoved

PLAIN = (int, float, bool, str, bytes)
PLACE = Endpoint(bytes((192, 0, 2, 1)), 51820).pack()


def simplest(kind: type) -> Any:
    """A message of zeros."""
    hints = typing.get_type_hints(kind)
    return kind(*[_simplest_value(hints[field.name]) for field in fields(kind)])


def _simplest_value(expected: Any) -> Any:
    if expected in PLAIN:
        return expected()
    if is_dataclass(expected):
        assert isinstance(expected, type)
        return simplest(expected)
    return None if isinstance(expected, UnionType) else ()


def sensible(kind: type) -> Any:
    """One that a reader takes for meant."""
    message = simplest(kind)
    if isinstance(message, EndpointMoved | Nested | ChainJudged):
        return replace(message, endpoint=PLACE)
    return replace(message, error="no answer") if isinstance(message, Resolved) else message


TO_KEY: list[type] = list(FromStage.__args__)
FROM_KEY: list[type] = list(FromKey.__args__)
