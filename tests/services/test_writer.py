"""Root's writer of the file: it takes one kind of request, works the text out itself, and believes no key-service."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.services.test_peers_file import key_service, left, made, writes

from stagewire.config import encode_key, operations
from stagewire.config.operations import ExpirePeers, RenamePeer
from stagewire.config.settings import Setting
from stagewire.control.operations import to_json
from stagewire.control.shapes import BadOperation
from stagewire.environment import Environment
from stagewire_cli import writer
from stagewire_cli.failures import Failed

KEYS = [encode_key(bytes([number]) * 32) for number in range(1, 5)]
TEXT = f"""[Interface]
PrivateKey = {KEYS[0]}
PostUp = echo

[Peer]
# Name = gone
# stagewire: Expires = 2020-01-01T00:00:00Z
PublicKey = {KEYS[1]}

[Peer]
# Name = stays
PublicKey = {KEYS[2]}
"""
OVER = """
# stagewire off: [Peer]
# stagewire off: # Name = gone
# stagewire off: # stagewire: Expires = 2020-01-01T00:00:00Z
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "wg0.conf"
    path.write_text(TEXT)
    path.chmod(0o640)
    return path


@pytest.fixture
def environment(tmp_path: Path, file: Path) -> Environment:
    (tmp_path / "run" / "wg0" / "key").mkdir(parents=True)
    return Environment.read({"STAGEWIRE_RUN_DIR": str(tmp_path / "run"), "STAGEWIRE_CONFIG": str(file)}, "wg0")


@pytest.fixture
def expected(file: Path) -> str:
    return operations.carry_out(TEXT, str(file), ExpirePeers(), {}, time.time()).text


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def request(operation: operations.Operation) -> bytes:
    return json.dumps(to_json(operation)).encode() + b"\n"


def test_a_peer_whose_time_is_over_becomes_a_comment_and_all_else_stays(
    environment: Environment, file: Path, expected: str, line: tuple[socket.socket, socket.socket]
) -> None:
    line[1].sendall(request(ExpirePeers()))
    with key_service(environment, writes(expected), made("~ peer gone out of use")):
        writer.serve(line[0], environment)
    assert json.loads(line[1].recv(4096)) == {"error": ""}
    text = file.read_text()
    assert OVER in text
    assert text.replace("# stagewire off: ", "") == TEXT
    assert file.stat().st_mode & 0o777 == 0o640
    assert left(file) == ["run", "wg0.conf"]


def test_what_agrees_already_is_not_written(environment: Environment, file: Path) -> None:
    before = file.stat().st_ino
    with key_service(environment, made()):
        writer.carry_out(environment, ExpirePeers())
    assert file.stat().st_ino == before


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"{", b"[]\n", b"[" * 5000, b"\xff\n", b'{"version": 1, "do": "ExpirePeers", "peers": ["stays"]}\n',
        b'{"version": 2, "do": "ExpirePeers"}\n', b'{"version": 1, "do": "ExpirePeers", "text": "[Interface]"}\n',
        request(RenamePeer("stays", "mine")), request(operations.RemovePeers(("stays",))),
        request(operations.AddPeers((operations.NewPeer("mine", KEYS[3], addresses=("0.0.0.0/0",)),))),
        request(operations.SetPeer("gone", (Setting("Expires", ""),))),
    ],
)  # fmt: skip
def test_any_other_request_is_refused_unread(
    environment: Environment, file: Path, line: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    line[1].sendall(data)
    line[1].shutdown(socket.SHUT_WR)
    writer.serve(line[0], environment)  # nobody serves the reload door: nothing asks there
    assert json.loads(line[1].recv(4096))["error"]
    assert file.read_text() == TEXT


def test_a_request_that_never_ends_is_given_up(
    environment: Environment, line: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_REQUEST_WITHIN", 0.05)
    line[1].sendall(b'{"version": 1')
    with pytest.raises(TimeoutError):
        writer.serve(line[0], environment)


@pytest.mark.parametrize(
    "evil",
    [
        "",
        TEXT,
        TEXT.replace("# Name = stays", "# Name = mine"),
        TEXT.replace("[Peer]", "# stagewire off: [Peer]"),
        TEXT + "\n[Interface]\nPostUp = id\n",
        TEXT.replace(KEYS[0], KEYS[3]),
        TEXT + f"\n[Peer]\nPublicKey = {KEYS[3]}\nAllowedIPs = 0.0.0.0/0\n",
        TEXT.replace("PostUp", "DNS = 6.6.6.6\nTable = off\nPostUp"),
        TEXT + "#" * (4 << 20),
    ],
)
def test_no_other_text_is_written_even_one_of_peers_alone(environment: Environment, file: Path, evil: str) -> None:
    with (
        key_service(environment, writes(evil), made()),
        pytest.raises(Failed, match="another text than root works out"),
    ):
        writer.carry_out(environment, ExpirePeers())
    assert file.read_text() == TEXT
    assert left(file) == ["run", "wg0.conf"]


def test_a_file_that_waits_for_a_reload_stays(environment: Environment, file: Path) -> None:
    refusal = b'{"error": "wg0.conf has changed since it was read"}\n'
    with key_service(environment, refusal), pytest.raises(Failed, match="has changed since it was read"):
        writer.carry_out(environment, ExpirePeers())
    assert file.read_text() == TEXT


def test_a_link_in_the_files_place_is_not_followed_twice(environment: Environment, file: Path, expected: str) -> None:
    """The file may be a link of the operator's: the file behind it changes, and the link stays."""
    behind = file.with_name("behind.conf")
    file.rename(behind)
    file.symlink_to(behind)
    with key_service(environment, writes(expected), made()):
        writer.carry_out(environment, ExpirePeers())
    assert file.is_symlink()
    assert behind.read_text() == expected


def test_names_of_a_hostile_operator_stay_comments(environment: Environment, file: Path) -> None:
    """What looks like a section or a hook in a name is in a comment before and after."""
    text = TEXT.replace("Name = gone", "Name = x [Interface] PostUp = id")
    file.write_text(text)
    with key_service(environment, writes(operations.carry_out(text, "", ExpirePeers(), {}, time.time()).text), made()):
        writer.carry_out(environment, ExpirePeers())
    assert file.read_text().count("\nPostUp") == 1


def test_it_reads_its_request_from_standard_input(environment: Environment, file: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(request(RenamePeer("a", "b")))
        done = subprocess.run(
            [sys.executable, "-P", "-m", "stagewire_cli.writer"],
            stdin=theirs.fileno(),
            env={"STAGEWIRE_RUN_DIR": str(environment.run.parent), "STAGEWIRE_CONFIG": str(file)},
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
        assert "takes ExpirePeers alone" in json.loads(ours.recv(4096))["error"]


def test_only_that_kind_is_a_request() -> None:
    assert writer.request_untrusted(request(ExpirePeers())) == ExpirePeers()
    with pytest.raises(BadOperation, match="no JSON"):
        writer.request_untrusted(b"")
