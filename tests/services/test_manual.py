"""Manual pages and completions: each command has a page that says all that its help says, and shells get peers' names."""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import CompletionItem, ShellComplete
from click.testing import CliRunner

from stagewire import config
from stagewire.control import query
from stagewire_cli import completion, install, manual, operands
from stagewire_cli.__main__ import MODULE_OF, main

PAGES = dict(manual.pages(main))
MACROS = {".TH", ".ad", ".SH", ".B", ".BR", ".PP", ".TP", ".nf", ".fi"}


def commands(command: click.Command, words: tuple[str, ...] = ("stagewire",)) -> dict[str, click.Command]:
    found = {"-".join(words): command}
    for word, each in manual.commands(command).items():
        found |= commands(each, (*words, word))
    return found


def test_each_module_has_the_commands_that_it_is_loaded_for() -> None:
    found = {
        each.name: name for name in {*MODULE_OF.values()} for each in import_module(f"stagewire_cli.{name}").COMMANDS
    }
    assert found == MODULE_OF


@pytest.mark.parametrize("name", commands(main))
def test_a_page_says_what_the_help_says(name: str) -> None:
    command, page = commands(main)[name], PAGES[f"{name}.1"]
    plain = page.replace("\\-", "-").replace("\\&", "").replace("\\e", "\\")
    for param in command.params:
        if isinstance(param, click.Option):
            assert all(option in plain for option in param.opts)
            assert (param.help or "") in plain
    for paragraph in (command.help or "").split("\n\n"):
        lines = paragraph.splitlines()[1:] if "\b" in paragraph else [" ".join(paragraph.split()).rstrip(".")]
        assert all(line.strip() in plain for line in lines)
    assert plain.split("\n")[0].startswith(f'.TH {name.upper()} 1 "" "Stagewire ')
    for line in page.splitlines():
        assert not line.startswith("'")
        assert not line.startswith(".") or line.split()[0] in MACROS, line


@pytest.mark.parametrize("name", commands(main))
def test_no_help_is_wider_than_80_columns_or_cut(name: str) -> None:
    words = ["install-service"] if name.endswith("service") else name.split("-")[1:]
    said = CliRunner(env={"COLUMNS": "200"}).invoke(main, [*words, "--help"], prog_name="stagewire").output
    assert said.startswith("Usage: stagewire ")
    cut = re.compile(r"  \S+  .*\.\.\.")
    assert [line for line in said.splitlines() if len(line) > 80 or cut.fullmatch(line)] == []


@pytest.mark.parametrize("name", PAGES)
def test_man_has_room_for_each_example(name: str) -> None:
    """man(1) indents by 7 of 80 columns, and wraps no line here."""
    for block in re.findall(r"^\.nf\n(.*?)^\.fi$", PAGES[name], re.MULTILINE | re.DOTALL):
        assert max(len(line.replace("\\-", "-")) for line in block.splitlines()) <= 73


def test_an_example_keeps_its_lines() -> None:
    page = PAGES["stagewire-peer-set.1"]
    assert ".nf\nExamples:\nstagewire peer set phone" in page


def test_the_programs_page_has_the_exit_statuses_and_each_command() -> None:
    page = PAGES["stagewire.1"]
    assert re.findall(r"^\.B (\d)$", page, re.MULTILINE) == list("01234")
    assert ".BR stagewire\\-peer (1)" in page
    assert ".BR stagewire (1)" in PAGES["stagewire-why.1"]
    assert ".BR stagewire\\-peer (1)" in PAGES["stagewire-peer-add.1"]


def test_a_text_is_no_command_to_man() -> None:
    assert manual._text(".so /etc/passwd") == "\\&.so /etc/passwd"
    assert manual._text("a\\b -c") == "a\\eb \\-c"


def test_pages_and_completions_are_installed_and_removed(tmp_path: Path) -> None:
    install.install(tmp_path, lambda _: None)
    assert (tmp_path / "usr/local/share/man/man1/stagewire-capture.1").read_text() == PAGES["stagewire-capture.1"]
    script = tmp_path / completion.PLACES["bash"]
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    for place in completion.PLACES.values():
        assert "_STAGEWIRE_COMPLETE" in (tmp_path / place).read_text()
    install.remove(tmp_path, lambda _: None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def completed(*words: str) -> list[str]:
    variables = {
        "_STAGEWIRE_COMPLETE": "bash_complete",
        "COMP_LINE": " ".join(words),
    }
    program = Path(sys.executable).with_name("stagewire")
    told = subprocess.run([program], env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    assert told.stderr == ""
    return [line.partition(",")[2] for line in told.stdout.splitlines()]


def test_shells_complete_commands_and_options() -> None:
    assert completed("stagewire", "re") == ["ready", "reload", "restart", "restore"]
    assert "--interface" in completed("stagewire", "why", "--")
    completed("stagewire", "nonsense", "")


def test_peers_are_completed_by_names_of_their_own_and_otherwise_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer:
        def __init__(self, name: str, key: str) -> None:
            self.name, self.public_key = name, key * 40

    class Status:
        peers = (
            Peer("anna", "a"),
            Peer("Anna's phone", "b"),
            Peer("", "c"),
            Peer("$(reboot)", "d"),
            Peer("-x", "e"),
            Peer("two", "f"),
            Peer("Two", "g"),
        )

    def items(typed: str, **params: Any) -> list[tuple[str, str | None]]:
        context = click.Context(main)
        context.params = params
        return [(item.value, item.help) for item in completion.peers(context, main.params[0], typed)]

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(operands, "interfaces", lambda: ["wg0"])
    monkeypatch.setattr(query, "key_service", lambda _environment: Status)
    short = {letter: letter * 10 for letter in "abcdefg"}
    anna, phone = ("anna", short["a"]), ("Anna's phone", short["b"])
    rest = [(short["c"], None), ("$(reboot)", short["d"]), (short["e"], "-x"), (short["f"], "two"), (short["g"], "Two")]
    assert items("") == [anna, phone, *rest]
    assert items("an") == [anna]
    assert items("AN") == [anna, phone]
    assert items("Anna's") == [phone]
    assert items("bb") == [(short["b"], "Anna's phone")]
    assert items("de", stage=True) == [("device", None)]
    monkeypatch.setattr(query, "key_service", lambda _environment: None)
    assert items("") == []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(query, "key_service", lambda _environment: Status)
    assert items("") == []


def test_commands_about_peers_complete_those_of_the_file_also_out_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "wg0.conf"
    rest = f"[Peer]\n# Name = phone\nPublicKey = {config.encode_key(bytes(32))}\nAllowedIPs = 10.0.0.2/32\n"
    off = "".join(f"# stagewire off: {line}\n" for line in rest.replace("phone", "guest").splitlines())
    file.write_text(f"[Interface]\n\n{rest}\n{off.replace('AAAAAA=', 'AAAABA=').replace('.2/32', '.3/32')}")
    file.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(operands, "interfaces", lambda: [str(file)])
    assert [item.value for item in completion_of("peer", "enable", "")] == ["phone", "guest"]
    assert [item.value for item in completion_of("peer", "show", "g")] == ["guest"]


def test_a_capture_completes_its_file_and_protocol_and_a_restored_gateway_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operands, "interfaces", lambda: ["wg0"])
    assert [item.type for item in completion_of("capture", "anna", "-w", "/tm")] == ["file"]
    assert [item.value for item in completion_of("capture", "anna", "--protocol", "t")] == ["tcp"]
    for words in (["restore", "backup", "--as"], ["import", "wg0.json", "-i"]):
        assert [item.value for item in completion_of(*words, "w")] == ["w", "wg0"]


def test_interfaces_that_are_up_are_completed_and_else_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "interfaces", lambda: ["office", "wg0"])
    for command, *words in (["top"], ["up"], ["why", "anna", "-i"], ["events"]):
        found = completion_of(command, *words, "w")
        assert [(item.type, item.value) for item in found] == [("file", "w"), ("plain", "wg0")]


def completion_of(*words: str) -> list[CompletionItem]:
    *before, typed = words
    return ShellComplete(main, {}, "stagewire", "_STAGEWIRE_COMPLETE").get_completions(before, typed)


@pytest.mark.parametrize(("operand", "option"), [("wg0", None), (None, "wg0"), ("wg0", "wg0")])
def test_a_gateway_is_named_by_an_option_or_as_before(operand: str | None, option: str | None) -> None:
    assert operands.either(operand, option) == "wg0"


def test_two_names_for_one_gateway_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        operands.either("wg0", "wg1")
    assert capsys.readouterr().err == "stagewire: wg0 and -i wg1 name two gateways\n"


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff, which man(1) brings along, is not installed")
def test_groff_has_no_warning_for_any_page() -> None:
    formatted = subprocess.run(
        ["groff", "-Kutf8", "-man", "-Tutf8", "-ww", "-rCHECKSTYLE=3"],
        input="".join(PAGES.values()),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert formatted.stderr == ""
    assert "stagewire\u2010peer\u2010add" in formatted.stdout or "stagewire-peer-add" in formatted.stdout


def test_each_command_with_json_has_a_schema_that_a_test_checks() -> None:
    """Whoever gives a command --json adds it to `docs/OPERATING.md`, and to `tests/system/test_records.py`."""
    found = {
        " ".join(name.split("-")[1:])
        for name, command in commands(main).items()
        if any("--json" in param.opts for param in command.params)
    }
    assert found == {"status", "why", "doctor", "events", "history", "usage", "peer list", "peer show"}
