"""Which way leads to an endpoint, and whether an address can be one."""

import pytest

from stagewire_cli import way_out
from stagewire_cli.host_facts import Links


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("192.0.2.1", "unicast"), ("2001:db8::1", "unicast"), ("0.0.0.0", "unspecified"), ("::", "unspecified"),
        ("224.0.0.1", "multicast"), ("ff02::1", "multicast"), ("255.255.255.255", "broadcast"),
    ],
)  # fmt: skip
def test_the_kind_of_an_address(host: str, kind: str) -> None:
    assert way_out.kind_of(host) == kind


def test_no_place_has_no_way() -> None:
    assert way_out.look("", 0, Links()) is None
    assert way_out.look("name.example:5", 0, Links()) is None
