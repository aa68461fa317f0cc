"""Tries what host-service has a say in: a change waits for its answer, and a refusal leaves all as it was."""

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.services.live import FILE, PRIVATE, A, B, House, apply, peer

from key_service import live
from key_service.live import Task
from key_service.registry import Registry
from key_service.trial import WITHIN
from stagewire.config.parser import parse
from stagewire.config.uapi import Change
from stagewire.control.messages import (
    HostSettings,
    HostState,
    Listening,
    RoutesGone,
    RoutesSet,
    SendingExpired,
    SocketSettings,
)
from stagewire.loop import boot_time


@pytest.fixture(autouse=True)
def _in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little of a processor we get."""
    monkeypatch.setattr(live, "BUDGET", 60.0)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_changes_wait_behind_a_port(house: House) -> None:
    house.change(listen_port=7)
    house.change(peer(A))
    house.change(peer(B))
    assert (house.answers, house.registry.peers) == ([], {})
    house.live.on_listening(Listening(7, 0, house.request()))
    assert house.answers == [0, 0, 0]
    assert list(house.registry.peers) == [A, B]
    assert (house.live.port, house.registry.interface.listen_port) == (7, 7)
    assert house.live.next_deadline() is None


def test_a_refusal_leaves_all_as_it_was(house: House) -> None:
    house.change(peer(A, "10.0.0.0/8"), listen_port=6)
    house.live.on_listening(Listening(6, 0, house.request()))
    before, remembered = house.registry.snapshot(), house.store.read_bytes()
    house.hub.said.clear()
    house.change(peer(B, "10.0.0.0/8"), listen_port=7, fwmark=9, replace_peers=True, private_key=PRIVATE)
    house.change(peer(B, "11.0.0.0/8"))
    house.live.on_listening(Listening(6, errno.EADDRINUSE, house.request()))
    assert house.answers == [0, errno.EADDRINUSE, 0]
    assert house.registry.snapshot().peers[:1] == before.peers
    assert (house.registry.interface, house.live.port) == (replace(before, peers=()), 6)
    assert set(house.registry.peers) == {A, B}, "the next one was made"
    assert house.handshaker.public_key is None
    assert not house.hub.take(SendingExpired)
    assert house.store.read_bytes() != remembered


def test_an_answer_to_something_else_is_not_taken_for_ones_own(house: House) -> None:
    house.change(private_key=PRIVATE)
    assert not house.hub.take(SocketSettings)
    house.change(listen_port=7)
    request = house.request()
    house.live.on_listening(Listening(5, 0, 0))
    assert (house.answers, house.live.port) == ([0], 5)
    house.live.on_listening(Listening(5, errno.EACCES, request))
    assert house.answers == [0, errno.EACCES]


def test_who_says_nothing_is_not_waited_for_long(house: House) -> None:
    house.change(listen_port=7)
    house.change(peer(A))
    deadline = house.live.next_deadline()
    assert deadline == pytest.approx(boot_time() + WITHIN, abs=1)
    first = house.request()
    house.live.act(deadline or 0.0)
    assert house.answers == [0, 0]
    assert house.hub.take(SocketSettings)[-1].listen_port == 7, "told again: it may have come back meanwhile"
    house.live.on_listening(Listening(7, 0, first))
    assert house.live.port == 7


def test_without_a_host_service_nobody_is_waited_for(house: House) -> None:
    house.hub.host_is_there = False
    house.change(listen_port=7, fwmark=3)
    assert house.answers == [0]
    assert house.live.next_deadline() is None


def test_a_host_service_that_comes_during_a_change_learns_of_it(house: House) -> None:
    """Its snapshot, in between, has the former port: the gateway kept listening there."""
    change = Change(listen_port=7, fwmark=3)

    def comes_while_it_is_stored() -> Iterator[None]:
        house.hub.host_is_there = True
        yield

    house.hub.host_is_there = False
    house.live.make(Task(lambda prepared: prepared.work_out(change), comes_while_it_is_stored, house.answers.append))
    assert house.answers == [0]
    assert house.hub.take(SocketSettings) == [SocketSettings(7, 3, 0)]
    assert [settings.fwmark for settings in house.hub.take(HostSettings)] == [3]


def test_a_port_that_is_taken_refuses_the_whole_file(tmp_path: Path) -> None:
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")))
    before = house.registry.snapshot()
    apply(house, FILE.replace("Address", "ListenPort = 9\nMTU = 1300\nAddress"))
    house.live.on_listening(Listening(1, errno.EADDRINUSE, house.request()))
    assert (house.answers, house.hub.said, house.registry.snapshot()) == ([errno.EADDRINUSE], [], before)


def test_a_mark_holds_once_host_service_says_so(house: House) -> None:
    house.change(fwmark=9)
    house.live.on_listening(Listening(1, 0, house.request()))
    assert (house.answers, house.registry.interface.fwmark) == ([], 0)
    house.live.on_host_state(HostState(0, (), (), 0))
    assert house.answers == [], "that was about something else"
    assert house.host_says().fwmark == 9
    assert (house.answers, house.registry.interface.fwmark) == ([0], 9)
    assert not house.hub.take(HostSettings), "it has been told"


def test_a_mark_that_host_service_refuses_changes_nothing(house: House) -> None:
    house.change(fwmark=9, private_key=PRIVATE)
    house.live.on_listening(Listening(1, 0, house.request()))
    house.host_says("FwMark 0x9 is another tunnel's mark")
    assert house.hub.take(SocketSettings)[-1].fwmark == 0
    assert house.answers == [], "before it says that all is as it was"
    assert house.host_says().fwmark == 0
    assert (house.answers, house.registry.interface.fwmark) == ([errno.EBUSY], 0)
    assert house.handshaker.public_key is None
    assert house.live.next_deadline() is None


def test_a_fault_that_was_there_before_refuses_nothing(house: House) -> None:
    house.live.on_host_state(HostState(0, (), (), 0, "no room"))
    house.change(fwmark=9)
    house.live.on_listening(Listening(1, 0, house.request()))
    house.host_says("no room")
    assert house.answers == [0]


def test_who_does_not_answer_for_the_network_is_told_again(house: House) -> None:
    house.change(fwmark=9)
    house.live.on_listening(Listening(1, 0, house.request()))
    assert house.hub.take(HostSettings)
    house.live.act(house.live.next_deadline() or 0.0)
    assert house.answers == [0]
    assert (house.hub.take(HostSettings)[-1].fwmark, house.hub.take(SocketSettings)[-1].fwmark) == (9, 9)


def test_a_route_that_is_taken_refuses_the_whole_file(tmp_path: Path) -> None:
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")), managed=True)
    before = house.registry.snapshot()
    said: list[str] = []
    apply(house, FILE.replace("10.1.0.0/16", "10.2.0.0/16").replace("10.0.0.1", "10.0.0.2"), said=said.append)
    house.change(peer(A, persistent_keepalive=7))
    [gone], [fresh] = house.hub.take(RoutesGone), house.hub.take(RoutesSet)
    assert house.host_says("", "route 10.2.0.0/16 is taken").addresses == ("10.0.0.2/24",)
    assert house.hub.take(RoutesGone)[0].prefixes == fresh.prefixes
    assert house.hub.take(RoutesSet)[0].prefixes == gone.prefixes
    assert {stage for stage, _, _ in house.hub.said} == {"host"}
    assert (house.answers, house.registry.snapshot()) == ([], before)
    assert house.host_says().addresses == ("10.0.0.1/24",)
    assert house.answers == [errno.EBUSY, 0], "and the next one is made"
    assert said == ["route 10.2.0.0/16 is taken; remove that route, or the prefix from AllowedIPs"]
    assert house.registry.snapshot().peers[0].allowed_ips == before.peers[0].allowed_ips


def test_another_life_of_host_service_is_told_all_once_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, Registry(parse(FILE, "wg0.conf")), managed=True)
    apply(house, FILE.replace("10.1.0.0/16", "10.2.0.0/16").replace("10.0.0.1", "10.0.0.2"))
    house.hub.take(RoutesSet)
    monkeypatch.setattr(house.hub, "member", lambda _stage, _number=0: object())
    house.host_says()
    assert [stage for stage, _, message in house.hub.said if isinstance(message, RoutesSet)] == ["tun", "host"]
    assert house.hub.take(HostSettings)[-1].addresses == ("10.0.0.2/24",)
