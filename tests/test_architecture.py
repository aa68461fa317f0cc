"""The rules of the house that a machine can check: how long a file and a function may be, and what is a package."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("shared", "services", "deploy", "tests")
PROTO = ROOT / "shared/stagewire/proto"
HOMES = [ROOT / "shared/stagewire" / name for name in ("limits.py", "stages.py", "proto/packets/fields.py")]
DISTINCTIVE = {"51820", "87", "1420", "65507", "65535", *map(str, range(64821, 64828)), "1879048192"}
"""Values of those homes that mean nothing else. A mask is written 0xFFFF."""
MAX_FILE, MAX_FUNCTION = 500, 50


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders or FOLDERS for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_and_functions_are_short_and_a_file_says_what_it_is() -> None:
    """A test for each of a thousand files would cost more than to read it, and so would reading it twice."""
    wrong = []
    for path in sources():
        text = path.read_text()
        tree = ast.parse(text)
        if (lines := len(text.splitlines())) > MAX_FILE:
            wrong.append(f"{short(path)} has {lines} lines")
        if text.strip() and not ast.get_docstring(tree):
            wrong.append(f"{short(path)} has no docstring")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION:
                    wrong.append(f"{short(path)}:{node.lineno}: {node.name} has {length} lines")
    assert wrong == []


def test_source_roots_are_no_packages() -> None:
    for root in ("shared", "services"):
        assert not (ROOT / root / "__init__.py").exists()


def test_every_service_is_a_program_of_supervisord_and_of_the_distribution() -> None:
    services = {path.parent.name.replace("_", "-") for path in (ROOT / "services").glob("*_service/__main__.py")}
    conf = (ROOT / "supervisord.conf").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for service in services:
        assert f"[program:{service}]" in conf
        module = service.replace("-", "_")
        assert f'{service} = "{module}.__main__:main"' in project
    assert conf.count("[program:") == len(services) == 7


def test_the_core_knows_neither_clock_nor_chance() -> None:
    """Also where import-linter can't see it: nothing reads the time or draws a number by a name of its own."""
    modules = sorted(PROTO.rglob("*.py"))
    assert {path.parent.name for path in modules} == {"proto", "packets", "kernel"}
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in {"os.urandom", "time.time", "time.monotonic", "random.random"}, short(path)
                assert called != "X25519PrivateKey.generate", short(path)


def test_every_module_of_the_core_has_its_test_file() -> None:
    modules = [path.relative_to(PROTO) for path in PROTO.rglob("*.py") if path.name != "__init__.py"]
    tests = {path: ROOT / "tests/proto" / path.with_name(f"test_{path.name}") for path in modules}
    assert tests
    assert [str(path) for path, test in tests.items() if not test.exists()] == []


# --- facts have one home -----------------------------------------------------------------------------------


def constants(path: Path) -> Iterator[tuple[str, int]]:
    """Yields each constant's name, without underscores before it, and its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.isupper():
            yield node.id.lstrip("_"), node.lineno


def numbers(path: Path) -> Iterator[tuple[str, int]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NUMBER:
            yield token.string.replace("_", ""), token.start[0]


def test_a_shared_fact_is_written_only_in_its_home() -> None:
    names = {name: short(home) for home in HOMES for name, _ in constants(home)}
    again = []
    for path in sources("shared", "services"):
        if path not in HOMES:
            again += [
                f"{short(path)}:{line}: {name} is {names[name]}'s" for name, line in constants(path) if name in names
            ]
            again += [f"{short(path)}:{line}: {value}" for value, line in numbers(path) if value in DISTINCTIVE]
    assert again == []
