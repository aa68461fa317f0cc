"""Which files are read, which are refused, and that none makes us wait."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.config.example import example

from stagewire.config import ConfigError, encode_key, interface_name, load
from stagewire.config.loader import MAX_SIZE
from stagewire.environment import valid_interface_name

GOOD = f"[Interface]\nPrivateKey = {encode_key(bytes([8] + [1] * 30 + [64]))}\nListenPort = 7\n"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "wg0.conf"
    file.write_text(GOOD)
    file.chmod(0o600)
    return file


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    [mistake] = caught.value.mistakes
    assert mistake.line is None
    assert "\n" not in str(mistake)
    return mistake.message


def warning_of(path: Path) -> str:
    """The one of a file that is taken, and that strictly read is none."""
    config = load(path)
    assert config.listen_port == 7
    [warning] = config.warnings
    with pytest.raises(ConfigError) as caught:
        load(path, strict=True)
    assert caught.value.mistakes == (warning,)
    return warning.message


def test_a_good_file(path: Path) -> None:
    assert load(path).listen_port == 7


def test_a_symbolic_link_is_followed(path: Path) -> None:
    link = path.with_name("wg1.conf")
    link.symlink_to(path)
    assert load(link).listen_port == 7


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_modes_that_keep_others_out(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert load(path).listen_port == 7


@pytest.mark.parametrize(
    ("mode", "can"),
    [
        (0o640, "read"),
        (0o604, "read"),
        (0o644, "read"),
        (0o620, "written"),
        (0o660, "read and written"),
    ],
)
def test_modes_that_let_others_in(path: Path, mode: int, can: str) -> None:
    path.chmod(mode)
    assert warning_of(path) == f"can be {can} by others, and may hold a private key: chmod 600 it"


@pytest.mark.parametrize("mode", [0o602, 0o606, 0o666, 0o777])
def test_a_file_that_everyone_may_write(path: Path, mode: int) -> None:
    """wg-quick takes it; but whoever may write it makes root do anything."""
    path.chmod(mode)
    assert refusal(path) == "can be written by everyone, and its commands run as root: chmod 600 it"


@needs_root
def test_a_file_of_another_user(path: Path) -> None:
    os.chown(path, 65534, 0)
    assert warning_of(path) == "belongs to user 65534, who can change what root runs: chown root it"


def test_what_is_wrong_with_a_file_and_in_it_is_told_in_turn(path: Path) -> None:
    path.chmod(0o644)
    path.write_text(f"{GOOD}ListenPort = 8\n")
    config = load(path)
    assert config.listen_port == 8
    assert [str(warning) for warning in config.warnings] == [
        f"{path}: can be read by others, and may hold a private key: chmod 600 it",
        f"{path}:4: ListenPort is already given in line 3; the last one counts",
    ]


def test_a_folder_where_anyone_may_replace_it(path: Path) -> None:
    path.parent.chmod(0o777)
    assert refusal(path) == f"lies where anyone could replace it: chmod o-w {path.parent}"
    path.parent.chmod(0o1777)
    assert load(path).listen_port == 7


def test_a_link_in_a_folder_where_anyone_may_replace_it(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    link = folder / "wg0.conf"
    link.symlink_to(path)
    assert "could replace it" in refusal(link)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.conf") == "does not exist: write it, or name another"


def test_a_file_that_may_not_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert refusal(path) == "may not be read by this user: run as root, or as the file's owner"


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.fspath(path))


def _loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_fifo, "is a FIFO: name a regular file"),
        (Path.mkdir, "is a directory: name a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device: name a regular file"),
        (_socket, "can't be read: No such device or address"),
        (_loop, "can't be read: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "wg0.conf"
    make(path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert refusal(path) == says
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300])
def test_a_name_that_no_file_can_have(name: str) -> None:
    assert refusal(Path(name))


def test_a_path_in_a_message_stays_on_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "a\nb.conf")
    assert len(str(caught.value).splitlines()) == 1


def test_size(path: Path) -> None:
    path.write_text(GOOD + "#" * (MAX_SIZE - len(GOOD)))
    assert load(path).listen_port == 7
    with path.open("a") as file:
        file.write("#")
    assert refusal(path) == "is larger than 32 MiB, which no configuration is"


def test_bytes_that_are_not_utf8_are_named_with_every_other_mistake(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"# caf\xe9\r\nMTU = 0\r\n# \xed\xa0\x80\n")
    with pytest.raises(ConfigError) as caught:
        load(path, strict=True)
    assert [mistake.line for mistake in caught.value.mistakes] == [4, 5, 6]
    assert str(caught.value).startswith(f"{path}:4: is not UTF-8 text\n")


def test_an_empty_file(path: Path) -> None:
    path.write_text("")
    [warning] = load(path).warnings
    assert str(warning) == f"{path}: there is no [Interface] section"


@pytest.mark.parametrize("name", ["wg0", "a", "x" * 15, "A_z=+.-9", "...", "wg0.conf"])
def test_interface_names(name: str) -> None:
    assert valid_interface_name(name)
    assert interface_name(Path("/etc/wireguard") / f"{name}.conf") == name


@pytest.mark.parametrize("name", ["", "x" * 16, ".", "..", "a/b", "a b", "a\n", "wg٣", "%i"])
def test_no_interface_names(name: str) -> None:
    assert not valid_interface_name(name)


@pytest.mark.parametrize("name", [".conf", "wg0", "wg0.txt", "..conf", "a b.conf", "x" * 16 + ".conf"])
def test_files_that_name_no_interface(name: str) -> None:
    with pytest.raises(ConfigError, match="must be named after its interface"):
        interface_name(Path(name))


@needs_root
@pytest.mark.skipif(not shutil.which("wg-quick"), reason="needs wireguard-tools")
def test_wg_and_wg_quick_take_the_example_as_well(tmp_path: Path) -> None:
    file = tmp_path / "swtest0.conf"
    file.write_text(example().replace("branch.example.net", "192.0.2.7"))  # which wg would look up
    file.chmod(0o600)
    assert len(load(file).peers) == 3

    stripped = subprocess.run(["wg-quick", "strip", file], capture_output=True, text=True, check=True)
    assert stripped.stderr == ""
    assert "# stagewire: ResponseTimestamp = on" in stripped.stdout
    assert "Address" not in [line.split(" ")[0] for line in stripped.stdout.splitlines()]
    # wg reads the file before it looks for the interface, which isn't there.
    for text, says in (
        (stripped.stdout, "Unable to modify"),
        (stripped.stdout + "Foo = 1\n", "Line unrecognized"),
    ):
        file.write_text(text)
        configured = subprocess.run(["wg", "setconf", "swtest0", file], capture_output=True, text=True, check=False)
        assert says in configured.stderr
