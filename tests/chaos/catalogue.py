"""Lists all kinds of faults."""

from typing import Final

from tests.chaos import kills, load, supervision, surroundings
from tests.chaos.house import Kind

KINDS: Final[tuple[Kind, ...]] = (*kills.KINDS, *supervision.KINDS, *surroundings.KINDS, *load.KINDS)


def kinds(names: str) -> list[Kind]:
    """Returns the named kinds; names have commas between. Returns [] for an empty text. Raises ValueError."""
    wanted = [name for name in names.split(",") if name]
    known = {kind.name: kind for kind in KINDS}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no such kind of fault: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]
