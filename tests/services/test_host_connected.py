"""The addresses' own networks, and those whose route somebody has removed."""

from ipaddress import ip_network

from host_service.connected import Connected
from host_service.route_messages import Found, Network
from host_service.rules import MAIN

OURS = 7
NETWORK, OTHER, WITHIN = (ip_network(each) for each in ("10.9.0.0/24", "fd09::/64", "10.9.0.2/32"))


def route(prefix: Network, link: int = OURS, protocol: int = 2, table: int = MAIN) -> Found:
    return Found(prefix, table, 1, protocol, link, b"", 0)


def made() -> Connected:
    connected = Connected()
    connected.begin(["10.9.0.1/24", "fd09::1/64"])
    return connected


def test_a_prefix_in_one_needs_no_route() -> None:
    connected = made()
    assert connected.around(WITHIN) == connected.around(NETWORK) == NETWORK
    assert connected.around(ip_network("10.0.0.0/8")) is None
    assert NETWORK in connected
    assert WITHIN not in connected


def test_a_lost_route_is_replaced_until_the_kernels_is_back() -> None:
    connected = made()
    assert connected.lost(route(NETWORK), OURS)
    assert connected.give_up([WITHIN, OTHER]) == [WITHIN]
    assert connected.give_up([WITHIN]) == []
    assert connected.around(WITHIN) is None
    assert connected.around(OTHER) == OTHER
    assert connected.back(route(NETWORK), OURS)
    assert not connected.back(route(NETWORK), OURS)
    assert connected.around(WITHIN) == NETWORK


def test_other_routes_are_none_of_its_business() -> None:
    connected = made()
    for each in (route(NETWORK, link=8), route(NETWORK, protocol=87), route(NETWORK, table=7), route(WITHIN)):
        assert not connected.lost(each, OURS)
        assert not connected.back(each, OURS)


def test_what_went_with_its_address_is_no_loss() -> None:
    connected = made()
    assert connected.lost(route(NETWORK), OURS)
    connected.forget()
    assert connected.give_up([WITHIN]) == []
    assert connected.around(WITHIN) == NETWORK
