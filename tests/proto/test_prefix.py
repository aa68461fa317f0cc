"""Prefixes as bytes."""

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto import prefix

NETWORKS = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda each: IPv4Network(each, strict=False)),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(lambda each: IPv6Network(each, strict=False)),
)


@given(NETWORKS)
def test_there_and_back(network: prefix.Network) -> None:
    packed = prefix.pack(network)
    assert len(packed) == (5 if network.version == 4 else 17)
    assert prefix.unpack_untrusted(packed) == network


def test_the_length_goes_first() -> None:
    assert prefix.pack(ip_network("10.1.0.0/16")) == bytes([16, 10, 1, 0, 0])


@given(NETWORKS)
def test_a_route_is_the_same_prefix(network: prefix.Network) -> None:
    route = prefix.route_untrusted(prefix.pack(network))
    assert route == prefix.route(network)
    assert prefix.network(route) == network


@pytest.mark.parametrize(
    "data", [b"", bytes(4), bytes(6), bytes(16), bytes(18), bytes([33, 0, 0, 0, 0]), bytes([24, 10, 0, 0, 1])]
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        prefix.unpack_untrusted(data)
    with pytest.raises(ValueError, match=r".+"):
        prefix.route_untrusted(data)


@given(st.binary(max_size=20))
def test_any_bytes_raise_value_error_alone(data: bytes) -> None:
    try:
        network = prefix.unpack_untrusted(data)
    except ValueError:
        return
    assert prefix.pack(network) == data
