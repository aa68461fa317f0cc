"""Finds in a process's log why it can't work, and adds a known remedy."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stagewire import logs
from stagewire.environment import Environment

_REASON: Final = re.compile(r' (?:reason|mistake)=(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_ESCAPE: Final = re.compile(r"\\(.)")
_OTHERS_MAY_ENTER: Final = 0o001


def last(lines: Sequence[str]) -> str | None:
    """Returns the last error of a log; None when the log has none."""
    return next((line for line in reversed(lines) if "level=error" in line), None)


def reason(line: str, environment: Environment) -> str:
    """Returns the reason that an error's line gives, in one line."""
    found = _REASON.search(line)
    if found is None:
        return logs.cleaned(line)
    text = found[2] or _ESCAPE.sub(lambda escape: " " if escape[1] in "nrt" else escape[1], found[1] or "")
    text = logs.cleaned(text)
    if "Permission denied" in text and (closed := _closed_folder(environment)):
        return f"{text}; the services can't enter {closed}: chmod o+x {closed}"
    return text


def _closed_folder(environment: Environment) -> Path | None:
    """Returns the outermost folder on the way to the services' folders that only its owner may enter."""
    folders = [folder for own in (environment.run, environment.state) for folder in reversed(own.parents)]
    return next((each for each in folders if each.is_dir() and not each.stat().st_mode & _OTHERS_MAY_ENTER), None)
