"""Reads the fields of a record from a database or a JSON text, whose values may be anything."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from stagewire.config import values
from stagewire.config.settings import Setting
from stagewire_cli.imports.found import Unusable

_MAX_TEXT: Final = 4096


class Fields:
    """Holds one record. Each method raises Unusable for a value of another kind."""

    def __init__(self, record: object) -> None:
        if not isinstance(record, Mapping):
            raise Unusable("is no record")
        self._record: Mapping[str, Any] = record

    def __contains__(self, name: str) -> bool:
        return self._record.get(name) is not None

    def fields(self, name: str) -> "Fields":
        """Returns a record within this one; an empty one if there is none."""
        return Fields(self._record.get(name) or {})

    def items(self) -> Iterable[tuple[str, Any]]:
        return self._record.items()

    def text(self, name: str) -> str:
        """Returns a line of text; an empty one if there is none."""
        found = self._record.get(name)
        if found is None:
            return ""
        if not isinstance(found, str) or len(found) > _MAX_TEXT or any(end in found for end in "\n\r\0"):
            raise Unusable(f"{name} is no line of text")
        return found.strip()

    def number(self, name: str) -> int:
        """Returns a whole number; 0 if there is none."""
        found = self._record.get(name)
        if found is None:
            return 0
        if not isinstance(found, int) or isinstance(found, bool):
            raise Unusable(f"{name} is no whole number")
        return found

    def flag(self, name: str, *, default: bool) -> bool:
        """Returns a truth value, which databases write as 0 or 1."""
        found = self._record.get(name)
        if found is None:
            return default
        if found not in (0, 1):
            raise Unusable(f"{name} is neither true nor false")
        return bool(found)

    def texts(self, name: str) -> list[str]:
        """Returns a list of texts: a list, the JSON text of one, or words between commas."""
        found = self._record.get(name)
        if isinstance(found, str):
            found = _parsed(name, found) if found.startswith("[") else found.split(",")
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise Unusable(f"{name} is no list of texts")
        return [text for each in found if (text := each.strip())]

    def time(self, name: str) -> str:
        """Returns a time as `Expires` has it; an empty text if there is none."""
        found = self.text(name)
        if not found:
            return ""
        try:
            at = datetime.fromisoformat(found)
            return values.as_time(int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()))
        except (ValueError, OverflowError):  # such as a time zone that leads beyond the years that there are
            raise Unusable(f"{name} is no time") from None


def setting(key: str, value: object) -> tuple[Setting, ...]:
    """Makes a setting, or none of an empty value."""
    return (Setting(key, str(value)),) if value else ()


def pair(key: str, value: object) -> tuple[tuple[str, str], ...]:
    """Makes an [Interface]'s key and value, or none of an empty value."""
    return ((key, str(value)),) if value else ()


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable(f"{name} is no list of texts") from None
