"""Packs frozen dataclasses as msgpack. Checks the type of every field when it unpacks them.

A message is `[version, kind, field, field ...]`: the kind is the class's name, the fields are in the class's order.
A field may be int, float, bool, str or bytes, or a dataclass, which travels as an array of its fields. It may also be a
tuple of one such type (`tuple[int, ...]`), or such a type or None (`int | None`). Sequences arrive as tuples, so that a
received message equals the message that was sent.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache, partial
from operator import attrgetter, itemgetter
from types import NoneType, UnionType
from typing import Any, Final, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgpack

M = TypeVar("M")


class BadControl(Exception):  # noqa: N818 - it is the sender's error
    """Reports bytes that are no message of the set. `reason` names the counter of such bytes.

    `version` is the sender's version, if it is not ours.
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
        self._kinds: dict[str, Check] = {kind.__name__: _builder(kind) for kind in kinds}

    def pack(self, message: M) -> bytes:
        r"""Packs a message. A number beyond 64 bits, which sums of others' counts may reach, becomes the nearest.

        A byte of a file that is no UTF-8, such as in a hook, becomes its escape (`\udcff`). Hot.
        """
        parts = [self._version, type(message).__name__, *values(message)]
        try:
            packed: bytes = msgpack.packb(parts, default=_carried)
        except UnicodeEncodeError:
            packed = msgpack.packb(parts, default=_carried, unicode_errors="backslashreplace")
        return packed

    def unpack_untrusted(self, data: bytes) -> M:
        """Unpacks a message. Raises BadControl, and nothing else. Hot."""
        try:
            parts = msgpack.unpackb(data, use_list=False, max_ext_len=0, strict_map_key=True)
        except Exception:  # noqa: BLE001 - msgpack raises a dozen kinds; the bytes are bad in any of them
            raise BadControl("control_malformed") from None
        if not isinstance(parts, tuple) or len(parts) < 2:
            raise BadControl("control_malformed")
        if type(parts[0]) is not int or parts[0] != self._version:  # True and 1.0 are equal to 1
            raise BadControl("control_of_unknown_version", parts[0] if type(parts[0]) is int else None)
        build = self._kinds.get(parts[1]) if isinstance(parts[1], str) else None
        if build is None:
            raise BadControl("control_of_unknown_kind")
        message: M = build(parts[2:])
        return message


def checked(kind: type[M], values: tuple[Any, ...]) -> M:
    """Makes a dataclass of the values of its fields, in order. Raises BadControl for values of other types."""
    made: M = _kept_builder(kind)(values)  # type: ignore[arg-type]  # mypy takes no class for hashable
    return made


@cache
def _kept_builder(kind: type) -> "Check":
    return _builder(kind)


Check = Callable[[Any], Any]
"""Turns the received value of a field, or the values of all fields, into the result; raises BadControl."""

_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_PLAIN: Final = (int, float, bool, str, bytes)


def values(message: Any) -> tuple[Any, ...]:
    """Returns the values of a dataclass's fields, in order; dataclasses inside stay as they are."""
    return _getter(type(message))(message)  # type: ignore[arg-type]  # mypy takes no class for hashable


@cache
def _getter(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    names = tuple(kind.__dataclass_fields__)
    # attrgetter returns a tuple for two names or more.
    return attrgetter(*names) if len(names) > 1 else lambda message: tuple(getattr(message, name) for name in names)


def _carried(value: Any) -> Any:
    """Turns what msgpack can't carry into what it can: a dataclass, or a number beyond 64 bits."""
    return min(max(value, _LEAST), _MOST) if type(value) is int else values(value)


def _builder(kind: type) -> Check:
    hints = get_type_hints(kind)
    shape = tuple(hints[field.name] for field in fields(kind))
    if all(expected in _PLAIN for expected in shape):
        return partial(_build_plain, kind, shape)
    plain = [index for index, expected in enumerate(shape) if expected in _PLAIN]
    # With one index, itemgetter returns no tuple.
    of_plain = itemgetter(*plain) if len(plain) > 1 else lambda values: tuple(values[index] for index in plain)
    others = {index: _check_of(expected) for index, expected in enumerate(shape) if index not in plain}
    return partial(_build, kind, len(shape), of_plain, tuple(shape[index] for index in plain), others)


def _build_plain(kind: type, shape: tuple[type, ...], values: Any) -> Any:
    # Nearly every message is plain, so one comparison checks all its types.
    if type(values) is not tuple or tuple(map(type, values)) != shape:
        raise BadControl("control_malformed")
    return kind(*values)


def _build(
    kind: type,
    length: int,
    of_plain: Callable[[Any], Any],
    shape: tuple[type, ...],
    others: dict[int, Check],
    values: Any,
) -> Any:
    if type(values) is not tuple or len(values) != length or tuple(map(type, of_plain(values))) != shape:
        raise BadControl("control_malformed")
    checked = list(values)
    for index, check in others.items():
        checked[index] = check(values[index])
    return kind(*checked)


def _check_of(expected: Any) -> Check:
    if expected in _PLAIN:
        return partial(_check_plain, expected)
    if isinstance(expected, UnionType):
        [one] = (each for each in get_args(expected) if each is not NoneType)
        return partial(_check_optional, _check_of(one))
    if get_origin(expected) is not tuple:
        return _builder(expected)
    element, _ = get_args(expected)
    if element in _PLAIN:
        return partial(_check_plains, element)
    return partial(_check_each, _check_of(element))


def _check_plain(expected: type, value: Any) -> Any:
    if type(value) is not expected:
        raise BadControl("control_malformed")
    return value


def _check_optional(check: Check, value: Any) -> Any:
    return None if value is None else check(value)


def _check_plains(element: type, value: Any) -> Any:
    if type(value) is not tuple or not {element}.issuperset(map(type, value)):
        raise BadControl("control_malformed")
    return value


def _check_each(check: Check, value: Any) -> Any:
    if type(value) is not tuple:
        raise BadControl("control_malformed")
    return tuple(map(check, value))
