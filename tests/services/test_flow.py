"""No line is wider than it may be, whatever the letters; nothing but spaces is lost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewire_cli import flow, peer_layout, peer_rows


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", 0), ("abc", 3), ("Zoë", 3), ("Zoe\u0308", 3), ("東京", 4), ("\uff46\uff55", 4), ("a\u200bb", 2)],
)
def test_wide_letters_take_two_columns_and_marks_none(text: str, columns: int) -> None:
    assert flow.columns(text) == columns


LETTERS = st.text(st.sampled_from("ab東ë̈京—"), min_size=1, max_size=90)


@given(st.lists(LETTERS, max_size=9), st.integers(20, 80))
def test_no_line_is_wider_and_no_letter_is_lost(items: list[str], width: int) -> None:
    found = list(flow.lines("head", 4, items, width))
    assert all(flow.columns(line) <= width for line in found)
    assert re.sub(" ", "", "".join(found)) == "head" + "".join(items)
    assert list(flow.lines("head", 4, items, None)) == [" ".join(["head", *items])]


def row(name: str, **changes: object) -> peer_rows.Row:
    return {
        "name": name, "public_key": "vG4mK2Aa1b" + "A" * 33 + "=", "state": "enabled", "endpoint": None,
        "allowed_ips": ["10.8.0.2/32", "fd00:8::2/128"], "persistent_keepalive_s": 0, "has_preshared_key": True,
        "expires": None, "rate": None, "quota_bytes": None, "quota_used_bytes": None, "client_allowed_ips": [],
        "client_dns": [], "client_mtu": None, "client_keepalive_s": None, "groups": [], "allow": [], "forwards": [],
    } | changes  # fmt: skip


FULL = row(
    "東京の" * 21 + "A", state="disabled", expires="2030-12-31T18:00:00Z", rate="20M/5M", quota_bytes=5 * 10**10,
    quota_used_bytes=4 * 10**10, allowed_ips=[f"2001:db8:aaaa:bbbb:cccc:dddd:eeee:{last:x}/128" for last in range(9)],
    endpoint="[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:51820", groups=["g" * 32] * 4, client_dns=["10.8.0.1"] * 12,
    allow=["2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff tcp " + ",".join(map(str, range(1, 60, 2)))], client_mtu=1300,
    forwards=["tcp 8080 80"], client_allowed_ips=["0.0.0.0/0"], client_keepalive_s=0, persistent_keepalive_s=25,
)  # fmt: skip


def test_a_list_has_a_heading_and_a_line_for_each_peer() -> None:
    rows = [row("anna"), row("東京", state="disabled"), row("", allowed_ips=[]), row("b" * 64)]
    assert list(peer_layout.list_lines(rows, 80)) == [
        "peer               state     allowed ips",
        "anna (vG4mK2Aa1b)  enabled   10.8.0.2/32, fd00:8::2/128",
        "東京 (vG4mK2Aa1b)  disabled  10.8.0.2/32, fd00:8::2/128",
        "vG4mK2Aa1bAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "                   enabled   -",
        "b" * 64 + " (vG4mK2Aa1b)",
        "                   enabled   10.8.0.2/32, fd00:8::2/128",
    ]


def test_nothing_of_a_peer_is_wider_than_80_columns() -> None:
    lines = [*peer_layout.list_lines([FULL, row("anna")], 80), *peer_layout.show_lines(FULL, 80)]
    assert max(map(flow.columns, lines)) <= 80
    assert next(peer_layout.list_lines([], 80)).startswith("no peers")


def test_a_peer_is_shown_in_words() -> None:
    said = "\n".join(peer_layout.show_lines(FULL, 1000))
    for words in (
        "pre-shared key: yes", "rate: 20M bits/s to the peer, 5M bits/s from it", "quota: used 80% of 50G monthly",
        "keepalive: 25 s", "client's keepalive: off", "client's MTU: 1300 bytes", "forwarded ports: tcp 8080 80",
    ):  # fmt: skip
        assert words in said
    assert "_" not in said


def test_texts_are_wrapped_below_their_own_indent() -> None:
    texts = ["  do: " + "word " * 10 + "end", "short", "    received  ▁▂▃"]
    assert flow.wrapped(texts, None) == texts
    told = flow.wrapped(texts, 30)
    assert told == [
        "  do: word word word word word", "      word word word word word", "      end", "short", "    received  ▁▂▃"
    ]  # fmt: skip
    assert all(flow.columns(line) <= 30 for line in told)
    assert flow.wrapped(["a" * 50], 30) == ["a" * 26, "    " + "a" * 24]
    assert flow.wrapped([""], 5) == [""]
