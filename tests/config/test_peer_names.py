"""Names of peers, from comments: which peer gets which, that no name harms who reads it, and which peer a text means."""

import shlex
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire.config import ConfigError, InterfaceConfig, difference, encode_key, merge, parse
from stagewire.config.peer_names import MAX_NAME, NotFoundError, cleaned, find, in_comment, label, operand

INTERFACE = f"[Interface]\nPrivateKey = {encode_key(bytes([8] + [1] * 30 + [64]))}\n"
KEYS = [encode_key(bytes([number] * 31 + [32])) for number in range(1, 4)]


def written(text: str) -> str:
    """A file in which A, B and C stand for the lines of a public key."""
    for letter, key in zip("ABC", KEYS, strict=True):
        text = text.replace(f"\n{letter}\n", f"\nPublicKey = {key}\n")
    return INTERFACE + text


def names(config: InterfaceConfig) -> list[str]:
    return [peer.name for peer in config.peers]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[Peer]\n# Name = Anna's phone\nA\n", ["Anna's phone"]),
        ("[Peer]\nA\n#friendly_name=anna\n", ["anna"]),
        ("\n# bought in May\n# NAME = Anna\n# lent to Bert\n[Peer]\nA\n", ["Anna"]),
        ("\n# Name = nobody's\n\n[Peer]\nA\n", [""]),
        ("# Name = the gateway\n\n[Peer]\nA\n", [""]),
        ("[Peer]\nA\n\n# Name = Bert\n[Peer]\nB\n", ["", "Bert"]),
        # Above each header, without blank lines.
        ("# Name = Anna\n[Peer]\nA\n# Name = Bert\n[Peer]\nB\n# Name = Cleo\n[Peer]\nC\n", ["Anna", "Bert", "Cleo"]),
        # Below each key, without blank lines.
        ("[Peer]\nA\n# Name = Anna\n[Peer]\nB\n# Name = Bert\n[Peer]\nC\n# Name = Cleo\n", ["Anna", "Bert", "Cleo"]),
        ("[Peer]\nA\n\n# Name = Anna\n\n[Peer]\nB\n", ["Anna", ""]),
        ("[Peer]\n# Name = Anna\nA\n# Name = other\n", ["Anna"]),
        ("[Peer]\nA\n\n# [Peer]\n# Name = gone\n# PublicKey = x\n\n[Peer]\nB\n", ["", ""]),
        ("[Peer]\nA\n\n# [Peer]\n# Name = gone\n[Peer]\nB\n", ["", ""]),
        ("[Peer]\nA\n\n# [office]\n# Name = Bert\n[Peer]\nB\n", ["", "Bert"]),
        ("[Peer]\nA\n[Peer]\n# Name = Anna\nA\n", ["Anna"]),
        ("[Peer]\nA\nAllowedIPs = ::/0 # Name = no line of its own\n", [""]),
        ("# Name = x\n[Interface]\n[Peer]\nA\n", [""]),
        ("[Peer]\nA\n# # Name = out of use\n# Name =\n# Nickname = Anna\n", [""]),
    ],
)
def test_whose_name_it_is(text: str, found: list[str]) -> None:
    assert names(parse(written(text), "f")) == found
    # A text that is changed elsewhere leaves each name with its peer.
    config = parse(written(text), "f")
    for peer in config.peers:
        rest = tuple(other for other in config.peers if other is not peer)
        after = parse(merge(written(text), replace(config, peers=rest)), "f")
        assert [(other.public_key, other.name) for other in after.peers if other.name] == [
            (other.public_key, other.name) for other in rest if other.name
        ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Anna's  phone\t2", "Anna's phone 2"),
        ("<b>Anna</b> & {x}", "<b>Anna</b> & {x}"),
        ("\x1b[31mred\x1b[0m\x07", "[31mred[0m"),
        ("evil\u202egnp.exe\u2066\u200b", "evilgnp.exe"),
        ("\u05d0\u05e0\u05d4", "\u05d0\u05e0\u05d4"),
        ("line\u2028two\x85three", "line two three"),
        ("A\u0308rger", "\u00c4rger"),
        ("a\udcffb", "ab"),
        ("x" * 10_000, "x" * (MAX_NAME - 1) + "…"),
        ("\u200b\u202e", ""),
    ],
)
def test_a_hostile_name_is_cleaned_and_cut(text: str, shown: str) -> None:
    assert cleaned(text) == shown
    config = parse(written(f"[Peer]\n# Name = {text}\nA\n"), "f")
    assert names(config) == [shown]
    assert merge(written(f"[Peer]\n# Name = {text}\nA\n"), config) == written(f"[Peer]\n# Name = {text}\nA\n")


def test_check_strict_tells_how_an_odd_name_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"^f:4: this name can't be shown as it is written; it is shown as 'ab'$"):
        parse(written("[Peer]\n# Name = a\u202eb\nA\n"), "f", strict=True)


@given(st.text(max_size=200))
def test_any_name_is_one_short_line_that_moves_nothing_and_stays_as_it_is(text: str) -> None:
    name = cleaned(text)
    assert name.isprintable()
    assert len(name) <= MAX_NAME
    assert not {unicodedata.category(letter) for letter in name} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert cleaned(name) == name
    assert in_comment(f" Name = {name}") == name


def test_a_new_peer_is_written_with_its_name_and_a_name_is_changed_where_it_stands() -> None:
    text = written("# Friendly_Name = Anna # hers\n[Peer]\nA\n")
    config = parse(text, "f")
    assert names(config) == ["Anna # hers"]
    new = replace(parse(written("[Peer]\nB\n"), "f").peers[0], name="Bert's = #1")
    both = merge(text, replace(config, peers=(replace(config.peers[0], name="Anne"), new)))
    assert both == written("# Friendly_Name = Anne\n[Peer]\nA\n\n[Peer]\n# Name = Bert's = #1\nB\n")
    assert names(parse(both, "f")) == ["Anne", "Bert's = #1"]
    named = merge(written("[Peer]\nA\n"), config)
    assert named == written("[Peer]\n# Name = Anna # hers\nA\n")
    with pytest.raises(ConfigError, match="no file can hold the name"):
        merge(text, replace(config, peers=(replace(config.peers[0], name="a\nPreUp = x"),)))


def test_a_difference_names_the_peer_and_tells_a_new_name() -> None:
    anna, nobody = parse(written("[Peer]\n# Name = Anna\nA\n"), "f"), parse(written(""), "f")
    assert difference(nobody, anna) == [f"+ peer Anna ({KEYS[0][:10]})"]
    assert difference(anna, nobody) == [f"- peer Anna ({KEYS[0][:10]})"]
    assert difference(parse(written("[Peer]\nA\n"), "f"), anna) == [f"~ peer Anna ({KEYS[0][:10]})", "    + Name Anna"]


PEERS = {
    "aaaa1=": "Anna's phone",
    "aaaa2=": "Anna's tablet",
    "bbbb3=": "bert",
    "bbbb4=": "Bert",
    "cccc5=": "",
    "d6=": "",
}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("aaaa1=", "aaaa1="), ("aaaa2", "aaaa2="), ("c", "cccc5="), ("anna's P", "aaaa1="), ("Anna's tablet", "aaaa2="),
        ("bert", "bbbb3="), ("Bert", "bbbb4="),
    ],
)  # fmt: skip
def test_a_peer_is_found_by_key_by_name_or_by_the_beginning_of_one(text: str, key: str) -> None:
    assert find(text, PEERS) == key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("anna", r"^'anna' fits several peers: Anna's phone \(aaaa1=\), Anna's tablet \(aaaa2=\); type more"),
        ("BERT", "fits several peers"),
        ("zoe", r"^no peer has the name or key 'zoe'; `stagewire status` lists all peers$"),
        ("ana's tablet", r"^no peer has the name or key \"ana's tablet\"; did you mean \"Anna's tablet\"\?$"),
        ("", "no peer has"),
        ("\x1b[2J", r"^no peer has the name or key '\[2J'"),
        ("x" * 10_000, "no peer has"),
    ],
)
def test_a_text_that_means_no_peer_or_several(text: str, said: str) -> None:
    with pytest.raises(NotFoundError, match=said) as caught:
        find(text, PEERS)
    assert len(str(caught.value)) < 300


def test_a_name_that_is_the_short_key_of_another_peer_means_neither() -> None:
    short = KEYS[0][:10]
    names = {KEYS[0]: "phone", KEYS[1]: short}
    with pytest.raises(NotFoundError, match="fits several peers"):
        find(short, names)
    assert find(KEYS[0], names) == find("phone", names) == KEYS[0]
    assert find(short, {KEYS[1]: short}) == KEYS[1]


def test_a_label_shows_the_name_beside_the_beginning_of_the_key() -> None:
    assert label(KEYS[0], "Anna") == f"Anna ({KEYS[0][:10]})"
    assert label(KEYS[0], "") == KEYS[0][:10]


@pytest.mark.parametrize("name", ["Anna's $(reboot)", "`id`; x", "Anna (old) phone", "-v", ""])
def test_a_shell_takes_a_name_in_a_command_for_one_word(name: str) -> None:
    [word] = shlex.split(operand("K" * 43 + "=", name))
    assert word in (name, "K" * 43 + "=")
    assert not word.startswith("-")
