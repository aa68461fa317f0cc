"""The rules of the house that a machine can check: how long a file and a function may be, and what is a package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("shared", "services", "deploy", "tests")
MAX_FILE, MAX_FUNCTION = 400, 50


def sources() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources(), ids=short)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{short(path)}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", sources(), ids=short)
def test_a_file_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), f"{short(path)} has no docstring"


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
    assert conf.count("[program:") == len(services) == 5


def test_the_core_knows_neither_clock_nor_chance() -> None:
    """Also where import-linter can't see it: nothing reads the time or draws a number by a name of its own."""
    for path in (ROOT / "shared/stagewire/proto").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                assert called not in {"os.urandom", "time.time", "time.monotonic", "random.random"}, short(path)
                assert called != "X25519PrivateKey.generate", short(path)
