"""Shows what `make prose` complains about, and what it lets pass."""

from pathlib import Path

import pytest
from tests import prose

LONG = " ".join(["word"] * 31)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("A sentence. Another one.\n", []),
        (f"Short.\n\n{LONG}.\n", [3]),
        (f"{LONG[:99]}. Then {LONG[:99]}.\n", []),
        (f"```\n{LONG}\n```\n\n    {LONG}\n\n| {LONG} |\n\n# {LONG}\n", []),
        (f"- Short.\n- {LONG}.\n", [2]),
        ("Somebody may have wiped the folder.\n", [1]),
        (f"A code span counts as a word: `{LONG}`.\n", []),
    ],
)
def test_sentences_of_a_page(tmp_path: Path, text: str, lines: list[int]) -> None:
    (page := tmp_path / "page.md").write_text(text)
    assert [line for line, _ in prose.in_document(page)] == lines


@pytest.mark.parametrize(
    "docstring", ["Counts packets by reason.", "Re-checks every worker.", "Names every stage once."]
)
def test_a_verb_in_the_third_person(docstring: str) -> None:
    assert prose.begins_with_verb(docstring)


@pytest.mark.parametrize(
    "docstring", ["The plain one.", "Count packets.", "Whose it is.", "Packets that wait.", "`up`: does."]
)
def test_no_verb(docstring: str) -> None:
    assert not prose.begins_with_verb(docstring)


def test_words_of_a_source_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    (source := tmp_path / "source.py").write_text(
        '"""Holds one function."""\n\nX = 1\n"""s; 20 us of them."""\n\n\ndef when() -> None:\n    """When."""  # 3 ms\n'
    )
    assert [line for line, _ in sorted(prose.in_code(source))] == [4, 7, 8]
