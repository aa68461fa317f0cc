"""Checks words as far as a machine can: `make prose` checks the documents, `tests/prose.py --code` the code as well.

CONTRIBUTING has the rule. Each complaint is one line: file, line, what is wrong.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
LONGEST: Final = 30
"""Words of a sentence in a document; a code span counts as one."""
SHORTEST: Final = 3
"""Words of a docstring."""
CODE: Final = ("services", "shared", "deploy", "tests/bench", "tests/chaos")
FIGURES_ALLOWED: Final = tuple(f"shared/stagewire/proto/{name}.py" for name in ("constants", "ratelimit", "tai64n"))
"""Files of protocol constants, whose figures the specification fixes."""
_NO_VERBS: Final = re.compile(
    "address(es)?|always|bytes|class|columns|datagrams|deadlines|descriptors|endpoints|events|files|gateways|guards|"
    "handshakes|headers|indices|its|lines|messages|milliseconds|others|ours|packets|pairs|peers|pipes|prefixes|"
    "process(es)?|programs|rows|seconds|sessions|sockets|spares|stages|tables|this|those|timers|trains|units|whose|words|"
    "workers|yes",
    re.IGNORECASE,
)
"""Words that end in -s and begin no action. Words that can be either, such as `runs` and `names`, pass."""
_FENCE: Final = re.compile(r"^```")
_ITEM: Final = re.compile(r"^\s*(?:[-*]|\d+\.)\s+")
_END: Final = re.compile(r"(?<=[.!?])[*)\"']*\s+")
_FIGURE: Final = re.compile(r"\b\d[\d.,]*\s?(?:us|ms|µs)\b")
_VAGUE: Final = re.compile(r"\b(?:somebody|whoever|what is there)\b", re.IGNORECASE)


def documents() -> list[Path]:
    """Lists the pages for readers."""
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted(ROOT.glob("docs/**/*.md")),
    ]


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yields each paragraph and list item with its line, without code blocks, tables, quotations and headings."""
    start, words, fenced = 0, list[str](), False
    for number, line in enumerate(text.splitlines(), 1):
        fence = bool(_FENCE.match(line))
        apart = fence or fenced or not line.strip() or line.startswith(("|", "#", ">", "<!--"))
        indented = line.startswith("    ") and not words
        if apart or indented or _ITEM.match(line):
            if words:
                yield start, " ".join(words)
            words = []
        if not apart and not indented:
            start = start if words else number
            words.append(_ITEM.sub("", line).strip())
        fenced ^= fence
    if words:
        yield start, " ".join(words)


def sentences(paragraph: str) -> list[str]:
    """Cuts a paragraph, with each code span and each link's address out of the way."""
    plain = re.sub(r"`[^`]*`", "`code`", paragraph)
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    return _END.split(plain)


def in_document(path: Path) -> Iterator[tuple[int, str]]:
    """Yields a page's faults, by line."""
    for line, paragraph in paragraphs(path.read_text()):
        for sentence in sentences(paragraph):
            words = [word for word in sentence.split() if re.search(r"\w", word)]
            if len(words) > LONGEST:
                yield line, f"a sentence has {len(words)} words, {LONGEST} are allowed: {' '.join(words[:8])} …"
            if vague := _VAGUE.search(sentence):
                yield line, f"{vague[0]!r} names no actor: {' '.join(words[:8])} …"


def begins_with_verb(docstring: str) -> bool:
    """Tells whether the first word looks like a verb in the third person."""
    first = docstring.split(maxsplit=1)[0].strip(",")
    return bool(re.fullmatch(r"[A-Z][a-z]*-?[a-z]+s", first)) and not _NO_VERBS.fullmatch(first)


def in_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the faults of a source file's words, by line."""
    text = path.read_text()
    words = [(token.start[0], token.string) for token in tokens(text) if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            line = getattr(node, "lineno", 1)
            if docstring is not None and len(docstring.split()) < SHORTEST:
                yield line, f"a docstring of fewer than {SHORTEST} words: {docstring!r}"
            elif docstring is not None and not begins_with_verb(docstring):
                yield line, f"a docstring begins with no verb: {docstring.splitlines()[0][:60]!r}"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            words.append((node.lineno, str(node.value.value)))
    if str(path.relative_to(ROOT)) not in FIGURES_ALLOWED:
        for line, said in words:
            if figure := _FIGURE.search(said):
                yield line, f"a figure belongs in docs/performance: {figure[0]}"


def tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    """Yields the tokens of a source file."""
    return tokenize.generate_tokens(io.StringIO(text).readline)


def complaints(*, code: bool) -> Iterator[str]:
    """Yields one line for each fault."""
    found: Iterable[tuple[int, str]]
    for path in documents():
        found = in_document(path)
        yield from (f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in found)
    if code:
        for path in sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py")):
            yield from (f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in sorted(in_code(path)))


def main() -> int:
    """Prints all complaints. Returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", action="store_true", help="checks docstrings and comments as well")
    found = list(complaints(code=parser.parse_args().code))
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
