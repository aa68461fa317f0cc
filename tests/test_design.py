"""Compares docs/DESIGN.md with the code: its tree with the folders, its tables with the functions, its links with files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DESIGN = ROOT / "docs/DESIGN.md"
DECISIONS = ROOT / "docs/decisions"
MAX_LINES = {DESIGN: 200, **dict.fromkeys(DECISIONS.glob("[0-9]*.md"), 25)}
CODE = ("services", "shared", "deploy", "tests")
BEYOND_CODE = {"deploy/container", "deploy/examples", "deploy/monitoring", "deploy/systemd"}
_ENTRY = re.compile(r"[\w./]+(?:/|\.py)")


def tree() -> Iterator[str]:
    """Yields each path of the tree: a line has one or more entries, and an indent of two for each folder above."""
    block = DESIGN.read_text().partition("## Folders")[2].split("```")[1]
    above: list[str] = []
    for line in block.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for word in line.split():
            if not _ENTRY.fullmatch(word):
                break
            above = [*above[:depth], word.removesuffix("/")]
            yield "/".join(above)


def packages() -> set[str]:
    """Lists every folder with a module in it, but not the source roots themselves."""
    found = {path.parent.relative_to(ROOT) for folder in CODE for path in (ROOT / folder).rglob("*.py")}
    return {str(folder) for folder in found if len(folder.parts) > 1}


def test_each_folder_is_in_the_tree_and_each_entry_is_a_folder_or_a_module() -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "shared/stagewire").glob("[!_]*.py")}
    listed = set(tree())
    assert listed == packages() | modules | BEYOND_CODE | {"services", "deploy", "tests"}
    assert all((ROOT / entry).exists() for entry in listed)


def steps() -> list[tuple[str, str]]:
    rows = re.findall(r"^\| .* \| `([\w/]+\.py)` \| `([\w.]+)` \|$", DESIGN.read_text(), re.MULTILINE)
    assert len(rows) >= 20
    return rows


@pytest.mark.parametrize(("file", "function"), steps())
def test_each_step_of_a_packets_way_is_in_the_code(file: str, function: str) -> None:
    path = next(path for root in ("services", "shared/stagewire") if (path := ROOT / root / file).exists())
    body = ast.parse(path.read_text()).body
    *classes, name = function.split(".")
    for wanted in classes:
        body = next(node.body for node in body if isinstance(node, ast.ClassDef) and node.name == wanted)
    assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in body)


@pytest.mark.parametrize("page", [*MAX_LINES], ids=lambda page: page.name)
def test_pages_are_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= MAX_LINES[page]


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            lines = [line for line in file.read_text().splitlines() if line.startswith("#")]
            slugs = {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines}
            assert heading in slugs, target


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_each_source_that_a_page_names_exists(page: Path) -> None:
    roots = (ROOT, ROOT / "services", ROOT / "shared/stagewire")
    for name in set(re.findall(r"`([a-z_]+/[\w/]+\.(?:py|md|conf|bash|sh))`", page.read_text())):
        if name != "tests/netns.sh":  # wireguard-go's
            assert any((root / name).exists() for root in roots), name


def test_every_decision_is_in_the_index() -> None:
    index = (DECISIONS / "README.md").read_text()
    records = sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))
    assert re.findall(r"\]\((\S+\.md)\)", index) == records
    for record in records:
        text = (DECISIONS / record).read_text()
        assert text.startswith(f"# {record[:3]}: ")
        assert [word for word in ("Context", "Decision", "Consequence") if f"**{word}.**" not in text] == []


def test_the_glossary_has_at_most_25_terms() -> None:
    glossary = (ROOT / "CONTRIBUTING.md").read_text().partition("## Glossary")[2].partition("##")[0]
    terms = [line.split("|")[1].strip() for line in glossary.splitlines() if line.startswith("| ")][1:]
    assert 15 <= len(terms) <= 25
    assert len(set(terms)) == len(terms)


def test_each_test_that_the_table_of_compatibility_names_exists() -> None:
    text = (ROOT / "docs/COMPATIBILITY.md").read_text()
    modules = {path.stem: path.read_text() for path in (ROOT / "tests/system").glob("test_*.py")}
    for module, functions in re.findall(r"`(test_\w+)`(?:: ((?:`test_\w+`(?:, )?)+))?", text):
        if module in modules:
            for function in re.findall(r"\w+", functions):
                assert f"def {function}(" in modules[module], (module, function)
        else:
            assert any(f"def {module}(" in body for body in modules.values()), module
