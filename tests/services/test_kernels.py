"""What the command knows of the compiled modules."""

import tomllib
from pathlib import Path

from stagewire_cli.kernels import MODULES

ROOT = Path(__file__).parents[2]


def test_every_module_that_is_built_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert sorted(MODULES) == sorted(each["name"] for each in project["tool"]["setuptools"]["ext-modules"])
