"""Files from real life, or after it: what wg-quick and `wg` make of each, and what we make of it.

`tests/config/corpus` has them. wg-quick's own functions and `wg setconf` take each upon a real wireguard-go; a file is
refused when `wg-quick up` would fail. Where we differ, docs/COMPATIBILITY.md says so, and why.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from lab.namespaces import Namespace
from lab.wireguard_go import WireguardGo, new_key_pair, parse_dump
from stagewire.config import ConfigError, HostPort, InterfaceConfig, encode_key, load, values

pytestmark = pytest.mark.system

HERE = Path(__file__)
CORPUS = HERE.parents[1] / "config" / "corpus"
DOCUMENT = HERE.parents[2] / "docs" / "COMPATIBILITY.md"
NAMES = sorted(path.stem for path in CORPUS.glob("*.conf"))
HOSTS = {"vpn.example.net": "192.0.2.10", "vpn.example.net.": "192.0.2.10", "gw6.example.net": "2001:db8::10"}

WE_TAKE, WE_REFUSE = "we take it", "we refuse it"
DIFFERENCES: Mapping[str, Mapping[str, str]] = {
    "a byte order mark before the first line": {"notepad-bom": WE_TAKE, "notepad-bom-comment": WE_TAKE},
    "NUL bytes, as in UTF-16": {"nul-byte": WE_REFUSE, "notepad-utf16-no-bom": WE_REFUSE},
    "a published key": dict.fromkeys(
        ("key-of-the-example", "key-of-the-manual", "peer-of-the-manual", "psk-of-the-manual"), WE_REFUSE
    ),
    "a port beyond 65535, or an endpoint's port 0": dict.fromkeys(
        ("port-too-large", "endpoint-port-too-large", "endpoint-port-zero"), WE_REFUSE
    ),
    "an IPv4 address of fewer than four numbers, or with zeros before one": dict.fromkeys(
        ("address-short", "address-leading-zeros", "endpoint-short-ipv4", "endpoint-octal-ipv4"), WE_REFUSE
    ),
    "an IPv4 address written as IPv6 in an endpoint": {"endpoint-ipv4-mapped": "peers"},
    "a wg-quick key without `=`": {"dns-name-alone": WE_REFUSE, "hook-name-alone": WE_REFUSE},
    "an empty `AllowedIPs`": {"empty-allowedips": WE_TAKE},
    "`+` or `-` before a prefix": {"allowed-plus-sign": WE_TAKE, "allowed-minus-sign": WE_TAKE},
    "`Table = OFF`, `Table = Auto`, `FwMark = 0X1`": dict.fromkeys(
        ("table-off-upper", "table-auto-mixed", "fwmark-hex-upper-x"), WE_TAKE
    ),
    "spaces inside the header `[ Interface ]`": {"header-spaced-with-address": WE_TAKE},
    "an `Address` given twice": {"twice-same-address": WE_TAKE, "twice-same-ipv6": WE_TAKE},
    "`Table = main` and allowed-IPs that an `Address` has a route to already": {"table-main-own-subnet": WE_TAKE},
}
"""By its row in the document: the files in which a difference shows, each with what differs."""
KNOWN = {name: says for files in DIFFERENCES.values() for name, says in files.items()}


@dataclass(frozen=True, slots=True)
class Theirs:
    """What wg-quick made of a file. `stage` is how far it got, `said` the last thing it said."""

    folder: Path

    @property
    def stage(self) -> str:
        return (self.folder / "stage").read_text().strip()

    @property
    def said(self) -> str:
        return ((self.folder / "said").read_text(errors="replace").splitlines() or [""])[-1]

    def parsed(self, name: str) -> list[str]:
        words = (self.folder / "parsed").read_bytes().decode("utf-8", "surrogateescape").split("\0")
        return [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=") and word != f"{name}="]

    def table(self) -> set[str]:
        """Where its routes went, by number."""
        routes = self.folder / "routes"
        lines = routes.read_text().splitlines() if routes.exists() else []
        return {(re.search(r" table (\d+)", line) or ["", "254"])[1] for line in lines}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which wg-quick's doings are written down, one folder a file."""
    folder = tmp_path_factory.mktemp("corpus")
    (hosts := folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in HOSTS.items()))
    (resolv := folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    with Namespace("corpus") as namespace, WireguardGo(namespace, new_key_pair(), ()) as far:
        for name in NAMES:
            (each := folder / "files" / name).mkdir(parents=True)
            (file := each / f"{far.interface}.conf").write_bytes((CORPUS / f"{name}.conf").read_bytes())
            file.chmod(0o600)
        mounts = f"mount --bind {hosts} /etc/hosts && mount --bind {resolv} /etc/resolv.conf"
        run = f"{mounts} && exec bash {HERE.with_name('corpus.bash')} /usr/bin/wg-quick {far.interface} {folder / 'files'}"
        namespace.run("unshare", "-m", "bash", "-c", run, timeout=300)
        yield folder / "files"


def of_peers(theirs: Theirs) -> dict[str, object]:
    dump = parse_dump((theirs.folder / "dump").read_text())
    return {
        key: (
            peer.preshared_key,
            peer.endpoint,
            frozenset(map(ip_network, peer.allowed_ips)),
            peer.persistent_keepalive or 0,
        )
        for key, peer in dump.peers.items()
    }


def our_peers(config: InterfaceConfig) -> dict[str, object]:
    return {
        encode_key(peer.public_key): (
            encode_key(peer.preshared_key) if any(peer.preshared_key) else None,
            str(HostPort(HOSTS.get(peer.endpoint.host.lower(), peer.endpoint.host), peer.endpoint.port))
            if peer.endpoint
            else None,
            frozenset(peer.allowed_ips),
            peer.persistent_keepalive,
        )
        for peer in config.peers
    }


def clamped(private: bytes | None) -> str:
    if private is None:
        return "(none)"
    return encode_key(bytes([private[0] & 248, *private[1:31], (private[31] & 127) | 64]))


def differences(theirs: Theirs, config: InterfaceConfig) -> list[str]:
    """Which parts of what a file says we see otherwise."""
    private, _, port, fwmark = (theirs.folder / "dump").read_text().splitlines()[0].split("\t")
    mtu = (theirs.folder / "mtu").read_text().strip()
    addresses = re.findall(r" inet6? (\S+)", (theirs.folder / "addresses").read_text())
    servers = [word for word in config.dns if values.is_server(word)]
    table = theirs.table()
    pairs: dict[str, tuple[object, object]] = {
        "PrivateKey": (private, clamped(config.private_key)),
        "ListenPort": (port if config.listen_port else "", str(config.listen_port or "")),
        "FwMark": (0 if fwmark == "off" else int(fwmark, 16), config.fwmark),
        "peers": (of_peers(theirs), our_peers(config)),
        "Address": (set(map(ip_interface, addresses)), set(config.addresses)),
        "MTU": (mtu if theirs.parsed("MTU") else "", str(config.mtu or "")),
        "DNS": (theirs.parsed("DNS"), servers),
        "search domains": (theirs.parsed("SEARCH"), [word for word in config.dns if word not in servers]),
        "routes": (table, {str(config.table)} if isinstance(config.table, int) and table else set()),
        "Table": ("off" in theirs.parsed("TABLE"), config.table == "off"),
        "PreUp": (theirs.parsed("PRE_UP"), list(config.pre_up)),
        "PostUp": (theirs.parsed("POST_UP"), list(config.post_up)),
        "PreDown": (theirs.parsed("PRE_DOWN"), list(config.pre_down)),
        "PostDown": (theirs.parsed("POST_DOWN"), list(config.post_down)),
        "SaveConfig": (theirs.parsed("SAVE") == ["1"], config.save_config),
    }
    return [name for name, (one, other) in pairs.items() if one != other]


def what_differs(folder: Path) -> str:
    """In a few words; nothing where wg-quick and we take a file for the same, or both refuse it."""
    theirs = Theirs(folder)
    [file] = folder.glob("*.conf")
    try:
        config = load(file)
    except ConfigError:
        return WE_REFUSE if theirs.stage == "taken" else ""
    if theirs.stage != "taken":
        return WE_TAKE
    return ", ".join(differences(theirs, config))


def test_no_file_is_taken_for_anything_else(theirs: Path) -> None:
    assert len(NAMES) >= 150
    assert f"`tests/config/corpus` has {len(NAMES)} files" in DOCUMENT.read_text()
    found = {name: says for name in NAMES if (says := what_differs(theirs / name)) and name not in KNOWN}
    assert found == {}


@pytest.mark.parametrize("row", DIFFERENCES)
def test_differences_that_stay(theirs: Path, row: str) -> None:
    """Each shows in its files, and is told in the document."""
    assert {name: what_differs(theirs / name) for name in DIFFERENCES[row]} == DIFFERENCES[row]
    assert f"\n| {row} |" in DOCUMENT.read_text()


def test_wg_quick_got_as_far_as_it_should(theirs: Path) -> None:
    """Or else nothing was compared: files end at each of its steps."""
    stages = [Theirs(theirs / name).stage for name in NAMES]
    assert set(stages) == {"parse", "setconf", "address", "mtu", "table", "taken"}
    assert stages.count("taken") > 150
