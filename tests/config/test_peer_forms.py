"""Operations on peers in every form that a valid file may have: each changes what the file says, and root may write it."""

import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewire.config import InterfaceConfig, encode_key, generate_private_key, parse, public_key
from stagewire.config.guard import beyond_peers
from stagewire.config.operations import (
    AddPeers,
    ExpirePeers,
    NewPeer,
    Operation,
    RemovePeers,
    RenamePeer,
    RotatePeer,
    SetPeer,
    SwitchPeers,
    carry_out,
)
from stagewire.config.settings import Setting

NOW = 1_900_000_000.0
PRIVATE, OFFICE, PHONE, GONE, PSK, *NEW = [
    encode_key(public_key(generate_private_key(bytes([number]) * 32))) for number in range(1, 9)
]
INTERFACE = [
    "[Interface]",
    f"PrivateKey = {PRIVATE}",
    "Address = 10.8.0.1/24, fd00::1/64",
    "# how it begins",
    "MTU = 1400",
]
NAMED = [
    "# the office",
    "[Peer]",
    "# Name = office",
    f"PublicKey = {OFFICE}",
    "AllowedIPs = 10.8.0.2/32, 192.168.0.0/24",
]
ABOVE = [
    "# Name = phone",
    "[Peer]",
    "# stagewire: Rate = 20M",
    f"PublicKey = {PHONE}",
    f"PresharedKey={PSK}",
    "AllowedIPs = 10.8.0.3",
]
AWAY = [
    "# stagewire off: [Peer]", "# stagewire off: # Name = gone", f"# stagewire off: PublicKey = {GONE}",
    "# stagewire off: AllowedIPs = 10.8.0.4/32",
]  # fmt: skip
OPERATIONS: tuple[Operation, ...] = (
    AddPeers((NewPeer("new", NEW[0]),)),
    AddPeers((NewPeer("new", NEW[0], NEW[1], ("10.8.0.9",), ("10.99.0.0/16",), (Setting("Rate", "1M"),)),)),
    RemovePeers(("office",)),
    RemovePeers(("phone",)),
    RemovePeers(("gone",)),
    RemovePeers(("phone", "office", "gone")),
    SwitchPeers(("office",), on=False),
    SwitchPeers(("phone",), on=False),
    SwitchPeers(("gone",), on=True),
    RenamePeer("office", "site"),
    RenamePeer("phone", "tablet"),
    SetPeer(
        "phone", (Setting("Rate", ""), Setting("Expires", "2060-01-01"), Setting("Allow", "any tcp 443; any icmp"))
    ),
    SetPeer("gone", (Setting("AllowedIPs", "10.8.0.4/32, 10.8.0.5/32"),)),
    RotatePeer("office", NEW[0], NEW[1]),
    RotatePeer("phone", NEW[0]),
    ExpirePeers(),
)


def said(text: str) -> InterfaceConfig:
    found = parse(text, "wg0.conf")
    return replace(found, peers=tuple(sorted(found.peers, key=lambda peer: peer.public_key)))


def names(text: str) -> dict[bytes, str]:
    return {peer.public_key: peer.name for peer in parse(text, "wg0.conf").peers}


@st.composite
def forms(draw: st.DrawFn) -> tuple[str, str]:
    """Returns a file in an odd form, and the same file as an editor leaves it."""
    blocks = [INTERFACE, *draw(st.permutations([NAMED, ABOVE, AWAY]))]
    gaps = st.lists(st.sampled_from(["", " ", "\t", "# a note", "#", "# [notes]"]), max_size=3)
    lines = draw(gaps)
    for block in blocks:
        lines += [*block, *draw(gaps)]
        lines.append("")
    lines = lines[: len(lines) - draw(st.integers(0, 1))]
    ends = draw(st.sampled_from([["\n"], ["\r\n"], ["\n", "\r\n"], ["\n", " \n"], ["\n", "\t\r\n"]]))
    odd = "".join(line + draw(st.sampled_from(ends)) for line in lines)
    if draw(st.booleans()):
        odd = odd.rstrip("\n").removesuffix("\r")
    if draw(st.booleans()):
        odd = "\ufeff" + odd
    return odd, "".join(f"{line}\n" for line in lines)


@settings(deadline=None, max_examples=int(os.environ.get("FORMS", "150")))
@given(forms(), st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=1))
def test_every_form_of_a_file_takes_every_operation(form: tuple[str, str], steps: list[Operation]) -> None:
    odd, plain = form
    assert said(odd) == said(plain)
    for step in steps:
        before = odd
        odd, plain = (carry_out(text, "wg0.conf", step, {}, NOW).text for text in (odd, plain))
        assert said(odd) == said(plain)
        assert names(odd) == names(plain)
        assert beyond_peers(before, odd) is None


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["# a comment", "# stagewire: Quota = 1M", "", "\t", "#", "AllowedIPs = 10.8.0.7/32"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_last_line_without_an_end_is_no_other_line(end: str, last: str, operation: Operation) -> None:
    text = end.join([*INTERFACE, "", *NAMED, "", *AWAY, "", *ABOVE, last])
    assert beyond_peers(text, carry_out(text, "wg0.conf", operation, {}, NOW).text) is None
