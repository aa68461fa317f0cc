"""Changes through the `wg` socket as events: by whom, what, bounded, and without a secret."""

import json
from ipaddress import ip_network
from pathlib import Path

import pytest

from key_service.wg_events import MOST_LINES, MOST_PROCESSES, WgEvents
from stagewire.audit import Audit
from stagewire.config.uapi import Change, PeerChange, PrefixChange
from stagewire.control.event import MAX_CHANGES, Event
from stagewire.linux.peer_credentials import Credentials
from stagewire.logs import Log
from stagewire.proto.endpoint import Endpoint

ROOT = Credentials(7, 0, 0)
KEY, SECRET = bytes([1]) * 32, bytes([9]) * 32


Made = tuple[WgEvents, list[Event]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    happened: list[Event] = []
    return WgEvents(lambda key: f"peer{key[0]}", happened.append, Audit(tmp_path, "wg0"), Log()), happened


def test_an_event_says_what_was_changed_and_by_whom_but_no_secret(made: Made) -> None:
    events, happened = made
    prefix = ip_network("10.0.0.0/24")
    place, allowed = Endpoint(bytes([192, 0, 2, 1]), 5), (PrefixChange(prefix, add=True),)
    peer = PeerChange(
        KEY, 1, preshared_key=SECRET, endpoint=place, persistent_keepalive=0, replace_allowed_ips=True,
        allowed_ips=allowed,
    )  # fmt: skip
    events.note(
        ROOT, Change(private_key=SECRET, listen_port=0, fwmark=7, peers=(peer, PeerChange(SECRET, 1, remove=True))), []
    )
    events.tell(0.0)
    [event] = happened
    assert (event.kind, event.what) == ("reloaded", "wg set, by uid 0 (pid 7)")
    assert event.changes == (
        "another private key", "ListenPort any", "FwMark 7",
        "peer peer1  PresharedKey  Endpoint 192.0.2.1:5  PersistentKeepalive off  AllowedIPs 10.0.0.0/24",
        "peer peer9  removed",
    )  # fmt: skip
    events.tell(1.0)
    assert len(happened) == 1


def test_a_thousand_changes_are_one_event_and_a_change_of_nothing_is_none(made: Made) -> None:
    events, happened = made
    for number in range(1000):
        events.note(ROOT, Change(peers=(PeerChange(bytes([number % 200]) * 32, 1, persistent_keepalive=5),)), [])
    events.note(Credentials(8, 1000, 0), Change(), [])
    events.tell(0.0)
    [event] = happened
    assert len(event.changes) == MAX_CHANGES + 1
    assert event.changes[-1] == "and 995 more"


def test_many_processes_at_once_are_bounded(made: Made) -> None:
    events, happened = made
    for pid in range(100):
        events.note(Credentials(pid, 0, 0), Change(listen_port=1), [])
    events.tell(0.0)
    assert len(happened) == MOST_PROCESSES


def test_the_audit_gets_each_difference_up_to_a_bound(made: Made, tmp_path: Path) -> None:
    events, _ = made
    for number in range(MOST_LINES + 5):
        events.note(ROOT, Change(), [f"~ peer {number}"])
    events.tell(0.0)
    events.tell(1.0)
    [line] = map(json.loads, (tmp_path / "audit").read_text().splitlines())
    assert (line["uid"], line["pid"], line["what"]) == (0, 7, "wg set")
    assert line["changes"] == [*(f"~ peer {number}" for number in range(MOST_LINES)), "and 5 more"]
