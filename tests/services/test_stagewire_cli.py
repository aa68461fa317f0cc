"""The `stagewire` command as an operator meets it."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.stagewire import executable
from stagewire.config import decode_key, encode_key, generate_private_key, public_key

NOT_ROOT = ("unshare", "--user", "--map-user=1000")
"""A user namespace in which we are an ordinary user: nobody else may be able to read this checkout."""


def stagewire(
    *arguments: str | Path,
    input: str = "",  # noqa: A002 - as in subprocess.run
    before: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, executable("stagewire"), *arguments],
        input=input,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def wg(*arguments: str, input: str = "") -> str:  # noqa: A002 - as in subprocess.run
    return subprocess.run(["wg", *arguments], input=input, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name:
        yield Path(name)


def folders(folder: Path) -> dict[str, str]:
    return {f"STAGEWIRE_{kind.upper()}_DIR": str(folder / kind) for kind in ("run", "state", "log")}


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "wg0.conf"
    path.write_text(text)
    path.chmod(mode)
    return path


# --- keys --------------------------------------------------------------------------------------------------


def test_genkey_makes_keys_that_wg_takes() -> None:
    keys = [stagewire("genkey") for _ in range(2)]
    assert len({made.stdout for made in keys}) == 2
    for made in keys:
        assert (made.returncode, made.stderr) == (0, "")
        raw = decode_key(made.stdout.strip())
        assert raw[0] & 7 == 0  # clamped, as wg's are
        assert raw[31] & 0xC0 == 0x40
        assert stagewire("pubkey", input=made.stdout).stdout == wg("pubkey", input=made.stdout)


@settings(max_examples=15)
@given(st.binary(min_size=32, max_size=32))
def test_a_public_key_is_the_one_that_wg_finds(random: bytes) -> None:
    private = generate_private_key(random)
    assert encode_key(public_key(private)) == wg("pubkey", input=encode_key(private)).strip()


@pytest.mark.parametrize("nonsense", ["", "nonsense", "AAAA", "A" * 43, "A" * 44, "é" * 44, "A" * 43 + "=\nx"])
def test_a_key_that_is_none_is_refused_in_one_line(nonsense: str) -> None:
    refused = stagewire("pubkey", input=nonsense)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("stagewire: standard input ")
    assert refused.stderr.count("\n") == 1


def test_a_private_key_is_not_repeated_in_a_complaint() -> None:
    key = wg("genkey").strip()
    refused = stagewire("pubkey", input=f"{key}x")
    assert refused.returncode == 1
    assert key not in refused.stderr


@pytest.mark.parametrize("command", ["genkey", "pubkey"])
def test_a_key_that_cannot_be_written_is_one_line_of_complaint(command: str) -> None:
    with Path("/dev/full").open("w") as full:
        failed = subprocess.run(
            [executable("stagewire"), command],
            input=wg("genkey"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (failed.returncode, failed.stderr) == (1, "stagewire: standard output: No space left on device\n")


# --- check -------------------------------------------------------------------------------------------------


def test_check_counts_what_it_found(folder: Path) -> None:
    peers = ""
    for number in range(2):
        key = wg("pubkey", input=wg("genkey")).strip()
        peers += f"[Peer]\nPublicKey = {key}\nAllowedIPs = 10.{number}.0.0/16, fd00:{number}::/32\n"
    path = written(folder, f"[Interface]\nPrivateKey = {wg('genkey')}{peers}")
    checked = stagewire("check", path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout == f"{path}: no mistakes; 2 peers, 4 allowed IPs\n"


def test_check_names_every_mistake_with_its_line(folder: Path) -> None:
    path = written(
        folder,
        "[Interface]\nPrivateKey = nonsense\nListenPort = 70000\n\n[Peer]\nAllowedIPs = 10.0.0.0/33\nNoSuch = 1\n",
    )
    checked = stagewire("check", path)
    assert (checked.returncode, checked.stdout) == (1, "")
    lines = [line.removeprefix(f"{path}:").partition(":")[0] for line in checked.stderr.splitlines()]
    assert [int(line) for line in lines] == [2, 3, 5, 6, 7]


@pytest.mark.parametrize(("mode", "words"), [(0o644, "can be read by others: chmod 600"), (0o666, "read and written")])
def test_check_does_not_take_a_file_that_others_can_read(folder: Path, mode: int, words: str) -> None:
    path = written(folder, f"[Interface]\nPrivateKey = {wg('genkey')}", mode)
    checked = stagewire("check", path)
    assert checked.returncode == 1
    assert words in checked.stderr


def test_check_of_what_is_no_file_does_not_wait(folder: Path) -> None:
    os.mkfifo(folder / "fifo.conf")
    for path in (folder / "fifo.conf", folder, folder / "absent.conf", Path("/dev/zero")):
        checked = stagewire("check", path)
        assert checked.returncode == 1
        assert len(checked.stderr.splitlines()) == 1
        assert str(path) in checked.stderr


# --- up, down, status --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["up"], ["down"], ["restart", "tun"], ["scale", "2"]])
def test_an_ordinary_user_is_told_why_not(folder: Path, command: list[str]) -> None:
    refused = stagewire(*command, "wg0", before=NOT_ROOT, env=folders(folder))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "stagewire: this needs root: it makes a network interface and starts services under uids of their own\n"
    )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], "stagewire: no interface is up\n"),
        (["status", "wg7"], "stagewire: wg7 is not up\n"),
        (["status", "--json", "wg7"], "stagewire: wg7 is not up\n"),
    ],
)
def test_status_when_nothing_is_up(folder: Path, arguments: list[str], words: str) -> None:
    for before in ((), NOT_ROOT):
        asked = stagewire(*arguments, before=before, env=folders(folder))
        assert (asked.returncode, asked.stdout, asked.stderr) == (1, "", words)


def test_status_as_json_when_nothing_is_up_is_an_empty_list(folder: Path) -> None:
    asked = stagewire("status", "--json", env=folders(folder))
    assert asked.returncode == 0
    assert json.loads(asked.stdout) == []


def test_status_of_what_a_killed_machine_left_behind(folder: Path) -> None:
    """Sockets that nobody listens to any more."""
    (folder / "run/wg0/key").mkdir(parents=True)
    (folder / "run/wg0/supervisord.pid").write_text("4194304\n")
    (folder / "run/wg0/supervisor.sock").touch()
    asked = stagewire("status", "wg0", env=folders(folder))
    assert (asked.returncode, asked.stderr) == (1, "stagewire: wg0 is not up\n")


@pytest.mark.parametrize("name", ["", "a/b", "x" * 16, "wg 0", "wg0;reboot", ".."])
def test_a_name_that_is_none_is_refused_in_one_line(folder: Path, name: str) -> None:
    for command in (["status", name], ["up", name], ["down", name], ["restart", "all", name], ["scale", "2", name]):
        refused = stagewire(*command, env=folders(folder))
        assert refused.returncode == 1
        assert refused.stderr.startswith("stagewire: ")
        assert refused.stderr.count("\n") == 1


def test_a_file_that_is_named_after_no_interface_is_refused(folder: Path) -> None:
    for name in ("x" * 16 + ".conf", "wg 0.conf", ".conf"):
        refused = stagewire("up", folder / name, env=folders(folder))
        assert refused.returncode == 1
        assert "named after its interface" in refused.stderr


def test_down_of_what_is_not_up(folder: Path) -> None:
    refused = stagewire("down", "wg7", env=folders(folder))
    assert (refused.returncode, refused.stderr) == (1, "stagewire: wg7 is not up\n")


@pytest.mark.parametrize("arguments", [["restart", "all"], ["scale", "2"]])
def test_restart_and_scale_when_nothing_is_up(folder: Path, arguments: list[str]) -> None:
    assert stagewire(*arguments, env=folders(folder)).stderr == "stagewire: no interface is up\n"
    for name in ("wg7", "/nowhere/wg7.conf"):
        refused = stagewire(*arguments, name, env=folders(folder))
        assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", "stagewire: wg7: wg7 is not up\n")


@pytest.mark.parametrize("arguments", [["restart", "all"], ["scale", "2"]])
def test_which_of_two_interfaces_is_not_guessed(folder: Path, arguments: list[str]) -> None:
    for name in ("wg0", "wg1"):
        (folder / "run" / name).mkdir(parents=True)
    refused = stagewire(*arguments, env=folders(folder))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "stagewire: 2 interfaces are up (wg0, wg1); name one\n"


@pytest.mark.parametrize(
    "arguments",
    [["restart"], ["restart", "wg0"], ["restart", "tun", "wg0", "x"], ["scale"], ["scale", "wg0"], ["scale", "0"],
     ["scale", "65"], ["scale", "-1"]],
)  # fmt: skip
def test_a_command_that_makes_no_sense_is_explained(folder: Path, arguments: list[str]) -> None:
    refused = stagewire(*arguments, env=folders(folder))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Usage: ")


def test_status_takes_a_path_as_up_and_down_do(folder: Path) -> None:
    asked = stagewire("status", folder / "wg7.conf", env=folders(folder))
    assert (asked.returncode, asked.stderr) == (1, "stagewire: wg7 is not up\n")


def test_help_and_version_need_nothing(folder: Path) -> None:
    for arguments in (["--help"], ["-h"], ["up", "--help"], ["--version"]):
        asked = stagewire(*arguments, before=NOT_ROOT, env=folders(folder))
        assert asked.returncode == 0
        assert asked.stdout
    assert stagewire("statsu").returncode == 2
