"""Decides between Python and compiled modules, for the workers and for the stages around them."""

import sys
from importlib import import_module
from typing import Any, Final

PLAIN: Final = "plain"
COMPILED: Final = "compiled"
CANNOT: Final = "the compiled kernel can't be loaded"


def decide(wanted: str, lacking: str) -> tuple[str, str]:
    """Returns PLAIN or COMPILED, and tells the operator why. An empty `wanted` means compiled where it can be loaded.

    `lacking` says why the compiled modules can't be loaded, empty if they can. If they are wanted, raises ImportError
    with words for the operator.
    """
    if wanted == PLAIN:
        return PLAIN, "as STAGEWIRE_KERNEL says"
    if lacking and wanted == COMPILED:
        raise ImportError(f"STAGEWIRE_KERNEL: {CANNOT}: {lacking}")
    if lacking:
        return PLAIN, f"{CANNOT}: {lacking}"
    return COMPILED, "as STAGEWIRE_KERNEL says" if wanted == COMPILED else "by default"


def why_not(error: ImportError | None) -> str:
    """Says why compiled modules can't be loaded, empty if they can. `error` is what their import raised."""
    if error is not None:
        return f"it isn't built here: {error}"
    return "" if sys.byteorder == "little" else "it needs a little-endian machine"


def load(wanted: str, module: str) -> tuple[Any, str]:
    """Returns a compiled module, None for Python, and what `status` says of it. Raises ImportError as `decide` does."""
    found, lacking = None, ""
    if wanted != PLAIN:
        try:
            found, lacking = import_module(module), why_not(None)
        except ImportError as error:
            lacking = why_not(error)
    name, why = decide(wanted, lacking)
    return found if name == COMPILED else None, f"{name}, {why}"
