"""Operating pages as their reader sees them: blocks of commands, each said to be typed on one machine."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
INDEX: Final = ROOT / "docs/OPERATING.md"
PROGRAMS: Final = (
    "stagewire",
    "supervisorctl",
    "supervisord",
    "systemctl",
    "wg",
    "wg-quick",
    "ip",
    "podman",
    "make",
    "pip",
)
FOLDER: Final = ROOT / "docs/operating"
_FENCE: Final = re.compile(
    r"(?:^<!-- run by (?P<elsewhere>\S+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_WHERE: Final = re.compile(r"# on the (.+)")


@dataclass(frozen=True, slots=True)
class Block:
    """Commands. `machine` is the first line's; `elsewhere` is the test that runs them instead of the page's."""

    page: str
    machine: str
    text: str
    elsewhere: str | None


def pages() -> dict[str, list[Block]]:
    """All blocks of commands, by page."""
    return {path.stem: blocks(path) for path in (*sorted(FOLDER.glob("*.md")), INDEX)}


def blocks(path: Path) -> list[Block]:
    """Those of one page. Raises ValueError for one that doesn't say where it is typed."""
    found = []
    for match in _FENCE.finditer(path.read_text()):
        if match["kind"] != "sh":
            continue
        where = _WHERE.fullmatch(match["text"].partition("\n")[0])
        if not where and not match["elsewhere"]:
            raise ValueError(f"{path.name}: a block doesn't say where it is typed: {match['text']}")
        found.append(Block(path.stem, where[1] if where else "", match["text"], match["elsewhere"]))
    return found


def unfenced(path: Path) -> list[str]:
    """Lines that look like commands in another block than one of commands."""
    text = _FENCE.sub(lambda match: "" if match["kind"] == "sh" else match["text"], path.read_text())
    return re.findall(rf"^    (?:\$ |[A-Z_]+=\S+ )?(?:{'|'.join(PROGRAMS)}) .*", text, re.MULTILINE)
