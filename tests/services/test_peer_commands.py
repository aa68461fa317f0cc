"""`stagewire init` and `stagewire peer` for an interface that is down: the file alone changes, or one line says why not."""

import json
import os
import re
import stat
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests import schemas
from tests.services.commands import folders, stagewire
from tests.services.disks import full_disk, small_disk

from stagewire import config
from stagewire.config import roster
from stagewire.control import usage
from stagewire_cli import client_config, operands
from stagewire_cli.__main__ import main
from stagewire_cli.failures import Failed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="these commands need root")

PLACE = ("--endpoint", "vpn.example.org", "--network", "10.8.0.0/24, fd00:8::/64")


class Files:
    """A folder of one gateway's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "wg0.conf"

    def run(self, *words: str) -> str:
        done = stagewire(*words, env=folders(self.folder))
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def peer(self, *words: str) -> str:
        return self.run("peer", *words, "-i", str(self.conf))

    def refused(self, *words: str) -> str:
        before = self.conf.read_bytes()
        done = stagewire(*words, env=folders(self.folder))
        assert done.returncode == 1, done.stdout
        assert len(done.stderr.splitlines()) == 1
        assert self.conf.read_bytes() == before, "nothing of it holds"
        return done.stderr

    def names(self) -> list[str]:
        return [peer.name for peer in roster.read(self.conf.read_text(), "").whole.peers]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.run("init", str(made.conf), *PLACE)
    return made


def values(text: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line and not line.startswith("#"))


def test_init_makes_a_file_that_works_and_names_the_next_step(tmp_path: Path) -> None:
    conf = tmp_path / "wg0.conf"
    said = stagewire("init", conf, *PLACE, "--port", "4711", "--dns", "10.8.0.1", env=folders(tmp_path)).stdout
    made = config.load(conf, strict=True)
    assert [str(each) for each in made.addresses] == ["10.8.0.1/24", "fd00:8::1/64"]
    assert (made.listen_port, str(made.client_endpoint), made.client.dns) == (
        4711,
        "vpn.example.org:4711",
        ("10.8.0.1",),
    )
    assert stat.S_IMODE(conf.stat().st_mode) == 0o600
    assert "4711" in said
    assert f"stagewire up {conf}" in said
    assert made.exit == "off"
    assert "exit: off" in said
    again = stagewire("init", conf, *PLACE, env=folders(tmp_path))
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


def test_init_offers_a_way_to_everywhere(tmp_path: Path) -> None:
    conf = tmp_path / "wg0.conf"
    stagewire("init", conf, *PLACE, "--exit", env=folders(tmp_path))
    made = config.load(conf, strict=True)
    assert (made.exit, [str(each) for each in made.client.allowed_ips]) == ("on", ["0.0.0.0/0", "::/0"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--endpoint", "a b"), "is no place of a gateway"),
        (("--endpoint", "a.example:99999"), "is no place of a gateway"),
        (("--endpoint", "a.example", "--network", "10.0.0.0/31"), "has no room"),
        (("--endpoint", "a.example", "--network", "10.0.0.0/8, 10.9.0.0/24"), "one network of each family"),
        (("--endpoint", "a.example", "--network", "nine"), "--network must be"),
        (("--endpoint", "a.example", "--dns", "a;b"), "--dns must be"),
        (("--endpoint", "a.example", "--dns", "foo bar"), "--dns must name the address of a DNS server"),
    ],
)
def test_bad_options_of_init_make_no_file(tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    done = stagewire("init", tmp_path / "wg0.conf", *options, env=folders(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert why in done.stderr
    assert not (tmp_path / "wg0.conf").exists()


def test_a_client_gets_all_that_it_needs(files: Files) -> None:
    said = values(files.peer("add", "phone", "--dns", "10.8.0.1", "--mtu", "1300"))
    assert said["Address"] == "10.8.0.2/32, fd00:8::2/128"
    assert said["AllowedIPs"] == "10.8.0.0/24, fd00:8::/64"
    assert (said["DNS"], said["MTU"], said["PersistentKeepalive"]) == ("10.8.0.1", "1300", "25")
    assert said["Endpoint"].startswith("vpn.example.org:")
    assert said["PrivateKey"] not in files.conf.read_text()
    again = values(files.peer("config", "phone"))
    assert again == said | {"PrivateKey": "PUT-THE-PRIVATE-KEY-HERE"}


def test_everything_through_the_tunnel_but_what_is_excluded(files: Files) -> None:
    assert values(files.peer("add", "full", "--full-tunnel"))["AllowedIPs"] == "0.0.0.0/0, ::/0"
    said = values(files.peer("add", "most", "--full-tunnel", "--exclude", "192.168.0.0/16", "--exclude", "fd00::/8"))
    allowed = config.values.networks(said["AllowedIPs"])
    assert not any(each.overlaps(gone) for each in allowed for gone in config.values.networks("192.168.0.0/16"))
    assert sum(each.num_addresses for each in allowed if each.version == 4) == 2**32 - 2**16
    assert sum(each.num_addresses for each in allowed if each.version == 6) == 2**128 - 2**120
    assert values(files.peer("config", "most"))["AllowedIPs"] == said["AllowedIPs"]


def test_everything_through_a_gateway_that_passes_nothing_on_is_said(files: Files) -> None:
    for words in (("add", "full"), ("set", "full")):
        done = stagewire("peer", *words, "--full-tunnel", "-i", files.conf, env=folders(files.folder))
        assert done.returncode == 0
        assert "the file has no `# stagewire: Exit = on`" in done.stderr
    files.conf.write_text(files.conf.read_text().replace("ListenPort", "# stagewire: Exit = on\nListenPort", 1))
    done = stagewire("peer", "add", "other", "--full-tunnel", "-i", files.conf, env=folders(files.folder))
    assert "Exit" not in done.stderr


def test_a_peer_with_a_key_of_its_own_shows_it_to_nobody(files: Files) -> None:
    private = config.generate_private_key(os.urandom(32))
    public = config.encode_key(config.public_key(private))
    said = values(files.peer("add", "laptop", "--public-key", public, "--no-psk", "--network", "192.168.7.0/24"))
    assert said["PrivateKey"] == "PUT-THE-PRIVATE-KEY-HERE"
    assert "PresharedKey" not in said
    shown = json.loads(files.peer("show", "laptop", "--json"))
    assert shown["allowed_ips"] == ["10.8.0.2/32", "fd00:8::2/128", "192.168.7.0/24"]


def test_each_command_changes_what_it_names(files: Files) -> None:
    files.peer("add", "a")
    files.peer("add", "b", "--expires", "30d")
    before = values(files.peer("config", "a"))
    files.peer("rename", "a", "c")
    files.peer("disable", "c", "b")
    assert [row["state"] for row in json.loads(files.peer("list", "--json"))["peers"]] == ["disabled", "disabled"]
    assert config.load(files.conf).peers == ()
    files.peer("enable", "c", "b")
    files.peer("set", "b", "--expires", "never", "--keepalive", "off")
    assert "expires" not in files.peer("show", "b")
    rotated = values(files.peer("rotate", "c"))
    assert rotated["Address"] == before["Address"]
    assert rotated["PresharedKey"] != before["PresharedKey"]
    files.peer(
        "set",
        "b",
        "--group",
        "staff",
        "--allow",
        "10.0.0.0/24 tcp 443",
        "--allow",
        "fd00::/8",
        "--forward",
        "tcp 80 8080",
    )
    shown = json.loads(files.peer("show", "b", "--json"))
    assert (shown["groups"], shown["allow"]) == (["staff"], ["10.0.0.0/24 tcp 443", "fd00::/8"])
    assert shown["forwards"] == ["tcp 80 8080"]
    files.peer("set", "b", "--group", "", "--allow", "")
    shown = json.loads(files.peer("show", "b", "--json"))
    assert (shown["groups"], shown["allow"], shown["forwards"]) == ([], [], ["tcp 80 8080"])
    refused = files.refused("peer", "set", "b", "--allow", "10.0.0.0/24 tcp 99999", "-i", str(files.conf))
    assert "--allow must have ports from 1 to 65535" in refused
    files.peer("remove", "b", "c")
    assert files.names() == []


def test_each_answer_names_the_peer_and_what_happened(files: Files) -> None:
    def said(*words: str) -> str:
        done = stagewire("peer", *words, "-i", str(files.conf), env=folders(files.folder))
        return done.stdout if done.stdout[:1] in "+~=-" else done.stderr

    short = r"\(\S{10}\)"
    for words, answer in (
        (("add", "a"), rf"\+ peer a {short}  AllowedIPs 10\.8\.0\.2/32, fd00:8::2/128\n"),
        (("set", "a", "--rate", "20M"), rf"~ peer a {short}\n    \+ Rate 20M\n"),
        (("set", "a", "--rate", "20M"), rf"= peer a {short} is set so already\n"),
        (("rename", "a", "b"), rf"~ peer a {short}\n    ~ Name a -> b\n"),
        (("rename", "b", "b"), rf"= peer b {short} has this name already\n"),
        (("enable", "b"), rf"= peer b {short} is in use already\n"),
        (("disable", "b"), rf"~ peer b {short} is out of use\n"),
        (("disable", "b"), rf"= peer b {short} is out of use already\n"),
        (("enable", "b"), rf"~ peer b {short} is in use\n"),
        (("rotate", "b"), rf"~ peer b {short}\n    ~ PublicKey \S+ -> \S+\n    ~ PresharedKey is another\n"),
        (("remove", "b"), rf"- peer b {short}  AllowedIPs 10\.8\.0\.2/32, fd00:8::2/128  Rate 20M\n"),
    ):
        assert re.fullmatch(answer, told := said(*words)), (words, told)


def test_a_file_that_says_no_endpoint_adds_nobody(files: Files) -> None:
    text = "".join(line for line in files.conf.read_text().splitlines(True) if "ClientEndpoint" not in line)
    files.conf.write_text(text)
    assert "doesn't say where clients find this gateway" in files.refused("peer", "add", "a", "-i", str(files.conf))
    said = values(files.peer("add", "a", "--gateway", "[2001:db8::1]:5"))
    assert said["Endpoint"] == "[2001:db8::1]:5"


def test_what_is_written_is_a_new_file_for_root_alone(files: Files) -> None:
    out = files.folder / "phone.conf"
    files.peer("add", "phone", "--output", str(out))
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert values(out.read_text())["PrivateKey"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("add", "a", "--full-tunnel", "--split"), "contradict"),
        (("add", "a", "--exclude", "0.0.0.0/0", "--exclude", "::/0"), "leaves nothing"),
        (("add", "a", "--exclude", "home"), "--exclude must be"),
        (("add", "a", "--expires", "soon"), "--expires must be"),
        (("add", "a\x1b[2J"), "is no peer's name"),
        (("add", "a", "--gateway", "nowhere"), "--gateway must be"),
        (("add", "a", "--output", "/nowhere/at/all"), "/nowhere/at/all"),
        (("add", "a", "--public-key", "short"), "--public-key is not"),
        (("rotate", "here", "--public-key", "short"), "--public-key is not"),
        (("add", "a" * 5000), "which has 1 to 64 letters"),
        (("add", "a", "--mtu", "1"), "--mtu must be a whole number from 576"),
        (("add", "a", "--dns", "a\nb"), "--dns must be one line"),
        (("add", "a", "--dns", "corp.example"), "--dns must name the address of a DNS server"),
        (("add", "a", "--keepalive", "-1"), "--keepalive must be off, or seconds"),
        (("add", "a", "--rate", "5"), "--rate must be bits/s from 64K"),
        (("add", "a", "--quota", "much"), "--quota must be bytes a month"),
        (("add", "a", "--endpoint", "here"), "--endpoint must be host:port"),
        (("add", "a", "--group", "a b!"), "--group must name groups"),
        (("add", "a", "--forward", "tcp 80"), "--forward must be such as tcp 8080 80"),
        (("add", "a", "--forward", "tcp 80 0"), "--forward must have ports from 1 to 65535"),
        (("add", "a", "--address", "10.8.0.9/24"), "--address must be a single address, such as 10.8.0.9"),
        (("add", "a", "--network", "x"), "--network must be a prefix"),
        (("add", "a", "--address", "10.8.0.300"), "--address must be an address such as 10.8.0.9"),
        (("add", "a", "--address", "10.9.0.2"), "--address 10.9.0.2 lies outside of the tunnel's network 10.8.0.0/24"),
        (("add", "a", "--address", "10.8.0.1"), "10.8.0.1/32 is the gateway's own address"),
        (("add", "here2", "--address", "10.8.0.2"), "10.8.0.2/32 belongs to peer here"),
        (("set", "here", "--allowed-ips", ""), "--allowed-ips must name an address"),
        (("add", "a", "--exclude", "192.168.0.0/16"), "excludes nothing, as the client sends 10.8.0.0/24"),
        (("add", "a", "--split", "--exclude", "192.168.0.0/16"), "is --full-tunnel meant too?"),
        (("add", "a", "--expires", "30"), "is 30d meant?"),
        (("add", "a", "--expires", "2020-01-31"), "--expires 2020-01-31T00:00:00Z is over already"),
        (("set", "here", "--expires", "2020-01-31"), "--expires 2020-01-31T00:00:00Z is over already"),
        (("add", "a", "--output", "new/a.conf"), "there is no folder new"),
        (("set", "here", "--allowed-ips", "x"), "--allowed-ips must be a prefix"),
        (("set", "here", "--allow", "staff: any"), "--allow takes the group 'staff' only in a line of [Interface]"),
        (("add", "MaximilianMustermannLaptop"), "put a space or a hyphen after 19 letters at most"),
        (("set", "here", "--allow", "any sctp"), "--allow must have the protocol tcp"),
        (("add", "a", "--output", "/etc/passwd"), "/etc/passwd exists already"),
        (("remove", "nobody"), "no peer has the name"),
        (("rotate", "nobody"), "no peer has the name"),
        (("set", "nobody", "--mtu", "1300"), "no peer has the name"),
        (("set", "nobody"), "say what to change"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(files: Files, words: tuple[str, ...], why: str) -> None:
    if {"here", "here2"} & {*words}:
        files.peer("add", "here")
    assert why in files.refused("peer", *words, "-i", str(files.conf))


def test_a_full_disk_is_one_line_and_changes_nothing(files: Files, tmp_path: Path) -> None:
    files.peer("add", "a")
    table = files.folder / "new.csv"
    table.write_text("name\nb\nc\n")
    with small_disk(tmp_path / "disk") as disk:
        there, folder = Files(disk), disk / "out"
        there.run("init", str(there.conf), *PLACE)
        folder.mkdir()
        standing = {*disk.iterdir(), disk / "ballast"}
        with full_disk(disk):
            for words in (
                ("add", "b", "--output", str(disk / "b")), ("add", "--from", str(table), "--output", str(folder)),
                ("rotate", "a", "--output", str(disk / "a")), ("config", "a", "--output", str(disk / "a")),
            ):  # fmt: skip
                assert "No space left on device; nothing is changed" in files.refused(
                    "peer", *words, "-i", str(files.conf)
                )
            assert "No space left on device" in there.refused("peer", "add", "a", "-i", str(there.conf))
            assert {*disk.iterdir()} == standing
            assert list(folder.iterdir()) == []


def test_a_table_adds_all_or_none(files: Files) -> None:
    table, out = files.folder / "new.csv", files.folder / "out"
    out.mkdir()
    rows = [f"p{number}," for number in range(500)]
    table.write_text("\n".join(["name,expires", *rows[:398], "p7,", *rows[399:]]))
    add = ("peer", "add", "--from", str(table), "--output", str(out), "-i", str(files.conf))
    assert f"{table}:400: " in files.refused(*add)
    table.write_text("\n".join(["name,expires", *rows[:120]]))
    assert "added 120 peers" in files.run(*add)
    assert len(files.names()) == len(list(out.iterdir())) == 120
    assert values((out / "p7.conf").read_text())["Address"].startswith("10.8.0.9/32")


def test_a_table_says_what_each_peer_may_reach(files: Files) -> None:
    table, out = files.folder / "new.csv", files.folder / "out"
    out.mkdir()
    table.write_text("name,group,allow\na,staff,\nb,,10.0.0.0/8 tcp 80; any icmp\nc,,\n")
    files.run("peer", "add", "--from", str(table), "--output", str(out), "-i", str(files.conf))
    rows = json.loads(files.peer("list", "--json"))["peers"]
    assert [row["groups"] for row in rows] == [["staff"], [], []]
    assert [row["allow"] for row in rows] == [[], ["10.0.0.0/8 tcp 80", "any icmp"], []]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ":1: the first line must name the columns"),
        ("name\n", "has no line with a peer"),
        ("\n\nname\na,b\n", ":4: has 2 columns, but the first line has 1"),
        ("name,hook\na,b\n", ":1: there is no column 'hook'; there are name, "),
        ("name,private_key\na,b\n", "the gateway keeps no private key of a peer: give public_key"),
        ("name,networks\na,b\n", "did you mean network?"),
        ("name,Name\na,b\n", ":1: the first line names the column name twice"),
        ("mtu\n1300\n", ":1: the first line names no column name"),
        ("name;mtu\na;1300\n", ":1: separates its columns with semicolons: save it with commas"),
        ("name\tmtu\na\t1300\n", "with tabs"),
        ("anna,x\n", ":1: the first line must name the columns, such as name,public_key,address"),
        ("name,mtu\na\n", ":2: has 1 column, but the first line has 2"),
        ("name\na,b\n", ":2: has 2 columns"),
        ("name,\na,b\n", ":2: has 'b' in a column that the first line does not name"),
        ("name,mtu\na,1300\n\nb,many\n", ":4: column mtu must be a whole number from 576"),
        ("name,expires\na,soon\n", ":2: column expires must be"),
        ("name,allow\na,any tcp 0\n", ":2: column allow must have ports"),
        ("name,public_key\na,short\n", ":2: the public_key of 'a' is not base64"),
        ("name,public_key\na,OWN\n", ":2: peer a: this is the gateway's own public key"),
        ("name,address\na,10.8.0.0/24\n", ":2: column address must be a single address, such as 10.8.0.0"),
        ("name,address\na,\nb: c,10.8.0.1\n", ":3: peer b: c: 10.8.0.1/32 is the gateway's own address"),
        (f"name\n{'a' * 65}\n", "is no peer's name, which has 1 to 64 letters"),
        ('name\n"a', ":2: a quotation mark is opened and not closed"),
        ('name\nb\na"a"\n"a"a\n', ":4: a quotation mark"),
        ("name\na\n\xff\n", ":3: is not UTF-8 text: save the file as CSV in UTF-8"),
    ],
)
def test_a_table_with_a_mistake_changes_nothing(files: Files, text: str, why: str) -> None:
    table = files.folder / "new.csv"
    own = config.load(files.conf).private_key or b""
    table.write_bytes(text.replace("OWN", config.encode_key(config.public_key(own))).encode("latin-1"))
    said = files.refused("peer", "add", "--from", str(table), "--output", str(files.folder), "-i", str(files.conf))
    assert why in said
    assert said.endswith("; nothing is changed\n")


def test_a_table_of_a_spreadsheet_is_read(files: Files) -> None:
    table = files.folder / "new.csv"
    rows = ["Name , expires,", "", '"Anna, ""A""",2040-01-01,', ",,", "Zoë , ,", ""]
    table.write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    said = files.peer("add", "--from", str(table), "--output", str(files.folder)).splitlines()
    assert files.names() == ['Anna, "A"', "Zoë"]
    assert said[0].startswith('+ peer Anna, "A" (')
    assert said[2] == f"added 2 peers, and wrote their configurations into {files.folder}"


def test_a_table_without_a_place_for_private_keys_names_the_peer(files: Files) -> None:
    table = files.folder / "new.csv"
    table.write_text("name\nanna\n")
    said = files.refused("peer", "add", "--from", str(table), "-i", str(files.conf))
    assert f"{table}:2: 'anna' has no public_key, so a private key is made: give --output FOLDER" in said


def test_a_configuration_that_no_qr_code_holds_is_said() -> None:
    assert client_config.qr("x" * 2953)
    with pytest.raises(Failed, match="too many for a QR code: use --output"):
        client_config.qr("x" * 2954)
    drawn = re.sub("\x1b[^m]*m", "", client_config.qr("x" * 300, 69)).splitlines()
    assert {len(line) for line in drawn if line} == {69}
    with pytest.raises(Failed, match="needs 69 columns, and this terminal has 68"):
        client_config.qr("x" * 300, 68)


def test_a_limit_is_set_shown_with_what_is_used_and_taken_away(files: Files) -> None:
    files.peer("add", "phone", "--rate", "20M/5M", "--quota", "50G")
    key = roster.read(files.conf.read_text(), "").whole.peers[0].public_key
    state = files.folder / "state" / "wg0"
    state.mkdir(parents=True, exist_ok=True)
    (state / usage.NAME).write_bytes(usage.pack({key: usage.Usage({usage.month_of(time.time()): 40_000_000_000})}))
    assert "used 80% of 50G monthly" in files.peer("list")
    shown = json.loads(files.peer("show", "phone", "--json"))
    assert (shown["rate"], shown["quota_bytes"], shown["quota_used_bytes"]) == ("20M/5M", 5 * 10**10, 4 * 10**10)
    assert files.peer("set", "phone", "--rate", "none", "--quota", "none").splitlines()[1:] == [
        "    - Rate 20M/5M",
        "    - Quota 50G monthly",
    ]
    assert "used" not in files.peer("list")
    assert "stagewire: Rate" not in files.conf.read_text()


def test_what_is_used_and_cannot_be_read_is_said(files: Files) -> None:
    state = files.folder / "state" / "wg0"
    state.mkdir(parents=True, exist_ok=True)
    (state / usage.NAME).write_text("{")
    assert f"{state / usage.NAME}: is not of this kind" in files.refused("peer", "list", "-i", str(files.conf))


def test_list_and_show_are_what_their_schemas_say(files: Files) -> None:
    files.peer("add", "phone", "--dns", "10.8.0.1", "--expires", "30d", "--rate", "20M/5M", "--quota", "50G")
    files.peer("add", "office", "--endpoint", "office.example:5", "--mtu", "1300", "--group", "staff")
    files.peer("set", "office", "--allow", "10.0.0.0/24 tcp 443")
    files.peer("add", "off")
    files.peer("disable", "off")
    found = json.loads(files.peer("list", "--json"))
    schemas.check(found, "peers")
    for name in ("phone", "office", "off"):
        schemas.check(json.loads(files.peer("show", name, "--json")), "peer")
    assert schemas.misfit({**found, "more": 1}, schemas.schema("peers"))


def test_a_group_that_reaches_nothing_is_said_once(files: Files) -> None:
    files.peer("add", "a")
    said = [
        stagewire("peer", *words, "-i", str(files.conf), env=folders(files.folder)).stderr
        for words in (("set", "a", "--group", "staff"), ("set", "a", "--mtu", "1300"))
    ]
    assert "no Allow line of [Interface] names the group staff, so it lets this peer reach nothing" in said[0]
    assert said[1] == ""


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("set", "a", "--allow", "10.0.0.0/24", "tcp", "443"), "put the value of --allow into quotes, as in --allow '"),
        (("add", "a", "--forward", "tcp", "8080", "80"), "put the value of --forward into quotes"),
        (("add", "--dns", "10.8.0.1", "example.org", "a"), "put the value of --dns into quotes"),
        (("show", "Anna's", "phone"), "unexpected extra argument (phone): put a name with spaces into quotes\n"),
        (("list", "nowhere"), "unexpected extra argument (nowhere)\n"),
    ],
)
def test_words_too_many_are_explained(words: tuple[str, ...], hint: str) -> None:
    done = stagewire("peer", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr


def test_a_gateway_without_its_option_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "interfaces", lambda: ["wg7"])
    said = CliRunner().invoke(main, ["peer", "list", "wg7"])
    assert "unexpected extra argument (wg7): -i wg7 names the gateway" in said.output


@pytest.mark.parametrize(
    "words", [("show", "nobody"), ("config", "nobody"), ("show", "lap"), ("rename", "lap", "other")]
)
def test_a_peer_that_is_not_there_or_could_be_two_costs_one_line(files: Files, words: tuple[str, ...]) -> None:
    for name in ("lap1", "lap2"):
        files.peer("add", name)
    assert words[1] in files.refused("peer", *words, "-i", str(files.conf))
