"""Commands at the door of a real key-service: two at once, again, of another version, and after its death."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.services.surroundings import PATIENCE, Program, Surroundings, surroundings
from tests.services.test_peers_file import TEXT, races

from lab.wait import until
from stagewire.config import encode_key, operations, peer_names, public_key, roster, unconfirmed
from stagewire.config.operations import AddPeers, NewPeer, RemovePeers, RenamePeer, SetPeer, SwitchPeers
from stagewire.config.settings import Setting
from stagewire.control import query, requests
from stagewire.environment import Environment
from stagewire_cli import bring_up, key_door, peers, peers_file, reload, saving
from stagewire_cli.failures import Failed

RACES = 60
SAVES = 15
INTERFACE = TEXT.replace("PostUp", "Address = 10.8.0.1/24, fd00::1/64\nPostUp")
OTHER = INTERFACE.replace("PostUp", "MTU = 1400\nPostUp")


class Door:
    """key-service alone, with a file and an audit."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self.file, folder = around.config, around.directory
        variables = {
            "STAGEWIRE_RUN_DIR": folder / "run", "STAGEWIRE_CONFIG": self.file, "STAGEWIRE_WG_DIR": folder / "wg",
            "STAGEWIRE_STATE_DIR": folder / "state",
        }  # fmt: skip
        self.environment = Environment.read({name: str(value) for name, value in variables.items()}, "wg0")
        self.write(INTERFACE)
        self.begins()

    def write(self, text: str) -> None:
        self.file.write_text(text)
        self.file.chmod(0o600)

    def _started(self) -> Program:
        begun = self._around.start("key-service")
        until(self._answers, PATIENCE, f"key-service to answer: {begun.log}")
        return begun

    def _answers(self) -> bool:
        try:
            key_door.trial(self.environment)
        except Failed:
            return False
        return True

    def begins(self) -> None:
        self.program = self._started()

    def dies(self) -> None:
        """And another takes its place."""
        self.program.kill()
        self.begins()

    def apply(self, text: str, confirm: int = 0) -> list[str]:
        self.write(text)
        return key_door.apply(self.environment, text, confirm=confirm)[0]

    def differs(self, text: str) -> list[str]:
        """What a text would change of what is in force."""
        return key_door.apply(self.environment, text, dry_run=True)[0]


@pytest.fixture(scope="module")
def one() -> Iterator[Door]:
    with surroundings("door") as around:
        yield Door(around)


@pytest.fixture(autouse=True)
def _as_it_was(one: Door) -> Iterator[None]:
    yield
    one.apply(INTERFACE)


def test_two_at_once_never_give_an_address_twice(one: Door) -> None:
    both = RemovePeers(("0", "1"))
    races(one.environment, RACES, lambda: peers.carry_out(one.environment, both))
    assert one.file.read_text() == INTERFACE
    assert one.differs(INTERFACE) == []


def test_the_same_file_again_changes_nothing(one: Door) -> None:
    assert one.apply(OTHER) == ["+ MTU 1400"]
    assert one.apply(OTHER) == []


def test_a_peer_that_an_edit_puts_out_of_use_is_not_said_to_go(one: Door) -> None:
    off = operations.carry_out(INTERFACE, "", SwitchPeers(("a",), on=False), {}, 0).text
    [says_off] = one.differs(off)
    assert says_off.startswith("~ peer a (")
    assert says_off.endswith(" is out of use")
    assert one.apply(off) == [says_off]
    assert one.apply(INTERFACE) == [says_off.replace("out of use", "in use")]
    one.write(off)
    assert key_door.adopt(one.environment, off)[1] == ""
    assert last_audited(one) == ("change taken up again", [says_off])


def last_audited(one: Door) -> tuple[str, list[str]]:
    line = json.loads((one.environment.state / "audit").read_text().splitlines()[-1])
    assert (line["uid"], line["pid"]) == (0, os.getpid())
    return line["what"], line["changes"]


def test_the_audit_has_applying_confirming_backups_and_all_that_a_removed_peer_had(one: Door) -> None:
    one.apply(OTHER)
    assert last_audited(one) == ("apply", ["+ MTU 1400"])
    one.apply(INTERFACE, confirm=60)
    assert last_audited(one) == ("apply --confirm 60", ["- MTU 1400"])
    key_door.backed_up(one.environment, "one.backup")
    assert last_audited(one) == ("backup", ["to one.backup"])
    key_door.confirm(one.environment)
    assert last_audited(one) == ("confirm", [])
    words = {
        "Rate": "10M",
        "Quota": "50G",
        "Expires": "2099-01-31T00:00:00Z",
        "Allow": "10.0.0.0/24 tcp 443",
        "Groups": "staff",
    }
    limits = tuple(Setting(key, value) for key, value in words.items())
    peers.carry_out(one.environment, SetPeer("a", limits))
    peers.carry_out(one.environment, RemovePeers(("a",)))
    what, [gone] = last_audited(one)
    assert what == "peer remove"
    assert [f"{key} {value}" for key, value in words.items() if f"  {key} {value}" not in gone] == []


def test_the_audit_has_what_wg_changed_with_what_was_before(one: Door) -> None:
    [peer] = [each for each in roster.read(INTERFACE, "").whole.peers if each.name == "a"]
    socket_path = one.environment.wg / "wg0.sock"
    for line in (f"public_key={peer.public_key.hex()}\nupdate_only=true\npersistent_keepalive_interval=7", "fwmark=9"):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(socket_path))
            asking.sendall(f"set=1\n{line}\n\n".encode())
            assert b"errno=0" in asking.recv(100)
    name = peer_names.label(encode_key(peer.public_key), "a")
    wanted = [f"~ peer {name}", "    + PersistentKeepalive 7", "+ FwMark 9"]

    def noted() -> list[str]:
        lines = map(json.loads, (one.environment.state / "audit").read_text().splitlines())
        return [change for line in lines if line["what"] == "wg set" for change in line["changes"]]

    until(lambda: noted() == wanted, PATIENCE, f"the audit to have {wanted}, and not {noted()}")


def test_a_warning_names_the_file_that_the_interface_was_brought_up_with(
    one: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one in /etc/stagewire that its name stands for otherwise."""
    by_name = replace(one.environment, config=Path("/etc/stagewire/wg0.conf"))
    (by_name.run / "config").symlink_to(one.file)
    monkeypatch.setattr(bring_up, "is_up", lambda _environment: True)
    done = peers.carry_out(by_name, SetPeer("a", (Setting("Groups", "staff"),)))
    assert {warning.path for warning in peers.after(done).whole.warnings} == {str(one.file)}


def test_a_file_with_a_time_that_is_over_is_refused(one: Door) -> None:
    key = encode_key(public_key(bytes(range(32))))
    ended = f"{INTERFACE}[Peer]\nPublicKey = {key}\n# stagewire: Expires = 2020-01-31\n"
    for tried in (one.apply, one.differs):
        with pytest.raises(Failed, match=r"peer .*Expires 2020-01-31T00:00:00Z is over already"):
            tried(ended)
    one.apply(ended.replace("2020", "2099"))


def test_a_reload_never_takes_back_what_another_command_writes_meanwhile(one: Door) -> None:
    with ThreadPoolExecutor(1) as pool:
        with peers_file.locked(one.file) as file:
            doing = pool.submit(reload.reload, one.environment, print, print)
            assert wait([doing], 0.3).not_done
            key_door.operate(one.environment, RenamePeer("a", "b"), file.text, file.write)
        doing.result()
    assert "Name = b" in one.file.read_text()
    assert one.differs(one.file.read_text()) == []


def test_save_add_and_apply_at_once_lose_no_peer(one: Door) -> None:
    """Fails if `save` writes what was in force before another command's change."""
    start = threading.Barrier(3, timeout=10)
    names: list[str] = []

    def add() -> None:
        for number in range(SAVES):
            start.wait()
            key = encode_key(public_key(bytes([number + 100]) * 32))
            peers.carry_out(one.environment, AddPeers((NewPeer(f"racer {number}", key),)))
            names.append(f"racer {number}")
            start.wait()
            text = one.file.read_text()
            assert [name for name in names if f"# Name = {name}\n" not in text] == []
            assert one.differs(text) == []

    def again(command: Callable[[], None]) -> None:
        for _ in range(SAVES):
            start.wait()
            command()
            start.wait()

    with ThreadPoolExecutor(3) as pool:
        doing = [pool.submit(add)]
        doing.append(pool.submit(again, lambda: saving.save(one.environment, print)))
        doing.append(pool.submit(again, lambda: reload.reload(one.environment, print, print)))
        for done in doing:
            done.result()


def test_save_keeps_a_free_port_free_though_the_first_answer_is_late(
    one: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, in_time = iter([None]), query.key_service
    monkeypatch.setattr(query, "key_service", lambda around: next(late, in_time(around)))
    saving.save(one.environment, print)
    assert "ListenPort" not in one.file.read_text()


def test_what_nobody_confirms_goes_back_though_key_service_dies(one: Door) -> None:
    one.write(OTHER)
    number = key_door.apply(one.environment, OTHER, confirm=5).trial
    one.dies()
    assert 0 < key_door.trial(one.environment).left <= 5
    with pytest.raises(Failed, match=r"waits for . s for its confirmation"):
        peers.carry_out(one.environment, RenamePeer("a", "b"))
    assert one.differs(OTHER) == []
    until(lambda: not key_door.trial(one.environment).left, 5.5, "the time to be over", promptly=True)
    until(lambda: one.differs(OTHER), 1, "all to be as it was")
    assert one.differs(INTERFACE) == []
    one.dies()
    assert key_door.trial(one.environment, number).ended == "back"
    assert unconfirmed.holds(one.environment.state, OTHER), "the file keeps the edit, which the next `up` must tell"
    one.apply(OTHER)
    assert not unconfirmed.holds(one.environment.state, OTHER)


def test_a_trial_is_confirmed_once_and_alone(one: Door) -> None:
    number = key_door.apply(one.environment, OTHER, confirm=60).trial
    assert key_door.trial(one.environment, number).ended == ""
    assert unconfirmed.holds(one.environment.state, OTHER)
    key_door.confirm(one.environment)
    one.dies()
    assert key_door.trial(one.environment, number) == key_door.Trial(0.0, "kept")
    assert key_door.trial(one.environment, "another") == key_door.Trial(0.0, "")
    assert not unconfirmed.holds(one.environment.state, OTHER)
    with pytest.raises(Failed, match="nothing waits for a confirmation"):
        key_door.confirm(one.environment)


def test_where_nothing_differs_nothing_waits(one: Door) -> None:
    applied = key_door.apply(one.environment, INTERFACE, confirm=60)
    assert (applied.difference, applied.trial, key_door.trial(one.environment).left) == ([], "", 0.0)


def test_what_is_over_when_the_next_key_service_begins_goes_back_at_once(one: Door) -> None:
    one.apply(OTHER, confirm=1)
    over = time.monotonic() + 1
    one.program.kill()
    until(lambda: time.monotonic() > over, 2, "the time to be over")
    one.begins()
    until(lambda: one.differs(INTERFACE) == [], 2, "all to be as it was")
    assert key_door.trial(one.environment).left == 0


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ({"do": "operate", "operation": {"version": 2, "do": "RenamePeer"}}, "another version than 1"),
        ({"do": "operate", "operation": {"version": 1, "do": "BlessPeer"}}, "`do` must be one of"),
        ({"version": 2, "do": "confirm"}, "another version than 1"),
        ({"do": "later"}, "use the `stagewire` of its version"),
        ({"do": "apply", "confirm": -1}, "use the `stagewire` of its version"),
    ],
)  # fmt: skip
def test_a_message_of_another_version_is_refused_in_a_line(
    one: Door, question: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(requests, "to_json", lambda _request, by, length: {**question, "by": by, "length": length})
        with pytest.raises(Failed, match=why) as failed:
            key_door.confirm(one.environment)
    assert "\n" not in str(failed.value)
    assert one.differs(INTERFACE) == []
