"""The benchmark's bare interfaces: both programs are found to serve, each in its own way of making its socket."""

from pathlib import Path

import pytest
from tests.bench.contestants import REFERENCE, STAGEWIRE
from tests.bench.hubs import bare

from lab.namespaces import Namespace
from lab.wireguard_go import new_key_pair

pytestmark = pytest.mark.system


@pytest.mark.parametrize("program", [STAGEWIRE, REFERENCE])
def test_a_bare_interface_is_found_and_configured(program: str, shared_directory: Path) -> None:
    keys = new_key_pair()
    with (
        Namespace(f"bare{program[0]}") as namespace,
        bare(program, namespace, shared_directory, keys, ["10.9.0.2/24"], []) as made,
    ):
        assert made.dump().public_key == keys.public
