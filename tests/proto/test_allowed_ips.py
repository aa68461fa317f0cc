"""Allowed IPs: the known vectors, and a linear scan as the model."""

import random
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewire.proto.allowed_ips import AllowedIps, T

Prefix = IPv4Network | IPv6Network

INSERTS = """
    192.168.4.0/24 a | 192.168.4.4/32 b | 192.168.0.0/16 c | 192.95.5.64/27 d | 192.95.5.65/27 c
    2607:5300:6000:6b00::c05f:543/128 d | 2607:5300:6000:6b00::/64 c | 0.0.0.0/0 e | ::/0 e | ::/0 f
    2404:6800::/32 g | 2404:6800:4004:800:dead:beef:dead:beef/64 h
    2404:6800:4004:800:dead:beef:dead:beef/128 a | 2444:6800:40e4:800:deae:beef:def:beef/128 c
    2444:6800:f0e4:800:eeae:beef::/98 b | 64.15.112.0/20 g | 64.15.123.211/25 h
    10.0.0.0/25 a | 10.0.0.128/25 b | 10.1.0.0/30 a | 10.1.0.4/30 b | 10.1.0.8/29 c | 10.1.0.16/29 d
"""

LOOKUPS = """
    192.168.4.20 a | 192.168.4.0 a | 192.168.4.4 b | 192.168.200.182 c | 192.95.5.68 c | 192.95.5.96 e
    64.15.116.26 g | 64.15.127.3 g | 64.15.123.1 g | 64.15.123.128 h | 64.15.123.129 h
    10.0.0.52 a | 10.0.0.220 b | 10.1.0.2 a | 10.1.0.6 b | 10.1.0.10 c | 10.1.0.20 d
    2607:5300:6000:6b00::c05f:543 d | 2607:5300:6000:6b00::c02e:1ee c | 2607:5300:6000:6b01:: f
    2404:6800:4004:806::1006 g | 2404:6800:4004:806:0:1234:0:5678 g | 2404:67ff:4004:806:0:1234:0:5678 f
    2404:6801:4004:806:0:1234:0:5678 f | 2404:6800:4004:800:0:1234:0:5678 h | 2404:6800:4004:800:: h
    2404:6800:4004:800:1010:1010:1010:1010 h | 2404:6800:4004:800:dead:beef:dead:beef a
"""


def pairs(text: str) -> list[tuple[str, str]]:
    entries = [entry.split() for entry in text.strip().replace("\n", "|").split("|")]
    return [(what, owner) for what, owner in entries]


def net(text: str) -> Prefix:
    return ip_network(text, strict=False)


def contents(table: AllowedIps[T]) -> dict[Prefix, T]:
    return {prefix: owner for owner in table._owned for prefix in table.prefixes(owner)}


def packed(text: str) -> bytes:
    return ip_address(text).packed


@pytest.fixture
def table() -> AllowedIps[str]:
    table = AllowedIps[str]()
    for prefix, owner in pairs(INSERTS):
        table.insert(net(prefix), owner)
    return table


def test_the_lookups(table: AllowedIps[str]) -> None:
    assert len(pairs(LOOKUPS)) == 28
    for _ in range(2):  # the second time from the answers given lately
        for address, owner in pairs(LOOKUPS):
            assert table.lookup(packed(address)) == owner, address
    assert len(contents(table)) == 21  # 23 inserts, two of which replace


def test_remove_owner(table: AllowedIps[str]) -> None:
    hosts = ["1.0.0.0", "64.0.0.0", "128.0.0.0", "192.0.0.0", "255.0.0.0"]
    for host in hosts:
        table.insert(net(host + "/32"), "a")
        assert table.lookup(packed(host)) == "a"
    table.remove_owner("a")
    for host in hosts:
        assert table.lookup(packed(host)) == "e"
    assert table.prefixes("a") == []
    assert table.lookup(packed("192.168.4.20")) == "c"


def test_remove_owner_of_nested_prefixes() -> None:
    table = AllowedIps[str]()
    table.insert(net("192.168.0.0/16"), "a")
    table.insert(net("192.168.0.0/24"), "a")
    table.remove_owner("a")
    assert table.lookup(packed("192.168.0.1")) is None
    assert len(contents(table)) == 0
    table.remove_owner("a")


def test_depth() -> None:
    table = AllowedIps[int]()
    for bit in range(128):
        table.insert(IPv6Network((1 << bit, 128)), bit)
    for length in range(129):
        table.insert(IPv6Network((2**128 - 2 ** (128 - length), length)), 1000 + length)
    assert [table.lookup((1 << bit).to_bytes(16)) for bit in range(127)] == list(range(127))
    assert table.lookup(b"\xff" * 16) == 1128
    for bit in range(128):
        table.remove_owner(bit)
    assert table.lookup((1).to_bytes(16)) == 1000


def test_enumeration() -> None:
    table = AllowedIps[str]()
    for prefix in (
        "192.95.5.93/27",
        "2607:5300:6000:6b00::c05f:543/128",
        "10.1.0.20/29",
        "2607:5300:6d8a:6bf8:dab1:f1df:c05f:1523/83",
        "2607:5300:6d8a:6bf8:dab1:f1df:c05f:1523/21",
    ):
        table.insert(net(prefix), "a")
    table.insert(net("192.168.0.0/16"), "b")
    expected = [
        "10.1.0.16/29",
        "192.95.5.64/27",
        "2607:5000::/21",
        "2607:5300:6000:6b00::c05f:543/128",
        "2607:5300:6d8a:6bf8:dab1:e000::/83",
    ]
    assert [str(prefix) for prefix in table.prefixes("a")] == expected
    assert [str(prefix) for prefix, owner in contents(table).items() if owner == "a"] == expected
    assert len(contents(table)) == 6


def test_remove_takes_only_exactly_that_prefix_of_exactly_that_owner(table: AllowedIps[str]) -> None:
    before = sorted((str(prefix), owner) for prefix, owner in contents(table).items())
    for prefix, owner in (
        ("192.168.4.0/25", "a"),
        ("192.168.4.0/23", "a"),
        ("192.168.4.0/24", "b"),
        ("192.168.4.0/24", "nobody"),
        ("192.168.5.0/24", "a"),
        ("::/0", "e"),
    ):
        assert table.remove(net(prefix), owner) is False
    assert sorted((str(prefix), owner) for prefix, owner in contents(table).items()) == before
    assert table.lookup(packed("192.168.4.20")) == "a"
    assert table.remove(net("192.168.4.0/24"), "a") is True
    assert table.lookup(packed("192.168.4.20")) == "c"
    assert table.remove(net("192.168.4.0/24"), "a") is False
    assert table.remove(net("0.0.0.0/0"), "e") is True
    assert table.lookup(packed("8.8.8.8")) is None
    assert len(contents(table)) == 19


def test_a_change_is_seen_at_once() -> None:
    table = AllowedIps[str]()
    address = packed("10.0.0.1")
    assert table.lookup(address) is None
    table.insert(net("10.0.0.0/8"), "a")
    assert table.lookup(address) == "a"
    table.insert(net("10.0.0.0/24"), "b")
    assert table.lookup(address) == "b"
    table.insert(net("10.0.0.0/24"), "c")
    assert table.lookup(address) == "c"
    assert table.prefixes("b") == []
    table.remove(net("10.0.0.0/24"), "c")
    assert table.lookup(address) == "a"
    table.remove_owner("a")
    assert table.lookup(address) is None


def test_a_length_that_nobody_uses_is_not_tried() -> None:
    table = AllowedIps[str]()
    for prefix in ("10.0.0.0/8", "10.0.0.0/24", "fd00::/8"):
        table.insert(net(prefix), "a")
    assert [cut for cut, _ in table._ordered[4]] == [8, 24]
    table.remove(net("10.0.0.0/24"), "a")
    assert [cut for cut, _ in table._ordered[4]] == [24]
    table.remove_owner("a")
    assert table._ordered == {4: [], 16: []}


def test_the_families_are_apart() -> None:
    table = AllowedIps[str]()
    table.insert(net("0.0.0.0/0"), "four")
    assert table.lookup(bytes(16)) is None
    table.insert(net("::/0"), "six")
    assert table.lookup(bytes(16)) == "six"
    assert table.lookup(bytes(4)) == "four"


@pytest.mark.parametrize("length", [0, 1, 3, 5, 15, 17])
def test_an_address_of_another_length_is_nobodys(table: AllowedIps[str], length: int) -> None:
    assert table.lookup(bytes(length)) is None


def test_the_answers_are_bounded() -> None:
    table = AllowedIps[str]()
    table.insert(net("10.0.0.0/8"), "a")
    for host in range(20_000):
        assert table.lookup((0x09FFF000 + host).to_bytes(4)) == ("a" if host >= 0x1000 else None)
        assert len(table.answers) <= 4096


class Scan:
    """The model: every prefix is asked."""

    def __init__(self) -> None:
        self.routes: dict[Prefix, int] = {}

    def lookup(self, address: bytes) -> int | None:
        host = ip_address(address)
        found = [p for p in self.routes if p.version == host.version and host in p]
        return self.routes[max(found, key=lambda p: p.prefixlen)] if found else None


def test_random_routes_against_a_linear_scan() -> None:
    """2000 owners; for each family 400 routes, and 100 neighbours of each."""
    rng = random.Random(20_240_601)
    table = AllowedIps[int]()
    routes: dict[int, dict[tuple[int, int], int]] = {32: {}, 128: {}}

    def insert(width: int, address: int, length: int) -> None:
        network = (IPv4Network if width == 32 else IPv6Network)((address >> width - length << width - length, length))
        owner = rng.randrange(2000)
        table.insert(network, owner)
        routes[width][int(network.network_address), length] = owner

    def check(count: int) -> None:
        for width, family in routes.items():
            entries = [(network, width - length, owner) for (network, length), owner in family.items()]
            near = [network | rng.getrandbits(8) for network, _, _ in rng.sample(entries, count)]
            for address in near + [rng.getrandbits(width) for _ in range(count)]:
                held = [(cut, owner) for network, cut, owner in entries if (address ^ network) >> cut == 0]
                expected = min(held)[1] if held else None
                assert table.lookup(address.to_bytes(width // 8)) == expected
        assert len(contents(table)) == sum(len(family) for family in routes.values())

    for width in routes:
        for _ in range(400):
            address = rng.getrandbits(width)
            insert(width, address, rng.randint(1, width))
            for _ in range(100):
                # A neighbour has the first bits of the address, and others after them.
                neighbour = address ^ rng.getrandbits(width) >> rng.randint(0, width)
                insert(width, neighbour, rng.randint(1, width))
    check(60)
    for owner in range(0, 2000, 2):
        table.remove_owner(owner)
    for family in routes.values():
        for route in [route for route, owner in family.items() if owner % 2 == 0]:
            del family[route]
    check(30)


def test_removing_one_of_many_owners_leaves_the_others_alone() -> None:
    table = AllowedIps[int]()
    for i in range(20_000):
        table.insert(IPv4Network(((10 << 24) + i, 32)), i // 10)
    others = {owner: set(routes) for owner, routes in table._owned.items() if owner != 7}
    table.remove_owner(7)
    assert others == table._owned
    assert len(contents(table)) == 19_990
    assert table.lookup(packed("10.0.0.75")) is None
    assert table.lookup(packed("10.0.0.80")) == 8


# Few bits, so that prefixes meet.
PREFIXES = st.builds(
    lambda address, length: IPv4Network((address << 24, length), strict=False),
    st.integers(0, 255),
    st.integers(0, 8),
) | st.builds(
    lambda address, length: IPv6Network((address << 120, length), strict=False),
    st.integers(0, 255),
    st.integers(0, 8),
)
ADDRESSES = st.integers(0, 255).map(lambda n: bytes([n, 1, 2, 3])) | st.integers(0, 255).map(
    lambda n: bytes([n]) + bytes(15)
)
STEPS = st.tuples(st.sampled_from(["insert", "insert", "remove", "drop", "lookup"]), PREFIXES, st.integers(0, 4))


@settings(max_examples=100)
@given(st.lists(st.tuples(STEPS, ADDRESSES), max_size=40))
def test_any_steps_against_a_linear_scan(steps: list[tuple[tuple[str, Prefix, int], bytes]]) -> None:
    table, model = AllowedIps[int](), Scan()
    for (what, prefix, owner), address in steps:
        match what:
            case "insert":
                table.insert(prefix, owner)
                model.routes[prefix] = owner
            case "remove":
                assert table.remove(prefix, owner) is (model.routes.get(prefix) == owner)
                if model.routes.get(prefix) == owner:
                    del model.routes[prefix]
            case "drop":
                table.remove_owner(owner)
                model.routes = {p: o for p, o in model.routes.items() if o != owner}
        assert table.lookup(address) == model.lookup(address)
        assert len(contents(table)) == len(model.routes)
        assert contents(table) == model.routes


def test_all_that_one_has_may_go_to_another() -> None:
    table: AllowedIps[str] = AllowedIps()
    for prefix, owner in (("10.0.0.0/8", "a"), ("10.1.0.0/16", "b"), ("fd00::/64", "a"), ("10.2.0.0/16", "c")):
        table.insert(net(prefix), owner)
    assert table.lookup(ip_address("10.3.0.1").packed) == "a"
    table.hand_over("a", "z")
    table.hand_over("nobody", "z")
    assert table.lookup(ip_address("10.3.0.1").packed) == table.lookup(ip_address("fd00::1").packed) == "z"
    assert table.lookup(ip_address("10.1.0.1").packed) == "b"
    table.hand_over("b", "z")
    assert (table.count("a"), table.count("b"), table.count("z"), len(contents(table))) == (0, 0, 3, 4)
    assert table.remove(net("10.1.0.0/16"), "z")
    assert table.lookup(ip_address("10.1.0.1").packed) == "z"


def test_a_list_of_all_prefixes_removes_the_others() -> None:
    table: AllowedIps[str] = AllowedIps()
    for prefix, owner in (("10.0.0.0/8", "a"), ("10.1.0.0/16", "b"), ("fd00::/64", "a"), ("10.2.0.0/16", "c")):
        table.insert(net(prefix), owner)
    table.begin_naming()
    assert table.lookup(packed("10.1.0.1")) == "b"  # until the end all are there
    table.insert(net("10.0.0.0/8"), "a")
    table.begin_naming()  # anew
    table.insert(net("10.1.0.0/16"), "a")
    table.insert(net("10.2.0.0/16"), "c")
    assert (table.count("a"), table.count("b"), table.prefixes("b")) == (3, 0, [])
    assert table.remove(net("10.2.0.0/16"), "c")
    table.insert(net("fd00::/64"), "a")
    table.hand_over("a", "z")
    table.end_naming()
    assert {str(prefix): owner for prefix, owner in contents(table).items()} == {"10.1.0.0/16": "z", "fd00::/64": "z"}
    assert table.lookup(packed("10.3.0.1")) is None
    table.end_naming()
    assert table.count("z") == 2


def test_a_change_of_nothing_keeps_the_answers() -> None:
    table: AllowedIps[str] = AllowedIps()
    table.insert(net("10.0.0.0/8"), "a")
    table.lookup(packed("10.0.0.1"))
    table.begin_naming()
    table.insert(net("10.0.0.0/8"), "a")
    table.end_naming()
    assert table.answers == {packed("10.0.0.1"): "a"}
