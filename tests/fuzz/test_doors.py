"""Every door under real inputs cut, lengthened, mixed and mutated, and under each input that once failed.

`make fuzz` searches the same doors for hours; here each has a moment. `doors` says what each must hold.
"""

import ast
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.doors import DOORS
from tests.fuzz.doors.door import CORPUS, CRASHERS, read

from stagewire.proto.handshake import Identity

ROOT = Path(__file__).parents[2]
EACH = pytest.mark.parametrize("name", sorted(DOORS))


@cache
def seeds(name: str) -> list[bytes]:
    return list(DOORS[name].seeds())


@st.composite
def mutated(draw: st.DrawFn, base: list[bytes], longest: int) -> bytes:
    """A real input, spoilt a little or a lot."""
    data = bytearray(draw(st.sampled_from(base)))
    for change in draw(st.lists(st.sampled_from(["cut", "extend", "flip", "set", "splice", "first"]), max_size=4)):
        at = draw(st.integers(0, len(data)))
        match change:
            case "cut":
                del data[at:]
            case "extend":
                data += draw(st.binary(max_size=200))
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                insert = draw(st.binary(min_size=1, max_size=32))
                data[at : at + len(insert)] = insert
            case "splice":
                data[at:] = draw(st.sampled_from(base))[at:]
            case "first" if data:
                data[0] = draw(st.integers(0, 255))
            case _:
                pass
    return bytes(data[:longest])


@EACH
def test_inputs_that_are_kept(name: str) -> None:
    for data in (b"", *seeds(name), *DOORS[name].kept()):
        DOORS[name].take(data)


@pytest.mark.alone
def test_inputs_that_once_failed_take_little_time_and_memory() -> None:
    for door in DOORS.values():
        for data in read(CRASHERS / f"{door.name}.txt"):
            door.check(data)


@EACH
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_mutated_inputs(name: str, data: st.DataObject) -> None:
    door = DOORS[name]
    door.take(data.draw(mutated(seeds(name) or [b""], door.longest)))


def untrusted() -> dict[str, Path]:
    """Every function of that name, by module and name."""
    found = {}
    for root in (ROOT / "shared", ROOT / "services"):
        for path in root.rglob("*.py"):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            for outer in ast.walk(ast.parse(path.read_text())):
                for node in getattr(outer, "body", []) if isinstance(outer, ast.Module | ast.ClassDef) else []:
                    if isinstance(node, ast.FunctionDef) and node.name.endswith("_untrusted"):
                        within = f"{outer.name}." if isinstance(outer, ast.ClassDef) else ""
                        found[f"{module}.{within}{node.name}"] = path
    return found


def test_every_untrusted_function_has_a_door() -> None:
    covered = {f"{each.__module__}.{each.__qualname__}" for door in DOORS.values() for each in door.covers}
    assert sorted(set(untrusted()) - covered) == []


def test_every_kept_input_is_of_a_door() -> None:
    assert {path.stem for folder in (CORPUS, CRASHERS) for path in folder.glob("*.txt")} <= set(DOORS)


def test_identities_need_32_bytes() -> None:
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="32"):
            Identity.from_private_bytes(bytes(size))
