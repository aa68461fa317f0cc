"""Doors for text and files: configuration, the `wg` socket, reload, and what each stage keeps for its next life."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

from tests.fuzz.doors.door import Given, door

from host_service import ledger, rules
from host_service.ledger import Ledger
from host_service.rules import Rule
from key_service import clock, journal
from key_service.journal import Journal
from key_service.reload_door import ReloadDoor
from key_service.timestamps import TimestampStore, _pack
from key_service.waiting_trial import WaitingTrial
from stagewire.config import ConfigError, InterfaceConfig, accepted, merge, parse
from stagewire.config.accepted import Accepted
from stagewire.config.uapi import BadOperation, OperationReader
from stagewire.control import requests, usage
from stagewire.logs import Log
from stagewire.loop import boot_time
from stagewire.process.slots import Slot
from stagewire_cli.done import DoneList, Plan

CONFIGURATIONS = Path(__file__).parents[2] / "config" / "corpus"
PEER = f"public_key={'01' * 32}\n"
OPERATIONS = (
    b"get=1\n\n",
    f"set=1\nlisten_port=7\nfwmark=0x1\nreplace_peers=true\n{PEER}endpoint=192.0.2.1:1\nallowed_ip=10.0.0.0/8\n\n".encode(),
    f"set=1\nprivate_key={'02' * 32}\n{PEER}update_only=true\npreshared_key={'00' * 32}\nallowed_ip=-::/0\n\n".encode(),
    f"set=1\n{PEER}endpoint=[fe80::1%2]:5\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\nprotocol_version=1\n".encode(),
    f"set=1\n{PEER}remove=true\n\nrabbit\n".encode(),
)


@cache
def _folder() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="stagewire-fuzz-")


def _file(name: str, data: bytes) -> Path:
    path = Path(_folder().name, name)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def _read(text: str, *, strict: bool) -> InterfaceConfig | ConfigError:
    try:
        return parse(text, "wg0.conf", strict=strict)
    except ConfigError as error:
        return error


@door(
    seeds=lambda: [path.read_bytes() for path in sorted(CONFIGURATIONS.glob("*.conf"))], milliseconds=60, longest=4096
)
def configurations(data: bytes) -> None:
    """Reads a wg-quick file strictly and tolerantly: what is taken says the same once it is written and read again."""
    text = data.decode("utf-8", "surrogateescape")
    strictly, found = _read(text, strict=True), _read(text, strict=False)
    if isinstance(found, ConfigError):
        assert [str(mistake) for mistake in found.mistakes] == str(found).splitlines()
        assert isinstance(strictly, ConfigError), "strictly read, nothing more is taken"
        return
    assert all(str(warning).isprintable() for warning in found.warnings)
    assert isinstance(strictly, ConfigError) or (strictly == found and not found.warnings)
    assert merge(text, found) == text
    assert _read(merge("", found), strict=False) == replace(found, warnings=())


@door(
    OperationReader.feed_untrusted, OperationReader.end_untrusted, seeds=lambda: [bytes(3) + one for one in OPERATIONS]
)
def wg_socket(data: bytes) -> None:
    """Reads operations, the same however they come in pieces; each mistake is told in a printable line."""
    given = Given(data)
    cuts = sorted(given.take(3))
    stream = given.rest()
    whole = _operations([stream])
    assert _operations([stream[a:b] for a, b in pairwise([0, *cuts, max(len(stream), 255)])]) == whole
    for found in whole:
        if isinstance(found, tuple):
            assert found[0] in {22, 71, 7}
            assert found[2].isprintable()


def _operations(pieces: list[bytes]) -> list[Any]:
    reader = OperationReader()
    found: list[Any] = [each for one in pieces for each in reader.feed_untrusted(one)]
    found.append(reader.end_untrusted())
    return [(each.code, each.line, each.reason) if isinstance(each, BadOperation) else each for each in found]


def _journals() -> Iterator[bytes]:
    yield b"".join(journal._frames(iter(OPERATIONS[1:3])))
    yield b"".join(journal._frame(one, last=True) for one in OPERATIONS)
    yield b"".join(journal._frame(one, last=True) for one in OPERATIONS)[:-3]


@door(seeds=_journals)
def journals(data: bytes) -> None:
    """Reads a journal's whole records, and goes on behind the last."""
    path = _file("journal", data)
    found = journal.records(path)
    assert sum(map(len, found)) <= len(data)
    for record in found:
        OperationReader().feed_untrusted(record)
    kept = Journal(path)
    for _ in kept.append(iter([b"more"])):
        pass
    kept.close()
    assert journal.records(path) == [*found, b"more"]


def _stamps() -> Iterator[bytes]:
    one = _pack(b"A" * 32, b"\1" * 12, b"\2" * 12, b"")
    own = _pack(b"B" * 32, b"\3" * 12, b"\4" * 12, b"own")
    yield b"SWTAI64N" + one + bytes(64) + own + bytes(64)
    yield b"SWTAI64N" + one + one + own


@door(seeds=_stamps)
def stamp_files(data: bytes) -> None:
    """Reads a file of timestamps: a stamp that was stored is never forgotten, whatever else is in the file."""
    path = _file("timestamps", data)
    store = TimestampStore(path)
    known = dict(store._stamps)
    for key in (b"N" * 32, *known):
        store.store(key, "initiation", b"\x50" * 12)
    again = TimestampStore(path)
    for key in (b"N" * 32, *known):
        assert again.latest(key, "initiation") >= max(b"\x50" * 12, known.get(key, (b"",))[0])


def _ledgers() -> Iterator[bytes]:
    operations: list[ledger.Operation] = [
        ledger.LinkMade("wg0", 5), ledger.LinkMoved("wg0"), ledger.NftTableMade("t", 3),
        ledger.SysctlSet(ledger.SRC_VALID_MARK, "0", "1"),
        ledger.RuleAdded(Rule(4, 100, 1)), ledger.GuardAdded("10.0.0.0/8", 1, 2), ledger.Numbered(5, (1, 2)),
        ledger.MtuSet(1420), ledger.AddressAdded("10.0.0.1/8"), ledger.Settled(),
    ]  # fmt: skip
    lines = [ledger._line("do", each) for each in operations]
    yield "".join(lines).encode()
    yield "".join([*lines, *(ledger._line("undo", each) for each in operations[:5])]).encode()
    yield from (line.encode() for line in lines)
    yield b'{"what": "do", "kind": "Numbered", "number": 1e999, "first": [1, 2]}\n'
    yield b"[" * 2000


@door(seeds=_ledgers)
def ledgers(data: bytes) -> None:
    """Reads a ledger; a line that makes no sense is skipped, and the others are found again."""
    path = _file("ledger", data)
    found = ledger.read(path)
    for operation in found:
        if isinstance(operation, ledger.RuleAdded):
            rules._message(operation.rule)
        elif isinstance(operation, ledger.GuardAdded):
            struct.pack("=II", operation.table, operation.metric)
    kept = Ledger(path)
    kept.do(ledger.MtuSet(77))
    kept.close()
    assert ledger.read(path) == list(dict.fromkeys([*found, ledger.MtuSet(77)]))


def _clocks() -> Iterator[bytes]:
    for text in ("1800000000000000000 50.0", "1 nan", "1 inf", "-1 1", "x y", "1"):
        yield text.encode()


@door(seeds=_clocks)
def clocks(data: bytes) -> None:
    """Reads how the wall clock stood; an anchor is one that a jump can be told by."""
    path = _file(clock.NAME, f"{clock._boot()} ".encode() + data)
    anchor = clock.Clock(path.parent, Log()).anchor
    assert anchor is None or isinstance(anchor.jump(time.time_ns(), boot_time()), int)


def _usages() -> Iterator[bytes]:
    yield usage.pack({b"A" * 32: usage.Usage({"2030-12": 7}, {0: (5, 6)}), b"B" * 32: usage.Usage()})
    yield b'{"version": 1, "peers": {"x": 5}}'
    yield b"[" * 2000


@door(usage.unpack_untrusted, seeds=_usages)
def usages(data: bytes) -> None:
    """Reads what peers have used, and writes it back as it was."""
    try:
        found = usage.unpack_untrusted(data)
    except usage.BadUsage as bad:
        assert "\n" not in str(bad)  # noqa: PT017 - the other case is below
        return
    assert usage.unpack_untrusted(usage.pack(found)) == found


@door(seeds=lambda: [Accepted.first("[Interface]\n").packed(), b"0123456789abcdef\n", b"\n"])
def accepted_texts(data: bytes) -> None:
    """Reads the text in force, or none."""
    found = accepted.unpack(data)
    if found is not None:
        assert found.packed() == data


def _done_lists() -> Iterator[bytes]:
    path = Path(_folder().name, "list")
    path.mkdir(exist_ok=True)
    kept = DoneList(path)
    kept.begin(Plan(("a",), ("b",)))
    for step in ("pre_up", "dns", "post_up"):
        kept.note(step, "tun.wg0")
    kept.undone("dns")
    yield kept.copy()
    yield b'{"plan": {"pre_down": [], "post_down": [], "save_config": false}}\n{"did": [], "name": ""}\n' + b"[" * 2000


@door(seeds=_done_lists)
def done_lists(data: bytes) -> None:
    """Reads what `up` did; a line that makes no sense is skipped."""
    folder = Path(_folder().name, "read")
    (folder / "command").mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "command" / "done"
    path.write_bytes(data)
    path.chmod(0o600)
    DoneList(folder).read()


@door(
    requests.from_json_untrusted,
    seeds=lambda: [
        b'{"version": 1, "do": "backed_up", "output": "x", "by": "anna", "length": 0}\n',
        b'{"do": "apply", "dry_run": true, "length": 12}\n[Interface]\n',
        b'{"do": "operate", "operation": {"version": 1, "do": "RemovePeers", "peers": ["x"]}, "length": 12}\n[Interface]\n',
        b'{"do": "operate", "operation": {"version": 1, "do": "RenamePeer", "peer": "x"}, "length": 12}\n[Interface]\n',
        b'{"do": "adopt", "length": 18}\n[Interface]\nMTU=5\n',
        b'{"do": "confirm", "length": 0}\n',
        b'{"do": "unconfirmed", "length": 0}\n',
        b"{}\n",
        b"[" * 2000,
        b'{"do": ["apply"]}\n',
        b"5\n",
    ],
)
def reload_requests(data: bytes) -> None:
    """Answers every request in one line."""
    environment = SimpleNamespace(config=Path("wg0.conf"), run=Path(_folder().name))
    one = object.__new__(ReloadDoor)
    one._stage = cast("Any", SimpleNamespace(environment=environment))
    one._live = cast("Any", SimpleNamespace(registry=_Registry()))
    one._audit = cast("Any", SimpleNamespace(write=lambda *_: None))
    one._busy = cast("Any", nullcontext())
    one._waiting = WaitingTrial(environment.run)
    one._text = cast("Any", SimpleNamespace(kept=Accepted.first("[Interface]\n")))
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        one._serve(ours)
        answer = theirs.recv(1 << 20)
    assert answer.endswith(b"\n")
    assert "error" in json.loads(answer)


class _Registry:
    def snapshot(self) -> object:
        return parse("[Interface]\n", "wg0.conf")

    def with_file(self, file: object) -> object:
        return file


@door(seeds=lambda: [bytes(16), b"\xff" * 16, b"\0\0\0\0\0\0\xf8\x7f" * 2, b"\0\0\0\0\0\0\xf0\x7f" * 2], longest=32)
def slot_pages(data: bytes) -> None:
    """Reads a holder's heartbeat, whatever number it is."""
    run = Path(_folder().name)
    slot = Slot(run, "tun", 0)
    with slot.path.open("r+b") as page:
        page.write(data[:16])
    assert slot.last_beat(5.0) <= 5.0
    assert slot.may_be_silent(5.0) in {True, False}
    slot.take(5.0)
    slot.beat(6.0)
    assert slot.last_beat(6.0) == 6.0
    slot.close()
