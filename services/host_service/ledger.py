"""Keeps a list of each change to the host for one interface, written before the change.

The file lies in host-service's own folder and has one JSON object on each line. The next host-service and
`host-service --undo` read the file, and skip a line that is cut or of another version.

The list has no routes to the interface: there may be 130,000, and they go with the interface.
"""

import errno
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, Final, TypeVar, get_origin, get_type_hints

from host_service.rules import Rule
from stagewire import files

NAME: Final = "ledger"
MAX_SIZE: Final = 16 << 20
"""Bytes; many times what OVERGROWN lines have."""
SRC_VALID_MARK: Final = "/proc/sys/net/ipv4/conf/all/src_valid_mark"
SYSCTLS: Final = frozenset({SRC_VALID_MARK})
"""All files of /proc/sys that we write."""
OVERGROWN: Final = 4096
"""Lines. A longer file is written anew, if most of its operations were undone."""


@dataclass(frozen=True, slots=True)
class LinkMade:
    """Records the TUN device `name`, made for the uid `owner`."""

    name: str
    owner: int


@dataclass(frozen=True, slots=True)
class LinkMoved:
    """Records that the interface went to another network namespace. host-service makes no other meanwhile."""

    name: str


@dataclass(frozen=True, slots=True)
class NftTableMade:
    """Records the nftables table `name` of family inet. `handle` is the kernel's, 0 while nft makes the table."""

    name: str
    handle: int = 0


@dataclass(frozen=True, slots=True)
class SysctlSet:
    """Records that `path` had the value `before`, and got `value`."""

    path: str
    before: str
    value: str


@dataclass(frozen=True, slots=True)
class ForwardingSet:
    """Records that the host forwards packets of a version of IP for us, and did not before.

    `redirects` was the value of IPv4's accept_redirects, which the kernel changes meanwhile; empty if it isn't known.
    `nat` names the tables that changed source addresses before, separated by commas.
    """

    version: int
    redirects: str
    nat: str


@dataclass(frozen=True, slots=True)
class RouterAdvertisementsKept:
    """Records that an interface takes router advertisements also while the host forwards; before, only without."""

    link: str


@dataclass(frozen=True, slots=True)
class PassOpened:
    """Records that a chain of another nftables table has rules of ours, which let packets of peers pass."""

    family: str
    table: str
    chain: str


@dataclass(frozen=True, slots=True)
class RuleAdded:
    """Records a policy rule."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class GuardAdded:
    """Records a guard route."""

    prefix: str
    table: int
    metric: int


@dataclass(frozen=True, slots=True)
class Numbered:
    """Records `number`, the interface's mark and table.

    `first` (of IPv4, of IPv6) is the priority at which its rules begin, 0 for none.
    """

    number: int
    first: tuple[int, int]


@dataclass(frozen=True, slots=True)
class MtuSet:
    """Records an MTU that we set; the operator may have set another since."""

    mtu: int


@dataclass(frozen=True, slots=True)
class AddressAdded:
    """Records an address that we added, as address/length. Addresses without a record are the operator's."""

    address: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Records that all stood that was wanted at first. A prefix taken later is no reason to give up."""


Operation = (
    LinkMade
    | LinkMoved
    | NftTableMade
    | SysctlSet
    | ForwardingSet
    | RouterAdvertisementsKept
    | PassOpened
    | RuleAdded
    | GuardAdded
    | Numbered
    | MtuSet
    | AddressAdded
    | Settled
)
_T = TypeVar("_T")
_LEAST: Final = {"suppress": -1}
_MOST: Final = {"handle": 2**64 - 1, "action": 255, "protocol": 255, "suppress": 0x7FFFFFFF}
"""Bounds of numbers by the kernel's fields; other numbers have 32 bits."""
_VERSIONS: Final = frozenset({4, 6})
_KINDS: Final = {kind.__name__: kind for kind in Operation.__args__}


class Unwritten(Exception):  # noqa: N818 - told to the operator
    """Says that the ledger takes no line, and names the file."""


class Ledger:
    """Holds the operations in force, in order."""

    def __init__(self, path: Path) -> None:
        """Reads what an earlier life wrote. A full disk is reported at the first line without room."""
        self._path = path
        self._operations: dict[Operation, None] = dict.fromkeys(read(path))
        self._lines = 0
        self._file = -1
        self._is_cut = True
        """Whether a full disk or a kill may have cut the last line."""
        with suppress(OSError):  # the old file is longer, and as good
            self._rewrite()

    def _rewrite(self) -> None:
        """Writes the file anew, without undone operations."""
        fresh = self._path.with_suffix(".new")
        try:
            files.clear(fresh)
            fresh.write_text("".join(_line("do", each) for each in self._operations), encoding="utf-8")
            fresh.chmod(0o600)
            files.put(fresh, self._path)
        except OSError:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise
        self.close()
        self._lines, self._is_cut = len(self._operations), False

    def __contains__(self, operation: Operation) -> bool:
        return operation in self._operations

    def operations(self) -> list[Operation]:
        return list(self._operations)

    def do(self, operation: Operation) -> None:
        """Notes an operation before it is done. Raises Unwritten, and then keeps no note."""
        if operation not in self._operations:
            self._write("do", operation)
            self._operations[operation] = None
            self._shorten()

    def undo(self, operation: Operation) -> None:
        """Drops the note of an operation that was undone or failed. Raises Unwritten, and then keeps the note."""
        if operation in self._operations:
            self._write("undo", operation)
            del self._operations[operation]
            self._shorten()

    def _write(self, what: str, operation: Operation) -> None:
        line = ("\n" * self._is_cut + _line(what, operation)).encode()
        try:
            if self._file < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                self._file = os.open(self._path, flags, 0o600)
            self._is_cut = os.write(self._file, line) < len(line)
            reason = os.strerror(errno.ENOSPC)
        except OSError as error:
            self._is_cut, reason = True, error.strerror or str(error)
        if self._is_cut:
            raise Unwritten(f"{self._path} cannot be written: {reason}")
        self._lines += 1

    def _shorten(self) -> None:
        if self._lines > OVERGROWN and self._lines > 4 * len(self._operations):
            self._lines = 0  # without room for a new file, the next try comes as many lines later
            with suppress(OSError):
                self._rewrite()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read(path: Path) -> list[Operation]:
    """Returns the operations of a ledger; none without a file of ours."""
    try:
        lines = files.read(path, MAX_SIZE).decode(errors="replace").splitlines()
    except (FileNotFoundError, files.Suspicious):
        return []
    operations: dict[Operation, None] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            operation = _operation(entry)
            if entry["what"] == "do":
                operations[operation] = None
            else:
                operations.pop(operation, None)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return list(operations)


def _line(what: str, operation: Operation) -> str:
    return json.dumps({"what": what, "kind": type(operation).__name__, **asdict(operation)}) + "\n"


def _operation(entry: dict[str, object]) -> Operation:
    """Raises ValueError, TypeError or KeyError."""
    values = {name: value for name, value in entry.items() if name not in {"what", "kind"}}
    kind = _KINDS[str(entry["kind"])]
    if kind is RuleAdded:
        values["rule"] = _made(Rule, values["rule"])
    if kind is Numbered and isinstance(first := values["first"], list):
        values["first"] = tuple(first)
        if len(first) != 2:
            raise TypeError
        for each in first:
            _check("first", each, int)
    made: Operation = _made(kind, values)
    if isinstance(made, GuardAdded):
        ip_network(made.prefix)
    if isinstance(made, AddressAdded):
        ip_interface(made.address)
    if isinstance(made, ForwardingSet) and made.version not in _VERSIONS:
        raise ValueError
    if isinstance(made, RuleAdded) and made.rule.version not in _VERSIONS:
        raise ValueError
    if isinstance(made, RouterAdvertisementsKept) and ("/" in made.link or made.link in {"", ".", ".."}):
        raise ValueError
    if isinstance(made, SysctlSet) and made.path not in SYSCTLS:
        raise ValueError
    return made


def _made(kind: type[_T], values: Any) -> _T:
    """Makes an instance, each field of its own type and within the kernel's bounds. Raises TypeError and ValueError."""
    made = kind(**values)
    for name, expected in get_type_hints(kind).items():
        _check(name, getattr(made, name), get_origin(expected) or expected)
    return made


def _check(name: str, value: object, expected: type) -> None:
    """Checks a field. The file is a stage's own: a number that no message to the kernel can hold would end each reader."""
    if type(value) is not expected:
        raise TypeError
    if type(value) is int and not _LEAST.get(name, 0) <= value <= _MOST.get(name, 0xFFFFFFFF):
        raise ValueError
