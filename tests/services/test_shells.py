"""Reads lines that an operator types as bash and fish read them, and quotes names for bash."""

import subprocess

import pytest

from stagewire_cli import shells


@pytest.mark.parametrize(
    ("line", "words", "current", "quote", "kept"),
    [
        ("stagewire why ", ("stagewire", "why"), "", "", ""),
        ("stagewire why an", ("stagewire", "why"), "an", "", ""),
        (r"why Anna\'s\ p", ("why",), "Anna's p", "", ""),
        ("why 'Anna p", ("why",), "Anna p", "'", ""),
        ('why "a \\"b\\" \\$', ("why",), 'a "b" $', '"', ""),
        ("why Anna'  p", ("why",), "Anna  p", "'", "Anna"),
        ("why '' x", ("why", ""), "x", "", ""),
        ("why anna@ho", ("why",), "anna@ho", "", "anna@"),
        (r"why anna\@ho", ("why",), "anna@ho", "", ""),
        ("why --interface=wg", ("why",), "--interface=wg", "", "--interface="),
        ("why back\\", ("why",), "back", "", ""),
        ("why 'it\\'", ("why",), "it\\", "", ""),
    ],
)
def test_a_line_is_read_up_to_the_cursor(
    line: str, words: tuple[str, ...], current: str, quote: str, kept: str
) -> None:
    assert shells.read(line) == shells.Typed(words, current, quote, kept)


def test_fish_escapes_within_single_quotes() -> None:
    assert shells.read(r"why 'it\'s \\ \n", of_fish=True) == shells.Typed(("why",), r"it's \ \n", "'", "")


@pytest.mark.parametrize(
    "name", ["Anna's phone", 'a "b" $c', "`id`;x", "back\\slash", "umläut", "*?[x]{a,b}~#&|()<>", "it'", '"']
)
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_bash_reads_a_quoted_name_as_it_is(name: str, quote: str) -> None:
    written = quote + shells.quoted(name, quote)
    if quote and (len(written) == 1 or not written.endswith(quote)):  # what readline does
        written += quote
    said = subprocess.run(["bash", "-c", f"printf %s {written}"], capture_output=True, text=True, check=True)
    assert said.stdout == name
