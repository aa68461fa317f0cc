"""The `stagewire` command as an operator meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.config.example import EXAMPLE
from tests.services.commands import LONG, folders

from lab.stagewire import executable
from stagewire.config import decode_key, encode_key, generate_private_key, public_key
from stagewire_cli import operands

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
        timeout=LONG,
    )


def wg(*arguments: str, input: str = "") -> str:  # noqa: A002 - as in subprocess.run
    return subprocess.run(["wg", *arguments], input=input, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sw-", dir="/tmp") as name:
        yield Path(name)


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


def test_check_warns_of_a_file_that_others_can_read(folder: Path) -> None:
    path = written(folder, f"[Interface]\nPrivateKey = {wg('genkey')}MTU = 1400\nMTU = 1300\n", 0o644)
    checked, strictly = stagewire("check", path), stagewire("check", "--strict", path)
    assert (checked.returncode, strictly.returncode) == (0, 1)
    assert checked.stdout == f"{path}: no mistakes; 0 peers, 0 allowed IPs\n"
    warnings = checked.stderr.splitlines()
    assert warnings == [
        f"warning: {path}: can be read by others, and may hold a private key: chmod 600 it",
        f"warning: {path}:4: MTU is already given in line 3; the last one counts",
    ]
    assert strictly.stderr.splitlines() == [warning.removeprefix("warning: ") for warning in warnings]


def test_check_does_not_take_a_file_that_everyone_may_write(folder: Path) -> None:
    path = written(folder, f"[Interface]\nPrivateKey = {wg('genkey')}", 0o666)
    checked = stagewire("check", path)
    assert checked.returncode == 1
    assert checked.stderr == f"{path}: can be written by everyone, and its commands run as root: chmod 600 it\n"


def test_check_refuses_the_examples_keys_by_name(folder: Path) -> None:
    checked = stagewire("check", written(folder, EXAMPLE.read_text()))
    assert checked.returncode == 1
    says = checked.stderr.splitlines()
    assert len(says) == 6
    assert says[0].endswith("wg0.conf:12: PrivateKey is the example's published key: make one with `stagewire genkey`")


def test_check_of_what_is_no_file_does_not_wait(folder: Path) -> None:
    os.mkfifo(folder / "fifo.conf")
    for path in (folder / "fifo.conf", folder, folder / "absent.conf", Path("/dev/zero")):
        checked = stagewire("check", path)
        assert checked.returncode == 1
        assert len(checked.stderr.splitlines()) == 1
        assert str(path) in checked.stderr


@pytest.mark.parametrize(("command", "says"), [("check", ""), ("up", "stagewire: ")])
def test_a_file_that_wg_quick_alone_has_is_pointed_to(folder: Path, command: str, says: str) -> None:
    script = 'mount -t tmpfs none /etc/wireguard && touch /etc/wireguard/never-was.conf && exec "$@"'
    refused = stagewire(
        command, "never-was", before=("unshare", "--mount", "sh", "-c", script, "sh"), env=folders(folder)
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    ours, theirs = (f"/etc/{program}/never-was.conf" for program in ("stagewire", "wireguard"))
    assert refused.stderr == f"{says}{ours}: does not exist, but {theirs} does: give that path\n"


@pytest.mark.parametrize("name", ["a b.conf", "sixteen-letters-.conf", "wg0.txt"])
def test_check_says_which_name_up_would_refuse(folder: Path, name: str) -> None:
    key = encode_key(generate_private_key(bytes(range(32))))
    path = written(folder, f"[Interface]\nPrivateKey = {key}\n").rename(folder / name)
    checked = stagewire("check", "--strict", path)
    assert (checked.returncode, checked.stdout) == (0, f"{path}: no mistakes; 0 peers, 0 allowed IPs\n")
    assert checked.stderr.startswith(f"note: {path}: the file must be named after its interface: ")
    assert checked.stderr.count("\n") == 1


# --- up, down, status --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["up"], ["down"], ["restart", "tun"], ["scale", "2"]])
def test_an_ordinary_user_is_told_why_not(folder: Path, command: list[str]) -> None:
    refused = stagewire(*command, "wg0", before=NOT_ROOT, env=folders(folder))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "stagewire: this needs root: try it with sudo\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], f"stagewire: {operands.NONE_UP}\n"),
        (["status", "wg7"], "stagewire: wg7 is not up\n"),
        (["status", "--json", "wg7"], "stagewire: wg7 is not up\n"),
    ],
)
def test_status_when_nothing_is_up(folder: Path, arguments: list[str], words: str) -> None:
    for before in ((), NOT_ROOT):
        asked = stagewire(*arguments, before=before, env=folders(folder))
        assert (asked.returncode, asked.stdout, asked.stderr) == (3, "", words)


def test_status_as_json_when_nothing_is_up_is_an_empty_list(folder: Path) -> None:
    asked = stagewire("status", "--json", env=folders(folder))
    assert (asked.returncode, asked.stderr) == (3, "")
    assert json.loads(asked.stdout) == []


def test_status_of_what_a_killed_machine_left_behind(folder: Path) -> None:
    """Sockets that nobody listens to any more."""
    (folder / "run/wg0/key").mkdir(parents=True)
    (folder / "run/wg0/supervisord.pid").write_text("4194304\n")
    (folder / "run/wg0/supervisor.sock").touch()
    asked = stagewire("status", "wg0", env=folders(folder))
    assert (asked.returncode, asked.stderr) == (3, "stagewire: wg0 is not up\n")


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
    assert (refused.returncode, refused.stderr) == (3, "stagewire: wg7 is not up\n")


@pytest.mark.parametrize("arguments", [["restart", "all"], ["scale", "2"]])
def test_restart_and_scale_when_nothing_is_up(folder: Path, arguments: list[str]) -> None:
    refused = stagewire(*arguments, env=folders(folder))
    assert (refused.returncode, refused.stderr) == (3, f"stagewire: {operands.NONE_UP}\n")
    for name in ("wg7", "/nowhere/wg7.conf"):
        refused = stagewire(*arguments, name, env=folders(folder))
        assert (refused.returncode, refused.stdout, refused.stderr) == (3, "", "stagewire: wg7 is not up\n")


@pytest.mark.parametrize("arguments", [["restart", "all"], ["scale", "2"]])
def test_which_of_two_interfaces_is_not_guessed(folder: Path, arguments: list[str]) -> None:
    for name in ("wg0", "wg1"):
        (folder / "run" / name).mkdir(parents=True)
        (folder / "run" / name / "supervisord.conf").touch()
    refused = stagewire(*arguments, env=folders(folder))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "stagewire: 2 interfaces are up (wg0, wg1): name one with -i\n"


@pytest.mark.parametrize("arguments", [["restart", "all"], ["scale", "2"], ["reload"], ["status"]])
def test_a_folder_that_we_did_not_make_is_no_interface(folder: Path, arguments: list[str]) -> None:
    (folder / "run" / "other" / "inside").mkdir(parents=True)
    refused = stagewire(*arguments, env=folders(folder))
    assert (refused.returncode, refused.stderr) == (3, f"stagewire: {operands.NONE_UP}\n")


def test_a_stage_is_also_known_by_the_name_that_status_gives_it(folder: Path) -> None:
    refused = stagewire("restart", "conn-service", "wg7", env=folders(folder))
    assert (refused.returncode, refused.stderr) == (3, "stagewire: wg7 is not up\n")


def test_a_folder_with_a_relative_path_is_refused(folder: Path) -> None:
    for name in ("RUN", "STATE", "LOG", "WG"):
        refused = stagewire("up", "wg7", env=folders(folder) | {f"STAGEWIRE_{name}_DIR": "here"})
        assert (refused.returncode, refused.stderr) == (
            1,
            f"stagewire: STAGEWIRE_{name}_DIR: 'here' is no absolute path; begin it with /\n",
        )


@pytest.mark.parametrize("arguments", [["check", "wg0.conf"], ["status", "--json"], ["genkey"], ["--help"]])
def test_what_cannot_be_printed_is_said(folder: Path, arguments: list[str]) -> None:
    key = encode_key(generate_private_key(bytes(range(32))))
    path = written(folder, f"[Interface]\nPrivateKey = {key}\n")
    with Path("/dev/full").open("w") as full:
        failed = subprocess.run(
            [executable("stagewire"), *(str(path) if each == path.name else each for each in arguments)],
            env={**os.environ, **folders(folder)}, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=LONG,
        )  # fmt: skip
    assert (failed.returncode, failed.stderr) == (1, "stagewire: standard output: No space left on device\n")


def test_check_of_a_name_by_a_user_who_may_not_look(folder: Path) -> None:
    """The file may be another than the name's; who may look finds out."""
    run = folder / "run/wg0"
    run.mkdir(parents=True)
    (run / "supervisord.conf").touch()
    run.chmod(0o700)
    folder.chmod(0o755)
    run.parent.chmod(0o755)
    asked = stagewire(
        "check", "wg0", before=("setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all"), env=folders(folder)
    )
    assert (asked.returncode, asked.stdout) == (1, "")
    assert asked.stderr == (
        f"stagewire: {run}: only root and the services' group may look inside; "
        "give the file's path, or run this as root\n"
    )


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
    assert (asked.returncode, asked.stderr) == (3, "stagewire: wg7 is not up\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scale", "x"), "'x' is not a valid whole number."),
        (("scale", "0"), "0 is not in the range 1 to 64."),
        (("top", "--interval", "0.1"), "0.1 is not in the range 0.5 to 60."),
    ],
)
def test_a_number_out_of_bounds_is_refused_in_plain_words(words: tuple[str, ...], said: str) -> None:
    assert said in stagewire(*words).stderr


def test_help_and_version_need_nothing(folder: Path) -> None:
    for arguments in (["--help"], ["-h"], ["up", "--help"], ["--version"]):
        asked = stagewire(*arguments, before=NOT_ROOT, env=folders(folder))
        assert asked.returncode == 0
        assert asked.stdout
    for number, meaning in (
        (0, "done"),
        (1, "failed"),
        (2, "command line"),
        (3, "not up"),
        (4, "not everything works"),
    ):
        assert re.search(rf"^ +{number}  .*{meaning}", stagewire("--help").stdout, re.MULTILINE), meaning


# --- words that are no command -----------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "meant"), [("show", "status"), ("wg7.conf", "up wg7.conf")])
def test_a_word_that_looks_like_a_command_makes_nothing(folder: Path, word: str, meant: str) -> None:
    """Which words those are, `test_mistyped` has."""
    refused = stagewire(word, env=folders(folder))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert repr(word) in refused.stderr.splitlines()[-1]
    assert meant in refused.stderr.splitlines()[-1]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("word", ["./wg7.conf", "/etc/stagewire/wg7.conf", "a b.conf"])
def test_a_file_without_a_command_is_put_right(folder: Path, word: str) -> None:
    refused = stagewire(word, env=folders(folder))
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == f"Error: {word!r} is a file: `stagewire up {word}` brings it up"


@pytest.mark.parametrize("word", ["a-name-that-is-too-long", "a b", "a/b"])
def test_a_word_that_is_neither_command_nor_name(folder: Path, word: str) -> None:
    refused = stagewire(word, env=folders(folder))
    assert refused.returncode == 2
    assert "an interface's name has 1 to 15 of" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize("option", ["-v", "--verbose", "-"])
def test_an_option_that_there_is_not(folder: Path, option: str) -> None:
    refused = stagewire(option, "up", "wg7", env=folders(folder))
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (2, f"Error: no such option {option!r}")


def test_an_interface_before_the_command_is_put_right(folder: Path) -> None:
    refused = stagewire("wg7", "up", env=folders(folder))
    assert refused.returncode == 2
    assert "did you mean `stagewire up wg7`?" in refused.stderr


def test_a_name_makes_an_interface_as_wireguard_go_does(folder: Path) -> None:
    """For want of root it says what it would have done."""
    refused = stagewire("office", before=NOT_ROOT, env=folders(folder))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "this needs root" in refused.stderr


@pytest.mark.parametrize(("name", "file"), [("show", "{}"), ("status", "/etc/wireguard/{}.conf"), ("up", "{}.conf")])
def test_wg_quick_may_call_an_interface_anything(folder: Path, name: str, file: str) -> None:
    """It is known by its command line, however many shells are between it and us."""
    script = folder / "wg-quick"
    script.write_text("#!/bin/bash\nbash -c '$ASKED; exit $?'\nexit $?\n")
    script.chmod(0o755)
    called = file.format(name)
    for asked, meant in (((called, name), True), (("wg9", name), False)):
        refused = subprocess.run(
            [*NOT_ROOT, script, "up", asked[0]],
            env={**os.environ, **folders(folder), "ASKED": f"{executable('stagewire')} {asked[1]}"},
            capture_output=True, text=True, check=False, timeout=LONG,
        )  # fmt: skip
        assert ("this needs root" in refused.stderr) is meant, refused.stderr


# --- FILE or NAME ------------------------------------------------------------------------------------------


def test_check_takes_a_name(folder: Path) -> None:
    refused = stagewire("check", "wg-not-there", env=folders(folder))
    assert refused.returncode == 1
    assert (
        refused.stderr == "/etc/stagewire/wg-not-there.conf: does not exist: `stagewire init wg-not-there` makes it\n"
    )


def test_save_takes_a_name_and_a_file(folder: Path) -> None:
    for named in ("wg7", folder / "wg7.conf"):
        refused = stagewire("save", named, env=folders(folder))
        assert (refused.returncode, refused.stderr) == (3, "stagewire: wg7 is not up\n")


def test_a_locale_without_our_letters_costs_no_line() -> None:
    """Such as of a serial console: `top` draws boxes, and a peer may have any name."""
    program = (
        "import click\n"
        "from stagewire_cli.__main__ import main\n"
        "main.command('draw')(lambda: click.echo('a \\u2581 line'))\n"
        "main(['draw'])\n"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1:strict"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | plain,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    assert (done.returncode, done.stdout) == (0, "a ? line\n"), done.stderr


def test_an_interrupt_while_modules_load_leaves_no_traceback() -> None:
    program = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from stagewire_cli.program import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=LONG)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
