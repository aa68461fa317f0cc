"""Which peer has which prefix, and what becomes of prefixes as peers come, move and go."""

from ipaddress import ip_network

from stagewire.proto.owners import Elsewhere, Owners
from stagewire.proto.prefix import route

A, B, UNKNOWN = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
WIDE, NARROW = (route(ip_network(each)) for each in ("10.0.0.0/24", "10.0.0.1/32"))
INSIDE, BESIDE = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


def both() -> Owners:
    owners = Owners()
    for key in (A, B):
        owners.put(Elsewhere(key))
    owners.allow(A, [WIDE])
    owners.allow(B, [NARROW])
    return owners


def test_an_address_belongs_to_the_longest_prefix() -> None:
    owners = both()
    assert (owners.key_at(INSIDE), owners.key_at(BESIDE), owners.key_at(bytes(4))) == (B, A, None)
    assert owners.public_keys() == {A, B}
    assert owners.tunnels() == []
    assert owners.tunnel(A) is None


def test_another_owner_of_a_key_takes_its_prefixes_over() -> None:
    owners = both()
    former, new = owners.get(A), Elsewhere(A)
    assert owners.put(new) is former
    assert owners.lookup(BESIDE) is new


def test_prefixes_go_with_their_peer_and_to_no_unknown_one() -> None:
    owners = both()
    assert owners.remove(B) is not None
    assert owners.remove(B) is None
    assert owners.key_at(INSIDE) == A
    owners.allow(UNKNOWN, [NARROW])
    assert owners.key_at(INSIDE) == A
    owners.disallow(UNKNOWN, [WIDE])
    assert owners.key_at(INSIDE) == A


def test_a_peer_gets_these_prefixes_and_no_others() -> None:
    owners = both()
    owner = owners.get(A)
    assert owner is not None
    owners.set_prefixes(owner, {NARROW})
    assert (owners.key_at(INSIDE), owners.key_at(BESIDE)) == (A, None)
