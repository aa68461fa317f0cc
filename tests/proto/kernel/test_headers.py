"""The compiled modules' numbers are those of their homes."""

import re
from pathlib import Path

import pytest

from conn_service import batch, udp
from stagewire import limits
from stagewire.pipe import train_builder, trains
from stagewire.proto import admission, carriers, constants, endpoint
from stagewire.proto.packets import fields, merge

ROOT = Path(trains.__file__).parents[1]
FILES = (
    "proto/kernel/headers.pxd",
    "proto/kernel/opening.pyx",
    "linux/tun_trains.pyx",
    "linux/udp_trains.pyx",
    "linux/udp_notes.pxd",
    "linux/udp_batch.pyx",
    "proto/kernel/macs.pyx",
    "proto/kernel/admission.pyx",
)
HOMES = (fields, constants, limits, trains, merge, train_builder, udp, batch, carriers, admission)
OWN = {
    "CAPACITY",
    "SHORT",
    "SPARE",
    "BUCKETS",
    "RECEIVER",
    "MOST",
    "NAME",
    "CONTROL",
    "NONCE",
    "START",
    "SEALED",
    "INFO4_LENGTH",
    "INFO6_LENGTH",
    "NAME4_LENGTH",
    "NAME6_LENGTH",
}
"""Numbers that have no other home."""


def numbers() -> list[tuple[str, int]]:
    text = "".join((ROOT / name).read_text() for name in FILES)
    return [
        (name, int(value, 0)) for name, value in re.findall(r"^    ([A-Z0-9_]+) = (\d\w*)(?: |$)", text, re.MULTILINE)
    ]


@pytest.mark.parametrize(("name", "value"), numbers())
def test_a_number_is_its_homes(name: str, value: int) -> None:
    if name == "ENDPOINT_LENGTH":
        assert value == endpoint.LENGTH
    elif name == "LENGTH":
        assert value == trains.LENGTH.size
    elif name == "CONTROL_HEADER":
        assert value == udp._CONTROL.size
    elif name not in OWN:
        found = {getattr(home, each) for home in HOMES for each in (name, f"_{name}") if hasattr(home, each)}
        assert found == {value}


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(numbers()) > 60
    assert (trains.HEADER.size, trains.RUN.size, trains.LENGTH.size) == (16, 52, 4)
