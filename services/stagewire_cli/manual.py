"""Makes a manual page of each command's help, as man(7) has it: `python -m stagewire_cli.manual FOLDER`."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click

PROGRAM: Final = "stagewire"
SECTION: Final = "1"
FOLDER: Final = "usr/local/share/man/man1"
_STATUS: Final = re.compile(r"  (\d+)  (.+)")
_AS_IT_STANDS: Final = "\b"
"""Begins a paragraph whose lines are not filled (click)."""


def pages(command: click.Command, words: tuple[str, ...] = (PROGRAM,)) -> Iterator[tuple[str, str]]:
    """Yields the name of each page's file and the page: of the program, its commands, and theirs."""
    below = commands(command)
    yield f"{'-'.join(words)}.{SECTION}", _page(command, words, below)
    for word, each in below.items():
        yield from pages(each, (*words, word))


def commands(command: click.Command) -> dict[str, click.Command]:
    """Returns the commands of a group by their names in order; none of a command that is no group."""
    if not isinstance(command, click.Group):
        return {}
    context = click.Context(command)
    found = ((name, command.get_command(context, name)) for name in sorted(command.list_commands(context)))
    return {name: each for name, each in found if each is not None}


def _page(command: click.Command, words: tuple[str, ...], below: dict[str, click.Command]) -> str:
    name, typed = "-".join(words), " ".join(words)
    context = click.Context(command, info_name=typed)
    first, *paragraphs = (command.help or "").split("\n\n")
    lines = [
        f'.TH {_text(name.upper())} {SECTION} "" "Stagewire {version(PROGRAM)}" "Stagewire"',
        ".ad l",  # words as long as ours leave holes in adjusted lines
        ".SH NAME",
        f"{_text(name)} \\- {_text(_filled(first).rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_text(typed)}",
        _text(" ".join(command.collect_usage_pieces(context))),
    ]
    if paragraphs:
        lines.append(".SH DESCRIPTION")
        lines += [line for text in paragraphs for line in _paragraph(text)]
    if below:
        lines.append(".SH COMMANDS")
        for word, each in below.items():
            lines += [".TP", f".BR {_text(f'{name}-{word}')} ({SECTION})", _text(each.get_short_help_str(200))]
    known = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    options = [record for param in known if (record := param.get_help_record(context)) is not None]
    if options:
        lines.append(".SH OPTIONS")
        for option, about in options:
            lines += [".TP", f".B {_text(option)}", _text(about)]
    lines += _epilog(command.epilog or "")
    if len(words) > 1:
        lines += [".SH SEE ALSO", f".BR {_text('-'.join(words[:-1]))} ({SECTION})"]
    return "\n".join(lines) + "\n"


def _epilog(text: str) -> Iterator[str]:
    statuses = _STATUS.findall(text)
    if statuses:
        yield ".SH EXIT STATUS"
        for number, meaning in statuses:
            yield from (".TP", f".B {number}", _text(meaning))
    elif text:
        yield from (".SH NOTES", *(line for each in text.split("\n\n") for line in _paragraph(each)))


def _paragraph(text: str) -> Iterator[str]:
    text = text.strip(" \n")
    if not text.startswith(_AS_IT_STANDS):
        yield from (".PP", _text(_filled(text)))
        return
    yield from (".PP", ".nf")
    yield from (_text(line.strip()) for line in text.removeprefix(_AS_IT_STANDS).splitlines() if line.strip())
    yield ".fi"


def _filled(text: str) -> str:
    return " ".join(text.split())


def _text(text: str) -> str:
    """Writes a text so that no letter of it is a command to man."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(folder: Path) -> None:
    """Writes all pages into a folder."""
    from stagewire_cli.__main__ import main as command

    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages(command):
        (folder / name).write_text(page)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
