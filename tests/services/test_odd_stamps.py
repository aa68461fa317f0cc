"""A peer whose clock was once far ahead: it is named in the log, and removing it mends it, whatever dies meanwhile."""

import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.services.house import House
from tests.services.surroundings import PATIENCE, surroundings

from key_service.odd_stamps import SAID_AGAIN, OddStamps
from key_service.registry import Registry, unconfigured
from lab.wait import until
from stagewire.config import PeerConfig, public_key
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.proto import tai64n
from stagewire.proto.messages import OldStamp

LABEL = Registry(
    replace(unconfigured(), peers=(PeerConfig(bytes(32), bytes(32), (), None, 0, False, 0, "Anna"),))
).label
IN_2100 = 4_102_444_800 * 10**9


@pytest.fixture
def house() -> Iterator[House]:
    with surroundings("stamps") as around:
        yield House(around)


class Lines(Log):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[dict[str, object]] = []

    def warning(self, event: str, **values: object) -> None:
        self.said.append({"event": event, **values})


def test_a_peer_is_named_once_in_a_while() -> None:
    log = Lines()
    stamps = OddStamps(log, LABEL)
    old = OldStamp("initiation_replayed", bytes(32), tai64n.encode(10**18), tai64n.encode(IN_2100))
    counting = OldStamp("initiation_replayed", b"\1" * 32, b"\0" * 11 + b"\1", b"\xff" * 12)
    for now in (0.0, 1.0, SAID_AGAIN - 1):
        stamps.refused(old, now)
    stamps.refused(counting, 2.0)
    assert [line["peer"] for line in log.said] == ["Anna (AAAAAAAAAA)", "AQEBAQEBAQ"]
    assert "says 2001-09-09 01:46:40 UTC, an earlier one said 2100-01-01 00:00:00 UTC" in str(log.said[0]["reason"])
    assert "remove the peer and add it again" in str(log.said[0]["mend"])
    assert f"0x{'ff' * 12}" in str(log.said[1]["reason"])
    stamps.refused(old, SAID_AGAIN)
    assert len(log.said) == 3


def test_a_stamp_of_the_future_is_named_with_its_peer() -> None:
    log = Lines()
    stamps = OddStamps(log, LABEL)
    ours = 1_800_000_000 * 10**9
    for ahead, named in ((0, False), (tai64n.MAX_JUMP_NS, False), (tai64n.MAX_JUMP_NS + 10**9, True)):
        stamps.taken(bytes(32), tai64n.encode(ours + ahead), 0.0, ours)
        assert bool(log.said) == named
    stamps.taken(bytes(32), tai64n.encode(IN_2100), 1.0, ours)
    stamps.taken(b"\1" * 32, b"\xff" * 12, 1.0, ours)
    stamps.taken(b"\2" * 32, b"\0" * 11 + b"\7", 1.0, ours)  # it counts
    assert [line["peer"] for line in log.said] == ["Anna (AAAAAAAAAA)", "AQEBAQEBAQ"]
    assert f"0x{'ff' * 12}" in str(log.said[1]["reason"])
    assert "add it again" in str(log.said[1]["mend"])
    stamps.refused(OldStamp("initiation_replayed", bytes(32), tai64n.encode(0), tai64n.encode(IN_2100)), 2.0)
    assert log.said[-1]["event"] == "handshake refused"  # of another kind, so at once


def wg(house: House, text: str) -> None:
    """One operation on the `wg` socket, which succeeds."""
    path = house.environment.wg / "wg0.sock"
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        line.sendall(f"set=1\n{text}\n".encode())
        assert line.recv(100) == b"errno=0\n\n"


def initiation(house: House, unix_ns: int) -> bytes:
    """What the far peer sends when its clock says so."""
    house.far._ahead += 1
    house.far.handshaker._stamper.anchor = None  # its clock may be set, also while it is up
    effects = house.far.handshaker.renew(house.far.ours, boot_time() + house.far._ahead, unix_ns)
    return next(effect.data for effect in effects if hasattr(effect, "data"))


def test_removing_a_peer_forgets_its_stamp_though_key_service_is_killed_at_once(house: House) -> None:
    key = public_key(house.far.private).hex()
    house.say(initiation(house, IN_2100))
    assert house.answer()
    until(lambda: house.key.log.count("handshake from the future") == 1, PATIENCE, "the line of a stamp in 2100")
    house.restart_key_service()
    # A new far peer: its stamps only grow, while this one's clock has been set right.
    house.far.handshaker._stamper = tai64n.Stamper()
    house.say(initiation(house, time.time_ns()))
    until(lambda: "handshake refused" in house.key.log, PATIENCE, "the refusal's line")
    assert house.answer(0.2) == b""
    house.say(initiation(house, time.time_ns()))
    until(lambda: house.counters.wait_for().get("initiation_replayed", 0) >= 2, PATIENCE, "the refusals")
    assert house.key.log.count("handshake refused") == 1
    wg(house, f"public_key={key}\nremove=true\n")
    house.key.process.send_signal(signal.SIGKILL)
    house.restart_key_service()
    wg(house, f"public_key={key}\nallowed_ip=10.9.0.2/32\n")
    house.wait_for_worker()

    def answered() -> bytes:
        house.say(initiation(house, time.time_ns()))
        return house.answer(0.1)

    until(answered, PATIENCE, "an answer")


def test_a_removed_peer_whose_clock_is_still_wrong_is_named_again(house: House) -> None:
    key = public_key(house.far.private).hex()
    for count, change in enumerate(("remove=true", "update_only=true\nremove=true"), 1):
        house.say(initiation(house, IN_2100))
        until(lambda n=count: house.key.log.count("handshake from the future") == n, PATIENCE, "the line")  # type: ignore[misc]
        wg(house, f"public_key={key}\n{change}\npublic_key={key}\nallowed_ip=10.9.0.2/32\n")
        house.far.handshaker._stamper = tai64n.Stamper()


def test_removed_and_added_again_in_one_operation(house: House) -> None:
    key = public_key(house.far.private).hex()
    house.say(initiation(house, IN_2100))
    assert house.answer()
    house.far.handshaker._stamper = tai64n.Stamper()
    wg(house, f"replace_peers=true\npublic_key={key}\nallowed_ip=10.9.0.2/32\n")
    house.say(initiation(house, time.time_ns()))
    until(lambda: "handshake refused" in house.key.log, PATIENCE, "the refusal's line")
    wg(house, f"public_key={key}\nremove=true\npublic_key={key}\nallowed_ip=10.9.0.2/32\n")

    def answered() -> bytes:
        house.say(initiation(house, time.time_ns()))
        return house.answer(0.1)

    until(answered, PATIENCE, "an answer")
