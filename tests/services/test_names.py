"""When a host is asked for, and what its answer means to the peers that have its name."""

import itertools
import math
import os
from ipaddress import ip_address

import pytest

from key_service.names import LATE, LONGEST_PAUSE, LOOK, MOST_ASKED, Found, Names
from stagewire.config import HostPort
from stagewire.control.messages import Resolve, Resolved
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.proto.endpoint import Endpoint, unpack_untrusted
from stagewire.proto.handshake import Identity
from stagewire.proto.handshaker import Handshaker

A, B = b"a" * 32, b"b" * 32
HOST = "vpn.example.net"


def place(address: str, port: int = 0) -> bytes:
    return Endpoint(ip_address(address).packed, port).pack()


class House:
    """Two peers; A has a name. Time is told."""

    def __init__(self) -> None:
        self.handshaker = Handshaker(Identity.from_private_bytes(bytes(range(32))), bytes(12), os.urandom, lambda: 0.0)
        for key in (A, B):
            self.handshaker.add_peer(key, bytes(32), 0)
        self.names = {A: HostPort(HOST, 51820)}
        self.asked: list[Resolve] = []
        self.subject = Names(
            *(Log(), self.asked.append, self.handshaker, self.names, lambda: ("10.9.0.1",)),
            *(lambda key: key.hex()[:8], self.handshaker.failures),
        )
        self.subject.look(0.0)
        self.look_at = LOOK

    def questions(self, now: float) -> list[str]:
        """The hosts that are asked for until `now`."""
        while (due := min(self.subject.next_deadline() or math.inf, self.look_at)) <= now:
            if due == self.look_at:
                self.look_at += LOOK
                self.subject.look(due)
            self.subject.act(due)
        asked, self.asked[:] = [each.host for each in self.asked], []
        return asked

    def answer(self, now: float, *addresses: str, error: str = "", host: str = HOST) -> Found:
        return self.subject.on_resolved(Resolved(host, tuple(map(place, addresses)), error), now)

    def endpoint(self, key: bytes = A) -> str:
        packed = self.handshaker.peers[key].endpoint
        return str(unpack_untrusted(packed)) if packed else ""


@pytest.fixture
def house() -> House:
    return House()


def test_a_name_is_asked_for_at_once_with_the_servers_to_avoid(house: House) -> None:
    assert house.asked == [Resolve(HOST, ("10.9.0.1",))]
    assert house.subject.unresolved(A) == f"{HOST}: no answer yet"
    assert house.subject.unresolved(B) == ""
    assert house.answer(0.1, "192.0.2.1", "2001:db8::1") == Found([A], [], late=False)
    assert house.endpoint() == "192.0.2.1:51820"
    assert house.subject.unresolved(A) == ""
    assert house.questions(1e5) == [HOST]  # the first; and never again without a reason


def test_it_is_asked_for_again_with_pauses_that_grow_until_there_is_an_answer(house: House) -> None:
    house.questions(0.0)
    now, pauses = 0.0, []
    for _ in range(9):
        house.answer(now, error="no such name")
        begun = now
        while not house.questions(now):
            now += 0.5
        pauses.append(now - begun)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert house.subject.unresolved(A) == "no such name"
    assert house.answer(now, "192.0.2.1") == Found([A], [], late=True)
    assert house.subject.unresolved(A) == ""


def test_late_is_what_came_after_packets_were_refused(house: House) -> None:
    assert house.answer(LATE - 0.1, "192.0.2.1").late is False
    late = House()
    assert late.answer(LATE, "192.0.2.1").late is True


def test_a_new_resolver_service_is_asked_what_the_one_before_left_unanswered(house: House) -> None:
    house.questions(0.0)
    house.subject.start_anew(3.0)
    assert house.questions(3.0) == [HOST]
    for now in (3.1, 4.2, 6.3, 10.4):
        house.answer(now, error="no such name")
        house.questions(now + 4.0)
    house.subject.start_anew(20.0)
    assert house.questions(20.0) == [HOST]
    house.answer(20.0, "192.0.2.1")
    house.subject.start_anew(21.0)
    assert house.questions(21.0) == []


def test_a_lost_answer_is_asked_for_again(house: House) -> None:
    house.questions(0.0)
    assert house.questions(LONGEST_PAUSE - 0.5) == []
    assert house.questions(LONGEST_PAUSE + 1.5) == [HOST]


def test_a_server_that_moved_is_found_again(house: House) -> None:
    house.answer(0.0, "192.0.2.1")
    house.questions(0.0)
    times = []
    for tenths in range(10, 1810, 50):  # an initiation each 5 s
        now = tenths / 10 + 1000
        house.subject.initiation_sent(A, now)
        if house.questions(now):
            times.append(now - 1001)
            moved = now > 1100
            found = house.answer(now, "192.0.2.2" if moved else "192.0.2.1")
            if moved:
                assert found.peers == found.moved == [A]
                break
    assert times[0] == 5.0
    assert all(later - earlier <= LONGEST_PAUSE for earlier, later in itertools.pairwise(times))
    assert house.endpoint() == "192.0.2.2:51820"
    house.subject.answered(A)
    house.subject.initiation_sent(A, 2000.0)
    assert house.questions(2000.0) == []
    house.subject.initiation_sent(A, 2005.0)
    assert house.questions(2005.0) == [HOST]


def test_where_a_peer_answers_from_counts_for_more_than_its_name(house: House) -> None:
    house.answer(0.0, "192.0.2.1")
    house.handshaker.endpoint_moved(A, place("198.51.100.9", 7), boot_time())
    house.questions(0.0)
    house.subject.doubt(A, 100.0)
    assert house.questions(100.0) == [HOST]
    assert house.answer(100.0, "192.0.2.2").peers == []
    assert house.endpoint() == "198.51.100.9:7"
    house.subject.initiation_sent(A, 200.0)
    house.subject.initiation_sent(A, 205.0)
    assert house.answer(206.0, "192.0.2.2").peers == [A]


def test_names_come_and_go_while_it_runs(house: House) -> None:
    house.answer(0.0, "192.0.2.1")
    house.questions(0.5)
    house.names[B] = HostPort(HOST, 99)
    assert house.questions(1.5) == [HOST]
    assert house.answer(1.5, "192.0.2.1").peers == [B]
    assert house.endpoint(B) == "192.0.2.1:99"
    house.names[B] = HostPort("other.example", 98)
    assert house.questions(3.0) == ["other.example"]
    house.names.clear()
    house.questions(5.0)
    assert house.answer(5.0, "192.0.2.3", host="other.example").peers == []
    assert house.subject.unresolved(B) == ""


def test_a_peer_that_is_renamed_goes_where_its_new_name_leads(house: House) -> None:
    house.answer(0.0, "192.0.2.1")
    house.handshaker.peers[B].endpoint = place("192.0.2.3", 3)
    house.questions(0.5)
    house.names[A] = HostPort("other.example", 98)
    house.names[B] = HostPort("other.example", 99)
    assert house.questions(1.5) == ["other.example"]
    assert house.answer(1.6, "192.0.2.9", host="other.example").peers == [A, B]
    assert (house.endpoint(A), house.endpoint(B)) == ("192.0.2.9:98", "192.0.2.9:99")
    house.handshaker.endpoint_moved(A, place("198.51.100.9", 7), boot_time())
    house.subject.doubt(A, 100.0)
    assert house.answer(100.1, "192.0.2.9", host="other.example").peers == []
    assert house.endpoint() == "198.51.100.9:7"


def test_a_peer_that_is_removed_and_added_again_between_two_looks(house: House) -> None:
    house.answer(0.0, "192.0.2.1")
    house.questions(0.5)
    house.handshaker.remove_peer(A)
    house.handshaker.add_peer(A, bytes(32), 0)
    assert house.questions(1.5) == [HOST]
    assert house.answer(1.6, "192.0.2.1").peers == [A]


def test_of_many_names_some_are_asked_for_at_a_time(house: House) -> None:
    house.answer(0.0, "192.0.2.1")
    house.questions(0.5)
    keys = [number.to_bytes(32, "big") for number in range(1000)]
    for number, key in enumerate(keys):
        house.handshaker.add_peer(key, bytes(32), 0)
        house.names[key] = HostPort(f"n{number}.example", 1)
    asked = house.questions(2.0)
    assert len(asked) == MOST_ASKED
    for host in asked:
        house.answer(2.1, "192.0.2.5", host=host)
    assert len(house.questions(2.2)) == MOST_ASKED
    house.subject.start_anew(2.3)  # those that had no answer, and the others later
    assert len(house.questions(2.3)) == MOST_ASKED


def test_an_initiation_without_an_answer_is_tried_at_each_place_in_turn(house: House) -> None:
    house.answer(0.0, "192.0.2.1", "2001:db8::1")
    peer = house.handshaker.peers[A]
    tried = []
    for _ in range(4):
        tried.append(house.endpoint())
        peer.try_elsewhere()
    assert tried == ["192.0.2.1:51820", "[2001:db8::1]:51820"] * 2
    house.handshaker.endpoint_moved(
        A, Endpoint(bytes([198, 51, 100, 9]), 7, source=bytes([10, 0, 0, 1])).pack(), boot_time()
    )
    tried.clear()
    for _ in range(4):
        tried.append(house.endpoint())
        peer.try_elsewhere()
    assert tried == ["198.51.100.9:7", "192.0.2.1:51820", "[2001:db8::1]:51820", "198.51.100.9:7"]
