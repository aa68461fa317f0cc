"""Values of the configuration socket; test_reader tries most of them, in their lines."""

from ipaddress import ip_address

import pytest

from stagewire.config.uapi import values
from stagewire.proto.endpoint import Endpoint

LINK_LOCAL = ip_address("fe80::1").packed
INTERFACES = {"eth0": 5, "7": 9, "br-lan.1@x": 11, "fifteen-letters": 12}


def index_of(name: str) -> int:
    return INTERFACES.get(name, 0)


@pytest.mark.parametrize(
    ("zone", "scope"),
    [("eth0", 5), ("5", 5), ("8", 8), ("7", 9), ("br-lan.1@x", 11), ("fifteen-letters", 12), ("4294967295", 2**32 - 1)],
)
def test_a_zone_is_an_interfaces_name_or_else_its_number(zone: str, scope: int) -> None:
    assert values.endpoint(f"[fe80::1%{zone}]:2".encode(), index_of) == Endpoint(LINK_LOCAL, 2, scope)


@pytest.mark.parametrize(
    "zone", ["eth1", "ETH0", "eth0 ", "", "4294967296", "a/b", "\N{LATIN SMALL LETTER E WITH ACUTE}th0"]
)
def test_a_zone_that_is_neither(zone: str) -> None:
    with pytest.raises(ValueError, match=r"must (have the name or number of an interface after the %|be address:port)"):
        values.endpoint(f"[fe80::1%{zone}]:2".encode(), index_of)


def test_a_zone_means_nothing_to_an_address_that_is_not_link_local() -> None:
    for zone in ("eth0", "nobody-knows-it-and-it-is-long"):
        endpoint = values.endpoint(f"[2001:db8::1%{zone}]:2".encode(), index_of)
        assert endpoint == Endpoint(ip_address("2001:db8::1").packed, 2)
