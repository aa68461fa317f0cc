"""Frozen dataclasses <-> msgpack, every field's type checked on the way in.

A message is `[version, kind, field, field ...]`; the kind is the class's name, the fields are in the class's order.
Field types may be int, float, bool, str, bytes, tuples of one such type (`tuple[int, ...]`), and dataclasses, which
travel as arrays of their fields. Sequences arrive as tuples, so that what was sent equals what is received.
"""

from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgpack

M = TypeVar("M")


class BadControl(Exception):  # noqa: N818 - it is the sender's error
    """Bytes that are no message of the set. `reason` is the name of the counter that they add to.

    `version` is the one they are of, where that is what is wrong.
    """

    def __init__(self, reason: str, version: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.packets = 1
        self.version = version


class Codec(Generic[M]):
    """Packs and unpacks a closed set of messages of one version."""

    def __init__(self, version: int, kinds: Iterable[type[M]]) -> None:
        self._version = version
        self._kinds = {kind.__name__: (kind, _shape(kind)) for kind in kinds}

    def pack(self, message: M) -> bytes:
        """The bytes of a message."""
        body = astuple(message)  # type: ignore[call-overload]
        packed: bytes = msgpack.packb([self._version, type(message).__name__, *body])
        return packed

    def unpack_untrusted(self, data: bytes) -> M:
        """The message of some bytes. Raises BadControl, and nothing else."""
        try:
            parts = msgpack.unpackb(data, use_list=False, max_ext_len=0, strict_map_key=True)
        except Exception:  # noqa: BLE001 - msgpack raises a dozen kinds; the bytes are bad in any of them
            raise BadControl("control_malformed") from None
        if not isinstance(parts, tuple) or len(parts) < 2:
            raise BadControl("control_malformed")
        if type(parts[0]) is not int or parts[0] != self._version:  # True and 1.0 are equal to 1
            raise BadControl("control_of_unknown_version", parts[0] if type(parts[0]) is int else None)
        kind = self._kinds.get(parts[1]) if isinstance(parts[1], str) else None
        if kind is None:
            raise BadControl("control_of_unknown_kind")
        message: M = _build(kind[0], kind[1], parts[2:])
        return message


Shape = list[Any]


def _shape(kind: type) -> Shape:
    hints = get_type_hints(kind)
    return [hints[field.name] for field in fields(kind)]


def _build(kind: type, shape: Shape, values: tuple[Any, ...]) -> Any:
    if len(values) != len(shape):
        raise BadControl("control_malformed")
    return kind(*map(_check, shape, values))


def _check(expected: Any, value: Any) -> Any:
    if get_origin(expected) is tuple:
        element, _ = get_args(expected)
        if type(value) is not tuple:
            raise BadControl("control_malformed")
        if element in (int, str, bytes):
            if not all(type(item) is element for item in value):
                raise BadControl("control_malformed")
            return value
        return tuple(_check(element, item) for item in value)
    if expected not in _PLAIN:
        if type(value) is not tuple:
            raise BadControl("control_malformed")
        return _build(expected, _shape_of(expected), value)
    if type(value) is not expected:
        raise BadControl("control_malformed")
    return value


_PLAIN = (int, float, bool, str, bytes)
_shapes: dict[type, Shape] = {}


def _shape_of(kind: type) -> Shape:
    shape = _shapes.get(kind)
    if shape is None:
        shape = _shapes[kind] = _shape(kind)
    return shape
