"""Peers behind peers: who is on the way to an endpoint, whether the way leaves the tunnel, and what waits meanwhile."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from conn_service import nesting as conn_nesting
from conn_service.egress import OtherTunnel
from conn_service.nesting import ASK_AGAIN, MAX_WAITING, WAITS_FOR, Undecided
from key_service.nesting import MAX_CHAINS, Nesting
from key_service.registry import Registry, unconfigured
from stagewire.config.uapi import Change, PeerChange, PrefixChange
from stagewire.control.chains import Chain, ChainJudged, ChainsChanged, Nested
from stagewire.proto.endpoint import Endpoint, unpack_untrusted
from stagewire.proto.handshaker import Handshaker
from stagewire.proto.packets.carried import EACH, HOPS

A, B, C, D = (sha256(name.encode()).digest() for name in "abcd")
TUNNEL, ETHERNET = 7, 2


def at(address: str, port: int = 9, source: str = "") -> bytes:
    ours = ip_address(source).packed if source else b""
    return Endpoint(ip_address(address).packed, port, source=ours).pack()


class Key:
    """key-service's side."""

    def __init__(self, **peers: tuple[str | None, str]) -> None:
        """Of each peer: where it is, and what it has."""
        self.registry = Registry(unconfigured())
        self.handshaker = Handshaker(None, bytes(12), bytes, lambda: 0.0)
        self.told: list[Chain | ChainsChanged] = []
        for name, (address, prefixes) in peers.items():
            key = sha256(name.encode()).digest()
            self.allow(key, prefixes)
            self.handshaker.add_peer(key, bytes(32), 0).endpoint = at(address) if address else None
        self.nesting = Nesting(self.registry, self.handshaker, self.told.append)

    def allow(self, key: bytes, prefixes: str) -> None:
        changes = tuple(PrefixChange(ip_network(each), True) for each in prefixes.split())
        change = Change(peers=(PeerChange(key, 1, allowed_ips=changes),))
        self.registry.commit(self.registry.prepare(change))

    def chain(self, address: str) -> list[str]:
        self.nesting.on_nested(Nested(at(address)), 0.0)
        answer = self.told.pop()
        assert isinstance(answer, Chain)
        assert answer.endpoint == at(address)
        return [str(unpack_untrusted(each).host) for each in answer.through]


def test_the_longest_prefix_says_who_is_on_the_way() -> None:
    key = Key(a=("10.78.0.2", "0.0.0.0/0"), b=("10.77.0.1", "10.78.0.2/32 fd78::/16"))
    assert key.registry.owner_of(bytes([10, 78, 0, 2])) == B
    assert key.registry.owner_of(bytes([10, 78, 0, 3])) == A
    assert key.registry.owner_of(ip_address("fd78::1").packed) == B
    assert key.registry.owner_of(ip_address("fd79::1").packed) is None
    # Behind b is a, to whom everything else belongs; then it begins anew.
    assert key.chain("10.78.0.2") == ["10.77.0.1"]


def test_an_endpoint_behind_itself_differs_from_one_behind_a_peer_that_nobody_knows_where_it_is() -> None:
    key = Key(a=("10.1.0.1", "10.0.0.0/24"), b=("10.0.0.1", "10.1.0.0/24"), c=("10.2.0.1", ""), d=(None, "10.2.0.0/24"))
    for address in ("10.0.0.1", "10.2.0.1"):
        assert key.nesting.fault_of(at(address)) == ""
        key.nesting.on_judged(ChainJudged(at(address), passes=False))
    assert key.nesting.fault_of(at("10.0.0.1")).startswith("lies behind the peer itself")
    said = key.nesting.fault_of(at("10.2.0.1"))
    assert said == f"lies behind {key.registry.label(D)}, whose own endpoint is not known yet"


@pytest.mark.parametrize(
    ("peers", "asked", "through"),
    [
        ({"a": ("10.0.0.2", "10.0.0.0/24")}, "10.0.0.2", []),
        ({"a": ("fd00::2", "fd00::/16")}, "fd00::2", []),
        ({"a": ("10.1.0.1", "10.0.0.0/24"), "b": ("10.0.0.1", "10.1.0.0/24")}, "10.0.0.1", ["10.1.0.1"]),
        (
            {"a": ("10.1.0.1", "10.0.0.0/24"), "b": ("10.2.0.1", "10.1.0.0/24"), "c": ("192.0.2.1", "10.2.0.0/24")},
            "10.0.0.1",
            ["10.1.0.1", "10.2.0.1", "192.0.2.1"],
        ),
        (
            {"a": ("10.1.0.1", "10.0.0.0/24"), "b": ("10.2.0.1", "10.1.0.0/24"), "c": ("10.0.0.9", "10.2.0.0/24")},
            "10.0.0.1",
            ["10.1.0.1", "10.2.0.1", "10.0.0.9"],
        ),
        ({"a": (None, "10.0.0.0/24")}, "10.0.0.1", []),
        ({"a": ("fd01::1", "10.0.0.0/24"), "b": ("192.0.2.1", "fd01::/16")}, "10.0.0.1", ["fd01::1", "192.0.2.1"]),
        ({}, "10.0.0.1", []),
    ],
)
def test_a_chain_ends(peers: Mapping[str, tuple[str | None, str]], asked: str, through: list[str]) -> None:
    assert Key(**peers).chain(asked) == through


def test_what_was_told_is_taken_back_when_it_no_longer_holds() -> None:
    key = Key(a=("10.78.0.2", "0.0.0.0/0"), b=("10.77.0.1", "10.78.0.2/32"), c=("192.0.2.1", "10.9.0.0/24"))
    key.nesting.changed()
    key.nesting.look(0.0)
    assert key.told == [], "nothing was told"
    key.chain("10.78.0.2")
    key.handshaker.peers[C].endpoint = at("192.0.2.2")
    key.nesting.look(0.0)
    assert key.told == [], "that peer isn't on the way"
    key.handshaker.peers[B].endpoint = at("10.77.0.9")
    key.nesting.look(0.0)
    key.nesting.look(0.0)
    assert key.told == [ChainsChanged()]
    assert key.chain("10.78.0.2") == ["10.77.0.9"]
    key.handshaker.remove_peer(B)
    key.nesting.look(0.0)
    key.allow(A, "10.78.0.2/32")
    key.nesting.changed()
    assert key.told == [ChainsChanged()] * 2
    assert key.chain("10.78.0.2") == []


def test_a_question_after_a_move_takes_back_the_answers_before_it() -> None:
    key = Key(a=("10.1.0.1", "10.0.0.0/24"), b=("192.0.2.1", "10.1.0.0/24"))
    assert key.chain("10.0.0.1") == ["10.1.0.1", "192.0.2.1"]
    key.handshaker.peers[B].endpoint = at("10.0.0.1")
    assert key.chain("10.0.0.1") == ["10.1.0.1"]
    assert key.told == [ChainsChanged()]


def test_a_fault_is_known_until_it_is_judged_otherwise() -> None:
    key = Key(a=("10.0.0.2", "10.0.0.0/24"))
    with_source = at("10.0.0.2", source="10.0.0.1")
    assert key.nesting.fault_of(with_source) == key.nesting.fault_of(None) == ""
    key.chain("10.0.0.2")
    key.nesting.on_judged(ChainJudged(at("10.0.0.2"), False))
    assert "behind the peer itself" in key.nesting.fault_of(with_source)
    key.nesting.on_judged(ChainJudged(at("10.0.0.2"), True))
    assert key.nesting.fault_of(with_source) == ""
    key.nesting.on_judged(ChainJudged(at("10.0.0.2"), False))
    key.nesting.start_anew()
    assert key.nesting.fault_of(with_source) == "", "who judged is gone"


def test_questions_without_end_are_forgotten_by_both() -> None:
    key = Key(a=("10.0.0.2", "10.0.0.0/24"))
    for number in range(MAX_CHAINS + 1):
        key.nesting.on_nested(Nested(at("10.0.0.2", 1 + number)), 0.0)
    assert key.told.count(ChainsChanged()) == 1


class Conn:
    """conn-service's side, and a routing table."""

    def __init__(self) -> None:
        self.ways: dict[str, int | None] = {}
        self.tunnels: dict[int, OtherTunnel] = {}
        self.said: list[Any] = []
        self.sent: list[tuple[bytes, Sequence[bytes]]] = []
        self.reachable = True
        self.nesting = conn_nesting.Nesting(self, self._say, lambda place, data: self.sent.append((place, data)))  # type: ignore[arg-type]

    def interface(self, endpoint: Endpoint, _mark: int, _port: int) -> int | None:
        return self.ways.get(str(endpoint.host), TUNNEL)

    def tunnel(self) -> int | None:
        return TUNNEL

    def other_tunnel(self, number: int) -> OtherTunnel | None:
        return self.tunnels.get(number)

    def _say(self, message: object) -> bool:
        if self.reachable:
            self.said.append(message)
        return self.reachable

    def way(self, address: str, source: str = "") -> int | None:
        return self.nesting.interface(unpack_untrusted(at(address, source=source)), 0, 1)

    def judged(self) -> list[bool]:
        """And forgets it."""
        said, self.said = self.said, []
        return [message.passes for message in said if isinstance(message, ChainJudged)]


def test_a_way_outside_is_asked_of_nobody() -> None:
    conn = Conn()
    conn.ways = {"192.0.2.1": ETHERNET, "192.0.2.2": None}
    assert conn.way("192.0.2.1") == ETHERNET
    assert conn.way("192.0.2.2") is None
    assert conn.said == []


def test_a_way_into_the_tunnel_is_as_good_as_what_is_behind_it() -> None:
    conn = Conn()
    conn.ways = {"192.0.2.1": ETHERNET}
    with pytest.raises(Undecided):
        conn.way("10.0.0.1")
    conn.nesting.on_chain(Chain(at("10.0.0.1"), (at("10.1.0.1"), at("192.0.2.1"))), 0.0)
    assert conn.way("10.0.0.1", "10.0.0.9") == conn.way("10.0.0.1") == TUNNEL
    assert conn.judged() == [], "as it is by default"
    conn.ways = {}
    assert conn.way("10.0.0.1") == TUNNEL, "routes haven't changed"
    conn.nesting.routes_changed()
    for _ in range(3):
        with pytest.raises(OSError, match="behind itself"):
            conn.way("10.0.0.1")
    assert conn.judged() == [False]
    conn.nesting.forget_chains()
    with pytest.raises(Undecided):
        conn.way("10.0.0.1")


def test_a_chain_without_an_end_outside_is_refused() -> None:
    conn = Conn()
    conn.nesting.on_chain(Chain(at("10.0.0.1"), ()), 0.0)
    with pytest.raises(OSError, match="behind itself"):
        conn.way("10.0.0.1")


def test_what_was_refused_is_looked_at_again_without_a_datagram() -> None:
    conn = Conn()
    conn.nesting.on_chain(Chain(at("10.0.0.1"), (at("10.1.0.1"),)), 0.0)
    for change in range(2):
        with pytest.raises(OSError, match="behind itself"):
            conn.way("10.0.0.1")
        assert conn.judged() == [False]
        if change == 0:  # of routes: the endpoint itself leads outside now
            conn.ways = {"10.0.0.1": ETHERNET}
            conn.nesting.routes_changed()
            assert conn.judged() == [True]
            conn.ways = {}
            conn.nesting.routes_changed()
            assert conn.judged() == [], "until something is sent there"
        else:  # of peers
            conn.ways = {"192.0.2.1": ETHERNET}
            conn.nesting.forget_chains()
            assert conn.said == [Nested(at("10.0.0.1"))]
            conn.nesting.on_chain(Chain(at("10.0.0.1"), (at("192.0.2.1"),)), 0.0)
            assert conn.judged() == [True]


def test_a_new_key_service_is_told_what_is_refused() -> None:
    conn = Conn()
    conn.nesting.on_chain(Chain(at("10.0.0.1"), ()), 0.0)
    with pytest.raises(OSError, match="behind itself"):
        conn.way("10.0.0.1")
    assert conn.judged() == [False]
    conn.nesting.start_anew()
    assert conn.said == [Nested(at("10.0.0.1"))]
    conn.nesting.on_chain(Chain(at("10.0.0.1"), ()), 0.0)
    assert conn.judged() == [False]


def test_what_waits_is_sent_in_order_when_there_is_an_answer_and_asked_for_in_measure() -> None:
    conn = Conn()
    for number in range(3):
        assert conn.nesting.wait(at("10.0.0.1", source="10.0.0.9"), [b"%d" % number], number * ASK_AGAIN / 4) == []
    conn.nesting.wait(at("10.0.0.2"), [b"other"], 0.0)
    assert conn.said == [Nested(at("10.0.0.1")), Nested(at("10.0.0.2"))]
    conn.nesting.wait(at("10.0.0.1"), [b"3"], ASK_AGAIN)
    assert len(conn.said) == 3
    conn.nesting.on_chain(Chain(at("10.0.0.1"), ()), ASK_AGAIN)
    assert [data for _, data in conn.sent] == [[b"0"], [b"1"], [b"2"], [b"3"]]
    conn.nesting.on_chain(Chain(at("10.0.0.1"), ()), ASK_AGAIN)
    assert len(conn.sent) == 4


def test_what_waits_is_bounded_in_number_and_time() -> None:
    conn = Conn()
    lost = [conn.nesting.wait(at("10.0.0.1"), [b"1", b"2"], 0.0) for _ in range(MAX_WAITING + 5)]
    assert [each for dropped in lost for each in dropped] == [(at("10.0.0.1"), [b"1", b"2"])] * 5
    conn.nesting.on_chain(Chain(at("10.0.0.1"), ()), WAITS_FOR + 1)
    assert conn.sent == []
    conn.nesting.wait(at("10.0.0.2"), [b"old"], 0.0)
    assert conn.nesting.wait(at("10.0.0.2"), [b"new"], WAITS_FOR + 1) == [(at("10.0.0.2"), [b"old"])]


def test_a_key_service_that_is_away_is_asked_when_it_is_back() -> None:
    conn = Conn()
    conn.reachable = False
    conn.nesting.wait(at("10.0.0.1"), [b"1"], 0.0)
    conn.reachable = True
    conn.nesting.wait(at("10.0.0.1"), [b"2"], 0.001)
    assert conn.said == [Nested(at("10.0.0.1"))]
    conn.nesting.forget_chains()
    assert conn.said == [Nested(at("10.0.0.1"))] * 2


def test_a_third_tunnel_has_room_for_what_is_whole_and_fits_and_for_no_giants() -> None:
    conn = Conn()
    conn.tunnels = {7: OtherTunnel(1420, stagewires=False), 8: OtherTunnel(65535, stagewires=False)}
    for limit in (HOPS - EACH, HOPS - EACH - 3, EACH):
        whole, cut = ([conn.nesting.room(each, limit, cut=cut) for each in (ETHERNET, 7, 8)] for cut in (False, True))
        assert whole == [None, 1420, conn_nesting.MAX_CARRIED]
        assert cut == [None, 0, 0]
    was_in_pieces = HOPS - 2 * EACH - 1
    assert conn.nesting.room(7, was_in_pieces, cut=False) == 0, "its pieces would grow again from the least size"


def test_three_of_stagewires_tunnels_have_room_for_anything_and_a_fourth_for_pieces_that_fit() -> None:
    conn = Conn()
    conn.tunnels = {7: OtherTunnel(1420, stagewires=True)}
    for was_cut in (0, 1):
        limits = [HOPS - EACH * deep - was_cut for deep in (1, 2, 3, 7)]
        rooms = [[conn.nesting.room(7, limit, cut=cut) for limit in limits] for cut in (False, True)]
        assert rooms == [[None, 1420, 1420, 1420], [None, 1420, 0, 0]]
