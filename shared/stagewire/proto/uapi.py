"""The configuration socket's language, by which `wg` reads and changes an interface: bytes in, operations out, and back.

Source: wireguard.com/xplatform, "Configuration Protocol", and where it is silent what wireguard-go does. An operation is
lines of `key=value` up to an empty line; the first is `get=1` or `set=1`.

    get=1      nothing else                     -> the interface, then `errno=0`
    set=1      device lines, then peer sections -> `errno=0`, or one number that isn't 0
      device   private_key listen_port fwmark replace_peers
      peer     public_key opens the section; update_only remove preshared_key endpoint persistent_keepalive_interval
               replace_allowed_ips allowed_ip protocol_version

Where we are stricter than wireguard-go, and why:

- An operation is whole or it is nothing. Without its empty line it is not applied (wireguard-go takes the end of the
  connection for one, so a client that dies half-way has half its change applied); wg(8) always sends the line.
- A set is read to its end before any of it is applied, so a mistake in its last line leaves nothing half done.

The sign of a number is a trap: wg(8) wants it negative in answer to a set, and takes no sign in answer to a get.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

from stagewire.proto import uapi_text as text
from stagewire.proto.endpoint import Endpoint

# Linux's numbers, which wg(8) turns into words.
EIO: Final = 5
"""Input/output error: we can't say what is wrong in any better way."""
E2BIG: Final = 7
"""Argument list too long: more than an operation may hold."""
EINVAL: Final = 22
"""Invalid argument: an unknown key, a key in the wrong section, or a bad value."""
EPROTO: Final = 71
"""Protocol error: not a line of this language, or an operation without its end."""
EADDRINUSE: Final = 98
"""Address already in use: somebody else has the listen port."""

MAX_LINE: Final = 4096
"""Bytes of a line without its end. The longest good ones have some 80."""
MAX_OPERATION: Final = 64 * 2**20
"""Bytes of an operation, with its empty line."""
MAX_LINES: Final = 4_000_000
"""Lines of an operation, with its empty line."""
MAX_ITEMS: Final = 2**18
"""Peer sections and prefixes of an operation together. What is kept of one takes some 600 bytes, 150 MB in all."""

_LONG_LINE = f"a line of more than {MAX_LINE} bytes"
_CHUNK = 2**16
_SECOND_NS = 10**9


class BadOperation(Exception):  # noqa: N818 - it is the client's error, not ours
    """A client's operation that can't be done; nothing of it is applied.

    `code` is an errno, positive. `line` is where, 1 being the operation's first, 0 for no line. `reason` is one line for
    the log, and holds no key but public ones. `of` is the operation, empty when it was neither get nor set. After a
    `fatal` one the connection is to be closed: its reader finds no further operation.
    """

    def __init__(
        self, code: int, line: int, reason: str, *, of: Literal["get", "set", ""] = "", fatal: bool = False
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.line = line
        self.reason = reason
        self.of = of
        self.fatal = fatal

    def reply(self) -> bytes:
        """What to answer. Nothing when it was neither get nor set: wg(8) takes that for EPROTO, in either sign."""
        match self.of:
            case "get":
                return get_error(self.code)
            case "set":
                return set_reply(self.code)
        return b""


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """One `allowed_ip`: the prefix is given to the peer, or taken from it if it is the peer's."""

    prefix: IPv4Network | IPv6Network
    add: bool


@dataclass(frozen=True, slots=True)
class PeerChange:
    """One peer section; the same peer may have several, to be applied in order. None: not mentioned.

    `line` is where the section begins, from 1. With `remove`, the rest is empty: the lines were read and have no effect.
    With `update_only`, a peer that isn't there is not made. `preshared_key` is NO_KEY (zeros) to have none any more.
    `persistent_keepalive` is in seconds, 0 for none. `replace_allowed_ips` comes before `allowed_ips`, which are in order.
    """

    public_key: bytes
    line: int
    remove: bool = False
    update_only: bool = False
    preshared_key: bytes | None = field(default=None, repr=False)
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: tuple[PrefixChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A `set`. None: not mentioned. To be applied in the order of the fields, wholly or not at all.

    `private_key` is clamped, or NO_KEY (zeros) to have none any more. `listen_port` 0 is any free one, `fwmark` 0 none.
    """

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    peers: tuple[PeerChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Get:
    """A `get`."""


Operation = Get | Change


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer as `get` shows it. Times are ns since 1970, 0 for never; traffic is in bytes, the interval in s, 0 is off."""

    public_key: bytes
    preshared_key: bytes = field(default=text.NO_KEY, repr=False)
    endpoint: Endpoint | None = None
    last_handshake_unix_ns: int = 0
    tx_bytes: int = 0
    rx_bytes: int = 0
    persistent_keepalive: int = 0
    allowed_ips: Iterable[IPv4Network | IPv6Network] = ()


@dataclass(frozen=True, slots=True)
class InterfaceState:
    """The interface as `get` shows it. What is None or 0 is not shown; wg(8) makes the public key of the private one."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int = 0
    fwmark: int = 0
    peers: Iterable[PeerState] = ()


def set_reply(code: int) -> bytes:
    """The answer to a set: 0, or a positive errno, which is sent negative."""
    return b"errno=%d\n\n" % -code


def get_error(code: int) -> bytes:
    """The answer to a get that fails with this positive errno, which is sent as it is."""
    return b"errno=%d\n\n" % code


def get_reply(state: InterfaceState) -> Iterator[bytes]:
    """The answer to a get, in pieces of some 64 KiB. The state must not change until the last is made."""
    lines: list[str] = []
    size = 0
    for line in _interface_lines(state):
        lines.append(line)
        size += len(line)
        if size >= _CHUNK:
            yield "".join(lines).encode()
            lines.clear()
            size = 0
    yield "".join(lines).encode() + get_error(0)


def _interface_lines(state: InterfaceState) -> Iterator[str]:
    if state.private_key is not None and state.private_key != text.NO_KEY:
        yield f"private_key={state.private_key.hex()}\n"
    if state.listen_port:
        yield f"listen_port={state.listen_port}\n"
    if state.fwmark:
        yield f"fwmark={state.fwmark}\n"
    for peer in state.peers:
        yield from _peer_lines(peer)


def _peer_lines(peer: PeerState) -> Iterator[str]:
    seconds, nanoseconds = divmod(peer.last_handshake_unix_ns, _SECOND_NS)
    yield f"public_key={peer.public_key.hex()}\npreshared_key={peer.preshared_key.hex()}\nprotocol_version=1\n"
    if peer.endpoint is not None:
        yield f"endpoint={peer.endpoint}\n"
    yield f"last_handshake_time_sec={seconds}\nlast_handshake_time_nsec={nanoseconds}\n"
    yield f"tx_bytes={peer.tx_bytes}\nrx_bytes={peer.rx_bytes}\n"
    yield f"persistent_keepalive_interval={peer.persistent_keepalive}\n"
    for prefix in peer.allowed_ips:
        yield f"allowed_ip={prefix}\n"


class _Set:
    """A set that is being read."""

    __slots__ = ("change", "index_of", "items", "peer", "peers", "prefixes")

    def __init__(self, index_of: text.IndexOf) -> None:
        self.index_of = index_of
        self.change = Change()
        self.peers: list[PeerChange] = []
        self.peer: PeerChange | None = None
        self.prefixes: list[PrefixChange] = []
        self.items = 0

    def take(self, key: bytes, value: bytes, number: int) -> bool:
        """Reads one line. False if it is no key of its section; raises ValueError for a bad value."""
        if key == b"allowed_ip" and self.peer is not None:
            self.prefixes.append(PrefixChange(*text.allowed_ip(value)))
            self.items += 1
        elif key == b"public_key":
            opened = PeerChange(text.key(value), number)
            self._close_peer()
            self.peer = opened
            self.items += 1
        elif self.peer is None:
            return self._take_device(key, value)
        else:
            return self._take_peer(self.peer, key, value)
        return True

    def _take_device(self, key: bytes, value: bytes) -> bool:
        match key:
            case b"private_key":
                self.change = replace(self.change, private_key=text.private_key(value))
            case b"listen_port":
                self.change = replace(self.change, listen_port=text.whole(value, text.MAX_U16))
            case b"fwmark":
                self.change = replace(self.change, fwmark=text.fwmark(value))
            case b"replace_peers":
                self.change = replace(self.change, replace_peers=text.true(value))
            case _:
                return False
        return True

    def _take_peer(self, peer: PeerChange, key: bytes, value: bytes) -> bool:
        match key:
            case b"preshared_key":
                self.peer = replace(peer, preshared_key=text.key(value))
            case b"endpoint":
                self.peer = replace(peer, endpoint=text.endpoint(value, self.index_of))
            case b"persistent_keepalive_interval":
                self.peer = replace(peer, persistent_keepalive=text.whole(value, text.MAX_U16))
            case b"replace_allowed_ips":
                self.peer = replace(peer, replace_allowed_ips=text.true(value))
                # Lines have their effect in order, and this one's is on all before it.
                self.prefixes.clear()
            case b"update_only":
                self.peer = replace(peer, update_only=text.true(value))
            case b"remove":
                self.peer = replace(peer, remove=text.true(value))
            case b"protocol_version":
                text.protocol_version(value)
            case _:
                return False
        return True

    def _close_peer(self) -> None:
        if self.peer is not None and self.peer.remove:
            self.peers.append(PeerChange(self.peer.public_key, self.peer.line, remove=True))
        elif self.peer is not None:
            self.peers.append(replace(self.peer, allowed_ips=tuple(self.prefixes)))
        self.prefixes.clear()

    def finished(self) -> Change:
        self._close_peer()
        return replace(self.change, peers=tuple(self.peers))


class OperationReader:
    """Finds the operations in what one client sends, however it is cut. One for each connection.

    Of a set it keeps what its lines say and not their text. 10,000 peers with 130,560 prefixes (5.8 MB) take 2 s of one
    core and 75 MB, so a caller with other things to do feeds it a piece at a time: 64 KiB take 22 ms.
    """

    __slots__ = ("_bad", "_closed", "_index_of", "_lines", "_of", "_partial", "_set", "_size")

    def __init__(self, index_of: text.IndexOf = lambda _name: 0) -> None:
        """`index_of` knows the interfaces by name, for zones of link-local endpoints; without it they go by number."""
        self._index_of = index_of
        self._partial = b""
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._of: Literal["get", "set", ""] = ""
        self._set = _Set(self._index_of)
        self._bad: BadOperation | None = None
        self._lines = 0
        self._size = 0

    def feed_untrusted(self, data: bytes) -> list[Operation | BadOperation]:
        """The operations that end in `data`, in order. Never raises; finds nothing more after a fatal BadOperation.

        A bad operation is told once, with its first mistake, when its empty line has come. Too much of anything, and
        what begins neither with `get=1` nor with `set=1`, is told at once, and is fatal.
        """
        found: list[Operation | BadOperation] = []
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        for line in lines:
            if self._closed:
                break
            if (result := self._take(line)) is not None:
                found.append(result)
        if len(self._partial) > MAX_LINE and not self._closed:
            self._lines += 1
            found.append(self._too_much(_LONG_LINE))
        if self._closed:
            self._partial = b""
        return found

    def end_untrusted(self) -> BadOperation | None:
        """The client has sent its last byte. The operation that it didn't finish, or None; nothing of it is applied."""
        if self._closed or not (self._lines or self._partial):
            return None
        reason = "the connection ended before the operation's empty line"
        return self._close(self._bad or BadOperation(EPROTO, 0, reason, of=self._of))

    def _take(self, line: bytes) -> Operation | BadOperation | None:
        self._lines += 1
        self._size += len(line) + 1
        if len(line) > MAX_LINE:
            return self._too_much(_LONG_LINE)
        if self._size > MAX_OPERATION or self._lines > MAX_LINES:
            return self._too_much(f"more than {MAX_OPERATION} bytes or {MAX_LINES} lines")
        if self._lines == 1:
            return self._take_first(line)
        if not line:
            return self._finish()
        if self._bad is None:
            self._bad = self._take_further(line)
            if self._set.items > MAX_ITEMS:
                return self._too_much(f"more than {MAX_ITEMS} peers and prefixes")
        return None

    def _take_first(self, line: bytes) -> BadOperation | None:
        match line:
            case b"set=1":
                self._of = "set"
            case b"get=1":
                self._of = "get"
            case _:
                # wireguard-go hangs up here, without a word.
                return self._close(self._mistake(EPROTO, "neither get=1 nor set=1"))
        return None

    def _take_further(self, line: bytes) -> BadOperation | None:
        if self._of == "get":
            return self._mistake(EINVAL, "a get has no line but its first")
        key, equals, value = line.partition(b"=")
        if not equals:
            return self._mistake(EPROTO, "not a line of key=value")
        try:
            known = self._set.take(key, value, self._lines)
        except ValueError as error:
            return self._mistake(EINVAL, f"{key.decode()} {error}")
        if not known:
            section = "before the first public_key" if self._set.peer is None else "of a peer"
            return self._mistake(EINVAL, f"no key {section}: {text.shown_name(key)}")
        return None

    def _finish(self) -> Operation | BadOperation:
        done = self._bad or (Get() if self._of == "get" else self._set.finished())
        self._begin()
        return done

    def _mistake(self, code: int, reason: str) -> BadOperation:
        self._set = _Set(self._index_of)
        return BadOperation(code, self._lines, reason, of=self._of)

    def _too_much(self, what: str) -> BadOperation:
        return self._close(self._bad or self._mistake(E2BIG, what))

    def _close(self, bad: BadOperation) -> BadOperation:
        bad.fatal = True
        self._closed = True
        self._set = _Set(self._index_of)
        return bad
