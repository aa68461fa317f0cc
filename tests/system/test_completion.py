"""Completion as an operator has it: keys are pressed in real shells, and the command tells which words it got."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from lab.stagewire import executable
from lab.terminal import Terminal
from lab.wait import until
from stagewire.config import encode_key
from stagewire_cli import install
from stagewire_cli.completion import PLACES

pytestmark = pytest.mark.system

NAMES = ["anna", "Anna's phone", 'a "b" $c', "`id`;x", "back\\slash", "*star", "a:colon", "Zoë, {1}"]
READY = "is-ready"
SHOW = "peer show -i FILE"
LINES = [
    ("", "relo", "reload"),
    ("why", "--no-", "--no-try"),
    (SHOW, "Anna", "Anna's phone"),
    (SHOW, "\"Anna's p", "Anna's phone"),
    (SHOW, "'a \"", 'a "b" $c'),
    (SHOW, "back", "back\\slash"),
    (SHOW, "'`i", "`id`;x"),
    (SHOW, "a:", "a:colon"),
    (SHOW, "Zo", "Zoë, {1}"),
    ("peer show --interface=FILE", "'*s", "*star"),
    ("capture x", "--protocol=t", "--protocol=tcp"),
]
"""The words before, what is typed before the tabulator is pressed, and the word that the command gets."""
RC = {
    "bash": "PS1=is-'ready '\n. {script}\n",
    "zsh": "PS1=is-'ready '\nfpath=({folder} $fpath)\nautoload -Uz compinit && compinit -u -D\n",
    "fish": "function fish_prompt; echo -n is-'ready '; end\nsource {script}\n",
}
COMMANDS = {
    "bash": ("bash", "--noprofile", "--rcfile", "rc"),
    "zsh": ("zsh", "-o", "NO_GLOBAL_RCS"),
    "fish": ("fish", "--no-config", "--init-command", "source rc"),
}


@pytest.fixture(scope="module")
def folder(shared_directory: Path) -> Path:
    """Holds the installed scripts, a gateway's file, and a `stagewire` that completes, and otherwise tells its words."""
    install.install(shared_directory, lambda _: None)
    peers = (
        f"[Peer]\n# Name = {name}\nPublicKey = {encode_key(bytes([number] * 32))}\nAllowedIPs = 10.0.0.{number}/32\n"
        for number, name in enumerate(NAMES, 2)
    )
    file = shared_directory / "wg0.conf"
    file.write_text("\n".join(["[Interface]", *peers]))
    file.chmod(0o600)
    program = shared_directory / "bin" / "stagewire"
    program.parent.mkdir()
    tells = (
        f"import json, sys; print('told', json.dumps(sys.argv[1:]), file=open({str(shared_directory / 'told')!r}, 'a'))"
    )
    program.write_text(
        f'#!/bin/sh\n[ -n "$_STAGEWIRE_COMPLETE" ] && exec {executable("stagewire")}\n'
        f'exec {sys.executable} -Sc {shlex.quote(tells)} "$@"\n'
    )
    program.chmod(0o755)
    return shared_directory


@pytest.mark.parametrize("shell", COMMANDS)
def test_a_shell_completes_commands_options_and_names_of_peers(shell: str, folder: Path) -> None:
    script, told = folder / PLACES[shell], folder / "told"
    told.write_text("")
    (folder / ("rc" if shell != "zsh" else ".zshrc")).write_text(
        RC[shell].replace("{script}", str(script)).replace("{folder}", str(script.parent))
    )
    env = {"PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder), "ZDOTDIR": str(folder)}
    with Terminal(["env", "-C", folder, *COMMANDS[shell]], 200, 50, env) as terminal:
        terminal.until(READY, 10)
        for number, (words, typed, last) in enumerate(LINES, 1):
            before = words.replace("FILE", str(folder / "wg0.conf"))
            terminal.press(f"stagewire {before} {typed}\t\r")

            def ended(number: int = number) -> bool:
                terminal.watch(0.05)
                return told.read_text().count("\n") == number

            until(ended, 10, f"{shell} to run {typed!r}")
            got = json.loads(told.read_text().splitlines()[-1].removeprefix("told "))
            assert got == [*before.split(), last], (shell, typed, terminal.text[-2000:])
