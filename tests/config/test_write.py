"""A configuration back into its file: what is changed there, and that nothing else is."""

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.config.example import example

from stagewire.config import ConfigError, HostPort, InterfaceConfig, PeerConfig, encode_key, merge, parse, save

PRIVATE = bytes([8] + [1] * 30 + [64])
ONE, TWO, THREE = (encode_key(bytes([n] * 31 + [32])) for n in (1, 2, 3))
INTERFACE = f"[Interface]\nPrivateKey = {encode_key(PRIVATE)}\n"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def peer(number: int) -> PeerConfig:
    return PeerConfig(bytes([number] * 31 + [32]), bytes(32), (), None, 0, response_timestamp=False, line=0)


def render(config: InterfaceConfig) -> str:
    """Writes a new file."""
    return merge("", config)


def meaning(config: InterfaceConfig) -> object:
    """What a configuration says, without any order that means nothing."""
    peers = {(replace(peer, allowed_ips=()), frozenset(peer.allowed_ips)) for peer in config.peers}
    return replace(config, addresses=(), peers=()), frozenset(config.addresses), peers, len(config.peers)


def test_a_rendered_file() -> None:
    text = f"""\
[Interface]
PrivateKey = {encode_key(PRIVATE)}
ListenPort = 0
FwMark = 0xca6c
Address = 10.0.0.1/24, fd00::1/64
DNS = 9.9.9.9, example.net
MTU = 1280
Table = off
PreUp = a = b; c
PostUp = one
PostUp = two
PreDown = three
PostDown = four
SaveConfig = true
# stagewire: RekeyAfterTime = 7.5

[Peer]
PublicKey = {ONE}
PresharedKey = {TWO}
AllowedIPs = 10.0.0.0/24, fd00::1/128
Endpoint = [2001:db8::1]:65535
PersistentKeepalive = 25
# stagewire: ResponseTimestamp = on

[Peer]
PublicKey = {THREE}
"""
    assert render(parse(text, "wg0.conf")) == text
    assert render(parse(INTERFACE, "wg0.conf")) == INTERFACE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"post_up": ("echo # no",)}, "PostUp has a value that no file can hold"),
        ({"post_up": ("a\nPreUp = b",)}, "PreUp has a value that no file can hold"),
        ({"post_up": ("a\n[Peer]",)}, "this [Peer] has no PublicKey"),
        ({"dns": ("a,b",)}, "DNS has a value that no file can hold"),
        ({"peers": (peer(1), peer(1))}, ""),
        ({"peers": (replace(peer(1), endpoint=HostPort("a", 0)),)}, "Endpoint must end with a port"),
    ],
)
def test_what_no_file_can_say(change: dict[str, Any], says: str) -> None:
    config = replace(parse(INTERFACE, "wg0.conf"), **change)
    for write in (render, lambda config: merge(f"# Note.\n{INTERFACE}", config)):
        with pytest.raises(ConfigError) as caught:
            write(config)
        assert str(caught.value).startswith("the configuration: can't be written: ")
        assert says in str(caught.value)
        assert len(caught.value.mistakes) == 1


# What is there => what it shall say => what is there then. A bar is a line's end.
OF_THE_INTERFACE = [
    "mtu=1400\t # inner => MTU = 1300 => mtu=1300\t # inner",
    "FwMark = 0xCA6C => FwMark = 51820 => FwMark = 0xCA6C",
    "Table = AUTO|FwMark = off =>  => Table = AUTO|FwMark = off",
    "Table = auto # all => Table = 7 => Table = 7 # all",
    "# big|MTU = 1400 # inner||# end =>  => # big||# end",
    "FwMark = 1|# stagewire: RekeyAfterTime = 60|SaveConfig = true => SaveConfig = false => ",
    "|MTU = 1400||# end => MTU = 1400|Table = off => |MTU = 1400|Table = off||# end",
    "# MTU = 1| => MTU = 1400 => # MTU = 1|MTU = 1400|",
    "| #stagewire:rekeyaftertime  = 60 # s => # stagewire: RekeyAfterTime = 7.5 => | #stagewire:rekeyaftertime  = 7.5 # s",
    " => # stagewire: RekeyAfterTime = 60 => # stagewire: RekeyAfterTime = 60",
    "Address = 1.1.1.1 ::1 => Address = ::1, 1.1.1.1 => Address = 1.1.1.1 ::1",
    "Address=1.1.1.1/8  ::A,2.2.2.2 # us => Address = 1.1.1.1/9, ::a => Address=1.1.1.1/9  ::A # us",
    "DNS = ::1,a.b # c => DNS = a.b ::1 => DNS = a.b,::1 # c",
    "DNS=a # a|dns=b,c, d # b|DNS=e => DNS=a,b,d,f => DNS=a # a|dns=b,d # b|dns=f",
    "Address=::1|Address=::2,::3 #|Address=::5 => Address=::6,::2,::1 => Address=::1|Address=::2 #|Address=::6/128",
    "Address = ::1|MTU = 1400|Address = ::2 => MTU = 1400 => MTU = 1400",
    "Address = ::1|MTU = 1400|Address = ::2 => MTU = 1400|Address = ::3, ::4 => Address = ::3/128, ::4/128|MTU = 1400",
    "DNS = ::1 # x|DNS = a.b # y => DNS = a.b, ::1 => DNS = a.b, ::1 # x",
    "PreUp=a # 1|preup=b # 2|PreUp=c # 3 => PreUp=0|PreUp=a|PreUp=c|PreUp=d => PreUp=0|PreUp=a # 1|PreUp=c # 3|PreUp=d",
    "PreUp = b # 2 => PreUp = x|PreUp = y => PreUp = x # 2|PreUp = y",
    "PreUp = a # 1|PreUp = b # 2 => PreUp = b|PreUp = a => PreUp = b|PreUp = a # 1",
    " => PreUp = a|PreUp = a => PreUp = a|PreUp = a",
]
OF_A_PEER = [
    "AllowedIPs = 1.0.0.7/8,FD00::1 => AllowedIPs = fd00::1/128, 1.0.0.0/8 => AllowedIPs = 1.0.0.7/8,FD00::1",
    "AllowedIPs = 1.0.0.7/8 # x => AllowedIPs = ::/0, 1.0.0.0/8 => AllowedIPs = ::/0, 1.0.0.7/8 # x",
    "AllowedIPs = ::/0,1.0.0.0/8 => AllowedIPs = 1.0.0.0/8, ::1, ::/0 => AllowedIPs = ::/0,1.0.0.0/8,::1/128",
    "AllowedIPs=::1|AllowedIPs=|AllowedIPs=::2,::3 => AllowedIPs=::4,::3 => AllowedIPs=|AllowedIPs=::3|AllowedIPs=::4/128",
    "AllowedIPs = # none => AllowedIPs = ::/0 => AllowedIPs = ::/0 # none",
    "Endpoint = [FD::0:1]:5 => Endpoint = [fd::1]:5 => Endpoint = [FD::0:1]:5",
    "ENDPOINT= a:1 # x => Endpoint = [fd::1]:5 => ENDPOINT= [fd::1]:5 # x",
    "PersistentKeepalive = 5 => PersistentKeepalive = off => ",
    f"PresharedKey = {TWO} =>  => ",
    f"PresharedKey={TWO}# x => PresharedKey = {THREE} => PresharedKey={THREE}# x",
    "# stagewire: ResponseTimestamp = OFF => # stagewire: ResponseTimestamp = on => # stagewire: ResponseTimestamp = on",
    "|# z => # stagewire: ResponseTimestamp = on|Endpoint=a:1 => Endpoint = a:1|# stagewire: ResponseTimestamp = on||# z",
]
PEERS = (f"[Peer]\nPublicKey = {key}\n" for key in (ONE, TWO, THREE))
SECTIONS = dict(zip("IABC", (INTERFACE, *PEERS), strict=True))
OF_THE_FILE = [
    "I||# a|# a|A|# x||# b|B => I|B => I||# a|# a||# b|B",
    "I||A||# b|B => I|A => I||A||# b",
    "I||A|||B||C| => I => I",
    "I|A|B => I|B => I|B",
    "I|A||B => I|B => I||B",
    "I|# a|A|# b|B => I|B => I|# a|# b|B",
    "I||# far||A||# loose||# b|B => I|B => I||# far||# loose||# b|B",
    "I||A||# end => I => I||# end",
    "# head||# a|A||I||B => I|B => # head||# a||I||B",
    "A||I => I => I",
    "I|# stagewire: RekeyAfterTime = 60|A => I|# stagewire: RekeyAfterTime = 60 => I|# stagewire: RekeyAfterTime = 60",
    "I||B||A => I|A|B => I||B||A",
    "I => I|A|B => I||A||B",
    "I||A||# end| => I|A|B => I||A||# end||B",
    "I||A||# c|C => I|B|C => I||# c|C||B",
    "I||# staff|# Name = a|A||# Name = b|B => I|B => I||# staff||# Name = b|B",
    "I||# staff|# Name = a|# since May|A|# its note||B => I|B => I||# staff||B",
    "I||A|# guests|B => I|B => I||# guests|B",
    "I||A|# Name = a|# guests|B => I|B => I||# guests|B",
    "I||A|# guests|B => I|A => I||A|# guests",
]
CASES = [("", case) for case in OF_THE_FILE]
CASES += [(f"# Head.\n\n{INTERFACE}", case) for case in OF_THE_INTERFACE]
CASES += [(f"{INTERFACE}\n# One.\n[Peer] # 1\nPublicKey={ONE}\n", case) for case in OF_A_PEER]


@pytest.mark.parametrize(("above", "case"), CASES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_what_is_changed(above: str, case: str, newline: str, bom: str) -> None:
    def text(bars: str) -> str:
        lines = bars.split("|") if bars else []
        return bom + (above + "".join(SECTIONS.get(line, f"{line}\n") for line in lines)).replace("\n", newline)

    before, wanted, after = map(text, case.split(" => "))
    assert merge(before, parse(wanted, "wanted")) == after
    assert merge(before, parse(before, "before")) == before


def test_a_last_line_without_end() -> None:
    for wanted, after in (("MTU = 7000", "MTU = 7000"), ("MTU = 1400\nTable = 1", "MTU = 1400\nTable = 1\n"), ("", "")):
        assert merge(f"{INTERFACE}MTU = 1400", parse(INTERFACE + wanted, "wanted")) == INTERFACE + after


def test_the_example_keeps_all_that_is_said_in_it() -> None:
    text = example()
    config = parse(text, "gateway.conf")
    laptop, phone, branch = config.peers
    moved = replace(branch, endpoint=HostPort("192.0.2.9", 7))
    expected = text.replace("branch.example.net:51820", "192.0.2.9:7")
    assert merge(text, replace(config, peers=(moved, laptop, phone))) == expected
    start, stop = text.index("# Name = Anna's phone"), text.index("# A branch office")
    assert merge(text, replace(config, peers=(laptop, branch))) == text[:start] + text[stop:]


def test_a_text_that_is_not_valid() -> None:
    with pytest.raises(ConfigError, match="the configuration:3: unknown key 'Rabbit'"):
        merge(f"{INTERFACE}Rabbit = 1\n", parse(INTERFACE, "wg0.conf"))


_COMMAND = st.sampled_from(["echo a = b", "[x] || true", "b; c", "é\u2028", "x" * 70])
_HOSTS = st.sampled_from([None, HostPort("a.example.net", 1), HostPort("fe80::1%eth0", 2), HostPort("192.0.2.1", 3)])
_ADDRESSES = [ip_interface(text) for text in ("10.0.0.1/24", "10.0.0.2/24", "fd00::1/64", "fd00::2")]
_NETWORKS = [ip_network(text) for text in ("0.0.0.0/0", "::/0", "10.0.0.0/8", "10.0.0.1/32", "fd00::/64", "fd00::1")]


@st.composite
def _configs(draw: st.DrawFn) -> InterfaceConfig:
    numbers = draw(st.lists(st.integers(1, 5), unique=True, max_size=4))
    owners = {network: draw(st.sampled_from([0, *numbers])) for network in draw(st.permutations(_NETWORKS))}
    commands = st.lists(_COMMAND, max_size=4).map(tuple)
    return InterfaceConfig(
        private_key=draw(st.sampled_from([PRIVATE, PRIVATE[::-1]])),
        listen_port=draw(st.sampled_from([None, 0, 51820])),
        fwmark=draw(st.sampled_from([0, 1, 2**32 - 1])),
        addresses=draw(st.lists(st.sampled_from(_ADDRESSES), unique=True).map(tuple)),
        dns=draw(st.lists(st.sampled_from(["9.9.9.9", "::1", "example.net"]), max_size=4).map(tuple)),
        mtu=draw(st.sampled_from([None, 1280, 1420])),
        table=draw(st.sampled_from(["auto", "off", 1234])),
        pre_up=draw(commands),
        post_up=draw(commands),
        pre_down=draw(commands),
        post_down=draw(commands),
        save_config=draw(st.booleans()),
        rekey_after_time=draw(st.sampled_from([5.0, 7.123456789, 120.0])),
        peers=tuple(
            replace(
                peer(number),
                preshared_key=draw(st.sampled_from([bytes(32), PRIVATE])),
                allowed_ips=tuple(network for network, owner in owners.items() if owner == number),
                endpoint=draw(_HOSTS),
                persistent_keepalive=draw(st.sampled_from([0, 25])),
                response_timestamp=draw(st.booleans()),
            )
            for number in numbers
        ),
    )


@st.composite
def _decorated(draw: st.DrawFn, config: InterfaceConfig) -> str:
    """A text that says this, with comments, blank lines, lists in several lines and names in any case."""
    lines: list[str] = []
    for line in render(config).split("\n")[:-1]:
        key, equals, value = line.partition(" = ")
        for part in value.split(", ") if key in ("Address", "AllowedIPs", "DNS") and draw(st.booleans()) else [value]:
            lines += draw(st.sampled_from([[], [], [""], [f"# note {len(lines)}"], ["", f" # note {len(lines)}", ""]]))
            name = draw(st.sampled_from([key, key, key.upper(), f"  {key}"]))
            inline = draw(st.sampled_from(["", "", f" # note {len(lines)}."])) if equals else ""
            lines.append((f"{name}{draw(st.sampled_from(['=', ' = ']))}{part}" if equals else line) + inline)
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    return draw(st.sampled_from(["", "\ufeff"])) + newline.join(lines) + draw(st.sampled_from(["", newline]))


_NOTE = re.compile("(?m)^ *# note [0-9]+(?=\\r?$)")
_any_pair = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_any_pair
@given(_configs(), _configs())
def test_a_rendered_file_becomes_any_other(one: InterfaceConfig, other: InterfaceConfig) -> None:
    text = render(one)
    assert parse(text, "wg0.conf") == one
    assert merge(text, one) == text
    assert meaning(parse(merge(text, other), "wg0.conf")) == meaning(other)


@_any_pair
@given(st.data(), _configs(), _configs())
def test_any_file_becomes_any_other(data: st.DataObject, one: InterfaceConfig, other: InterfaceConfig) -> None:
    text = data.draw(_decorated(one))
    assert merge(text, one) == text
    changed = merge(text, other)
    assert meaning(parse(changed, "wg0.conf")) == meaning(other)
    assert merge(changed, other) == changed
    there = {peer.public_key for peer in other.peers}
    others = (replace(peer, allowed_ips=()) for peer in one.peers if peer.public_key not in there)
    assert _NOTE.findall(merge(text, replace(other, peers=(*other.peers, *others)))) == _NOTE.findall(text)


@_any_pair
@given(st.data(), _configs(), _configs())
def test_only_lines_of_one_key_change(data: st.DataObject, one: InterfaceConfig, other: InterfaceConfig) -> None:
    text = data.draw(_decorated(one)).removesuffix("\n") + "\n"
    field = data.draw(st.sampled_from(["listen_port", "addresses", "dns", "mtu", "post_up", "rekey_after_time"]))
    wanted = replace(one, **{field: getattr(other, field)})
    before, after = (Counter(text.split("\n")) for text in (text, merge(text, wanted)))
    key = field.replace("_", "").removesuffix("es")
    for line in (before - after) + (after - before):
        assert line.lower().partition("=")[0].strip("# ").removeprefix("stagewire: ") == key


@needs_root
@pytest.mark.skipif(not shutil.which("wg-quick"), reason="needs wireguard-tools")
def test_wg_and_wg_quick_still_take_it(tmp_path: Path) -> None:
    config = parse(example(), "gateway.conf")
    branch = replace(config.peers[2], endpoint=HostPort("fd00::7", 7))
    wanted = replace(config, peers=(branch, peer(9)), fwmark=7, dns=("9.9.9.9",), save_config=True)
    file = tmp_path / "swtest0.conf"
    for text in (render(wanted), merge(example(), wanted)):
        file.write_text(text)
        file.chmod(0o600)
        stripped = subprocess.run(["wg-quick", "strip", file], capture_output=True, text=True, check=True)
        assert stripped.stderr == ""
        file.write_text(stripped.stdout)
        # wg reads the file before it looks for the interface, which isn't there.
        ran = subprocess.run(["wg", "setconf", "swtest0", file], capture_output=True, text=True, check=False)
        assert ran.stderr.startswith("Unable to modify")


# --- save ---------------------------------------------------------------------------------------------------

TEXT = f"# Ours.\n{INTERFACE}MTU = 1400 # inner\n"
SAVED = TEXT.replace("1400", "1300")
WANTED = replace(parse(TEXT, "wg0.conf"), mtu=1300)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (file := tmp_path / "wg0.conf").write_text(TEXT)
    file.chmod(0o600)
    return file


def state(path: Path) -> object:
    found = path.stat()
    return path.read_bytes(), found.st_ino, found.st_mtime_ns, found.st_mode, sorted(path.parent.iterdir())


def refusal(path: Path, config: InterfaceConfig = WANTED) -> str:
    """What saving is refused with; nothing has changed then, and nothing is left behind."""
    before = state(path)
    with pytest.raises(ConfigError) as caught:
        save(path, config)
    assert state(path) == before
    assert len(str(caught.value).splitlines()) == len(caught.value.mistakes)
    return str(caught.value)


def test_save(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode().replace(b"\n", b"\r\n") + b"# caf\xc3\xa9")
    path.chmod(0o400)
    before = path.read_bytes()
    save(path, WANTED)
    assert path.read_bytes() == before.replace(b"1400", b"1300")
    assert path.stat().st_mode & 0o7777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    saved = state(path)
    save(path, WANTED)
    assert state(path) == saved


@needs_root
def test_the_owner_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(path, 65534, 65533)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)  # else the file of another would be refused
    save(path, WANTED)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


def test_the_target_of_a_link_is_replaced(path: Path) -> None:
    link = path.with_name("wg1.conf")
    link.symlink_to("wg0.conf")
    save(link, WANTED)
    assert (link.is_symlink(), path.is_symlink()) == (True, False)
    assert path.read_text() == SAVED
    assert sorted(path.parent.iterdir()) == [path, link]


def test_what_is_not_saved_or_not_into_this_file(path: Path) -> None:
    assert refusal(path, replace(WANTED, pre_up=("a # b",))).startswith(f"{path}: can't be written: PreUp has")
    path.write_text(f"{TEXT}Rabbit = 1\nMTU\n")
    assert [line.split(": ")[0] for line in refusal(path).splitlines()] == [f"{path}:5", f"{path}:6"]
    path.chmod(0o646)
    assert refusal(path) == f"{path}: can be written by everyone, and its commands run as root: chmod 600 it"


def test_a_file_that_is_changed_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(descriptor: int) -> None:
        path.write_text(f"{TEXT}# And more.\n")

    monkeypatch.setattr(os, "fsync", edit)
    with pytest.raises(ConfigError, match="was changed by another program just now"):
        save(path, WANTED)
    assert path.read_text() == f"{TEXT}# And more.\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["os.fsync", "os.fchown", "os.replace", "os.link"])
def test_whatever_fails(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(name, fail)
    assert refusal(path) == f"{path}: can't be saved, and is left as it was: Input/output error, in {path.parent}"


@needs_root
def test_a_full_disk_and_one_that_is_read_only(tmp_path: Path) -> None:
    (folder := tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=0700", "tmpfs", folder], check=True)
    try:
        (file := folder / "wg0.conf").write_text(TEXT)
        file.chmod(0o600)
        (full := folder / "full").write_bytes(bytes(3 * 4096))
        assert "No space left on device, in " in refusal(file)
        full.unlink()
        save(file, WANTED)
        assert file.read_text() == SAVED
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        assert "Read-only file system, in " in refusal(file, parse(TEXT, "wg0.conf"))
    finally:
        subprocess.run(["umount", folder], check=True)
