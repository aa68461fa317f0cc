"""What root writes into a configuration file for key-service: peers alone, in one step, or nothing."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from stagewire.config import encode_key, operations
from stagewire.config.operations import AddPeers, NewPeer, RenamePeer, SwitchPeers
from stagewire.environment import Environment
from stagewire_cli import again, bring_up, key_door, peers, peers_file, reload
from stagewire_cli.failures import Failed

KEYS = [encode_key(bytes([number]) * 32) for number in range(1, 5)]
TEXT = f"[Interface]\nPrivateKey = {KEYS[0]}\nPostUp = echo\n\n[Peer]\n# Name = a\nPublicKey = {KEYS[1]}\n"
RENAMED = TEXT.replace("Name = a", "Name = b")
OPERATION = RenamePeer("a", "b")
RACES = 1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "wg0.conf"
    path.write_text(TEXT)
    path.chmod(0o600)
    return path


@pytest.fixture
def environment(tmp_path: Path, file: Path) -> Environment:
    (tmp_path / "run" / "wg0" / "key").mkdir(parents=True)
    return Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path / "run"), "STAGEWIRE_CONFIG": str(file)}, "wg0")


@contextmanager
def key_service(environment: Environment, *turns: bytes | None) -> Iterator[list[bytes]]:
    """A key-service that says each of these in turn, after it has heard something; None: it dies there."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(environment.run / "key" / "reload"))
        listener.listen()

        def serve() -> None:
            connection = None
            for turn in turns:
                if connection is None:
                    connection, _ = listener.accept()
                heard.append(connection.recv(1 << 20))
                if turn is None:
                    connection.close()
                    connection = None
                else:
                    with suppress(OSError):  # the command has left
                        connection.sendall(turn)
            if connection is not None:
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield heard
        thread.join(5)


def writes(text: str) -> bytes:
    data = text.encode()
    return json.dumps({"error": "", "write": len(data)}).encode() + b"\n" + data


def made(*lines: str) -> bytes:
    return json.dumps({"error": "", "warning": "", "difference": lines}).encode() + b"\n"


def carry_out(environment: Environment, file: Path) -> peers.Done:
    with peers_file.locked(file) as locked:
        return peers.by_key_service(environment, OPERATION, locked, locked.write)


def left(file: Path) -> list[str]:
    return sorted(each.name for each in file.parent.iterdir())


def test_the_file_is_replaced_and_nothing_is_left(environment: Environment, file: Path) -> None:
    with key_service(environment, writes(RENAMED), made("~ a line")) as heard:
        done = carry_out(environment, file)
    assert (done.text, done.changes) == (RENAMED, ["~ a line"])
    assert file.read_text() == RENAMED
    assert file.stat().st_mode & 0o777 == 0o600
    assert left(file) == ["run", "wg0.conf"]
    assert json.loads(heard[0].partition(b"\n")[0])["operation"]["do"] == "RenamePeer"


@pytest.mark.parametrize(
    "evil",
    [
        RENAMED.replace("echo", "id"),
        RENAMED.replace("[Interface]", "[Interface]\nDNS = 6.6.6.6"),
        RENAMED.replace("[Interface]", "[Interface]\nTable = off"),
        RENAMED.replace("[Interface]", "[Interface]\n# stagewire: Firewall = open"),
        RENAMED.replace("[Interface]", "[Interface]\n# stagewire: Exit = on"),
        RENAMED.replace(KEYS[0], KEYS[3]),
        RENAMED + "PostUp = id\n",
        RENAMED + f"\n[Peer]\nPublicKey = {KEYS[2]}\nAllowedIPs = nowhere\n",
    ],
)
def test_a_hostile_key_service_writes_nothing_but_peers(environment: Environment, file: Path, evil: str) -> None:
    with (
        key_service(environment, writes(evil), made()),
        pytest.raises(Failed, match=r"nothing is written|with a mistake"),
    ):
        carry_out(environment, file)
    assert file.read_text() == TEXT
    assert left(file) == ["run", "wg0.conf"]


@pytest.mark.parametrize(
    "answer",
    [
        b"\n", b"[]\n", b"{", b"5\n", b'{"write": -1}\n', b'{"write": 1e9}\n', b'{"write": 99999999999}\n',
        b'{"write": 5}\nab', b'{"difference": 5}\n', b"[" * 100_000 + b"\n", b"\xff\n", None,
    ],
)  # fmt: skip
def test_any_other_answer_changes_nothing(
    environment: Environment, file: Path, answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "WITHIN", 0.0)
    with key_service(environment, answer), pytest.raises(Failed, match=r"nothing is changed$"):
        carry_out(environment, file)
    assert file.read_text() == TEXT


def test_a_key_service_that_dies_before_it_said_anything_is_asked_again(environment: Environment, file: Path) -> None:
    with key_service(environment, None, writes(RENAMED), made("~ a line")):
        assert carry_out(environment, file).changes == ["~ a line"]
    assert file.read_text() == RENAMED


def test_a_refused_change_leaves_the_file_as_it_was(environment: Environment, file: Path) -> None:
    before = file.stat().st_ino
    with (
        key_service(environment, writes(RENAMED), b'{"error": "route 10.0.0.0/8 is taken"}\n'),
        pytest.raises(Failed, match=r"route 10.*; nothing is changed$"),
    ):
        carry_out(environment, file)
    assert file.read_text() == TEXT
    assert file.stat().st_ino == before
    assert left(file) == ["run", "wg0.conf"]


def test_the_next_key_service_takes_up_what_a_killed_one_left(environment: Environment, file: Path) -> None:
    with key_service(environment, writes(RENAMED), None, made("- peer a")) as heard:
        done = carry_out(environment, file)
    assert done.changes == [f"~ peer a ({KEYS[1][:10]})", "    ~ Name a -> b"]
    assert file.read_text() == RENAMED
    assert json.loads(heard[2].partition(b"\n")[0])["do"] == "adopt"


def test_a_peer_that_is_disabled_is_told_so_also_by_the_next_key_service(environment: Environment, file: Path) -> None:
    operation = SwitchPeers(("a",), on=False)
    off = operations.carry_out(TEXT, "", operation, {}, 0).text
    with key_service(environment, writes(off), None, made("- peer a")), peers_file.locked(file) as locked:
        done = peers.by_key_service(environment, operation, locked, locked.write)
    assert done.changes == [f"~ peer a ({KEYS[1][:10]}) is out of use"]


def test_what_the_next_key_service_refuses_is_taken_back(environment: Environment, file: Path) -> None:
    refused = b'{"error": "route 10.0.0.0/8 is taken"}\n'
    with (
        key_service(environment, writes(RENAMED), None, refused),
        pytest.raises(Failed, match=r"route 10.*; nothing is changed$"),
    ):
        carry_out(environment, file)
    assert file.read_text() == TEXT


@pytest.mark.parametrize(("left_over", "holds"), [((), True), (("~ MTU 1420 -> 1380",), False)])
def test_what_was_applied_while_key_service_died_is_asked_of_the_next(
    environment: Environment, left_over: tuple[str, ...], holds: bool
) -> None:
    with key_service(environment, None, made(*left_over)):
        with pytest.raises(key_door.Unanswered):
            key_door.apply(environment, TEXT)
        if holds:
            reload.expect_to_hold(environment, TEXT)
        else:
            with pytest.raises(Failed, match="the change does not hold: try again"):
                reload.expect_to_hold(environment, TEXT)


def test_without_any_the_file_has_the_change_and_the_operator_is_told(
    environment: Environment, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "WITHIN", 0.0)
    with (
        key_service(environment, writes(RENAMED), None, None),
        pytest.raises(
            Failed, match=r"the change stands in .*may not hold yet: `stagewire reload wg0` puts it in force"
        ),
    ):
        carry_out(environment, file)
    assert file.read_text() == RENAMED


def test_a_file_that_another_program_replaced_meanwhile_stays(environment: Environment, file: Path) -> None:
    other = file.with_name("other")
    other.write_text(TEXT + "# an edit\n")
    other.chmod(0o600)
    with peers_file.locked(file) as locked:
        other.replace(file)
        with pytest.raises(Failed, match="was replaced by another program"):
            locked.write(RENAMED)
    assert file.read_text() == TEXT + "# an edit\n"
    assert left(file) == ["run", "wg0.conf"]


def test_a_full_disk_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with peers_file.locked(file) as locked, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Failed, match="No space left on device"):
            locked.write(RENAMED)
    assert file.read_text() == TEXT
    assert left(file) == ["wg0.conf"]


def test_two_commands_take_turns(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_file, "PATIENCE", 0.05)
    with peers_file.locked(file) as locked:
        with pytest.raises(Failed, match="another command has been changing it"), peers_file.locked(file):
            pass
        locked.write(RENAMED)
        with pytest.raises(Failed, match="another command has been changing it"), peers_file.locked(file):
            pass
    with peers_file.locked(file) as after:
        assert after.text == RENAMED


def test_what_a_killed_command_has_left_goes_but_not_beside_one_at_work(file: Path) -> None:
    former = file.with_name(f".{file.name}.before")
    former.write_text("with a removed key")
    peers_file.clear_former(file)
    assert not former.exists()
    former.write_text("with a removed key")
    with peers_file.locked(file) as locked:
        assert not former.exists()
        locked.write(RENAMED)
        peers_file.clear_former(file)
        locked.put_back()
    assert left(file) == [file.name]
    assert file.read_text() != RENAMED


def test_an_answer_that_drips_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_door, "TIMEOUT", 0.05)
    ours, theirs = socket.socketpair()

    def drip() -> None:
        with suppress(OSError):
            while theirs.send(b"x"):
                time.sleep(0.001)

    dripping = threading.Thread(target=drip, daemon=True)
    with theirs:
        with ours:
            dripping.start()
            with pytest.raises(ValueError):  # noqa: PT011 - it says nothing
                key_door._exactly(ours, 10**6)
        dripping.join()


def test_the_answer_is_read_and_nothing_behind_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'{"write": 3}\nabc{"error": ""}\n')
        assert key_door._answer(ours)["write"] == 3
        assert key_door._exactly(ours, 3) == "abc"
        assert key_door._answer(ours) == {"error": ""}


def races(environment: Environment, count: int, clear: Callable[[], object]) -> None:
    """Has two add a peer each at once, so many times, and clears in between. Fails if they ever get one address."""
    start = threading.Barrier(2, timeout=30)

    def adds(who: int) -> None:
        for _ in range(count):
            start.wait()
            peers.carry_out(environment, AddPeers((NewPeer(f"{who}", KEYS[2 + who]),)))
            start.wait()
            if who == 0:
                addresses = [each for peer in peers.read(environment).whole.peers for each in peer.allowed_ips]
                assert len(addresses) == len({*addresses}) == 4
                clear()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(adds, who) for who in range(2)]:
            done.result()


def test_two_at_once_never_give_an_address_twice(
    environment: Environment, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bring_up, "is_up", lambda _environment: False)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)  # the disk is not what is tried
    monkeypatch.setattr(peers_file, "_POLL", 0.001)
    text = TEXT.replace("PostUp", "Address = 10.8.0.1/24, fd00::1/64\nPostUp")
    file.write_text(text)
    races(environment, RACES, lambda: file.write_text(text))
    assert file.read_text() == text
    assert left(file) == ["run", "wg0.conf"]
