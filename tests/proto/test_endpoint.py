"""Endpoints: there and back, which are the same place, and ValueError for other bytes."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.proto.endpoint import LENGTH, Endpoint, same_place, unpack_untrusted, without_source

U32 = st.integers(0, 2**32 - 1)
PORTS = st.integers(0, 65535)


def endpoints(width: int) -> st.SearchStrategy[Endpoint]:
    address = st.binary(min_size=width, max_size=width)
    source = st.just(b"") | address.filter(any)
    return st.builds(Endpoint, address, PORTS, U32, source, U32, st.integers(0, 255))


ENDPOINTS = endpoints(4) | endpoints(16)


def packed(text: str) -> bytes:
    return ip_address(text).packed


@given(ENDPOINTS)
def test_there_and_back(endpoint: Endpoint) -> None:
    data = endpoint.pack()
    assert len(data) == LENGTH == 44
    assert unpack_untrusted(data) == endpoint


@given(ENDPOINTS, ENDPOINTS)
def test_equal_bytes_are_equal_endpoints(a: Endpoint, b: Endpoint) -> None:
    assert (a.pack() == b.pack()) is (a == b)


def test_layout() -> None:
    four = Endpoint(packed("192.0.2.1"), 51820, 0, packed("198.51.100.7"), 3)
    assert four.pack().hex() == "0400ca6c00000000c0000201" + "00" * 12 + "c6336407" + "00" * 12 + "00000003"
    six = Endpoint(packed("fe80::1"), 1, 2)
    assert six.pack().hex() == "0600000100000002fe80" + "00" * 13 + "01" + "00" * 20


@pytest.mark.parametrize("length", [n for n in range(401) if n != LENGTH])
def test_every_other_length(length: int) -> None:
    for family in (4, 6):
        with pytest.raises(ValueError, match="44 bytes"):
            unpack_untrusted((bytes([family]) + bytes(length))[:length])


@pytest.mark.parametrize("family", [f for f in range(256) if f not in (4, 6)])
def test_every_other_family(family: int) -> None:
    with pytest.raises(ValueError, match="family"):
        unpack_untrusted(bytes([family]) + bytes(LENGTH - 1))


@given(st.binary(max_size=60) | st.binary(min_size=44, max_size=44))
def test_nothing_but_value_error_is_raised(data: bytes) -> None:
    try:
        endpoint = unpack_untrusted(data)
    except ValueError:
        pass
    else:
        assert len(endpoint.address) in (4, 16)
        assert len(endpoint.source) in (0, len(endpoint.address))
        assert str(endpoint)


@given(ENDPOINTS)
def test_without_source(endpoint: Endpoint) -> None:
    data = endpoint.pack()
    bare = without_source(data)
    assert unpack_untrusted(bare) == endpoint._replace(source=b"", source_interface=0)
    assert same_place(data, bare)


@given(ENDPOINTS)
def test_same_place(endpoint: Endpoint) -> None:
    data = endpoint.pack()
    assert same_place(data, endpoint._replace(source=endpoint.address, source_interface=9).pack())
    assert not same_place(data, endpoint._replace(port=endpoint.port ^ 1).pack())
    assert not same_place(data, endpoint._replace(scope=endpoint.scope ^ 1).pack())
    other = bytes([endpoint.address[0] ^ 1]) + endpoint.address[1:]
    assert not same_place(data, endpoint._replace(address=other).pack())


def test_an_ipv4_address_is_not_the_ipv6_address_of_the_same_bytes() -> None:
    assert not same_place(Endpoint(b"\1\2\3\4", 5).pack(), Endpoint(b"\1\2\3\4" + bytes(12), 5).pack())


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (Endpoint(packed("192.0.2.1"), 51820), "192.0.2.1:51820"),
        (Endpoint(packed("2001:db8::1"), 51820), "[2001:db8::1]:51820"),
        (Endpoint(packed("fe80::1"), 7, 3), "[fe80::1%3]:7"),
    ],
)
def test_text(endpoint: Endpoint, text: str) -> None:
    assert str(endpoint) == text


def test_host() -> None:
    assert Endpoint(packed("192.0.2.1"), 1).host == IPv4Address("192.0.2.1")
    assert Endpoint(packed("2001:db8::1"), 1).host == IPv6Address("2001:db8::1")
