"""Finds operations in the bytes that a client of the configuration socket sends."""

from dataclasses import replace
from typing import Final, Literal

from stagewire.config.uapi import values
from stagewire.config.uapi.operations import (
    E2BIG,
    EINVAL,
    EPROTO,
    BadOperation,
    Change,
    Get,
    Operation,
    PeerChange,
    PrefixChange,
)

MAX_LINE: Final = 4096
"""Bytes of a line without its end. Good lines have at most some 80."""
MAX_OPERATION: Final = 64 * 2**20
"""Bytes of an operation, with its empty line."""
MAX_LINES: Final = 4_000_000
"""Lines of an operation, with its empty line."""
MAX_ITEMS: Final = 2**18
"""Peer sections and prefixes of an operation together. Each takes some 600 bytes, all of them 150 MB."""

_LONG_LINE = f"a line of more than {MAX_LINE} bytes"


class _Set:
    """Collects a set while it is read."""

    __slots__ = ("change", "index_of", "items", "peer", "peers", "prefixes")

    def __init__(self, index_of: values.IndexOf) -> None:
        self.index_of = index_of
        self.change = Change()
        self.peers: list[PeerChange] = []
        self.peer: PeerChange | None = None
        self.prefixes: list[PrefixChange] = []
        self.items = 0

    def take(self, key: bytes, value: bytes, number: int) -> bool:
        """Reads one line. Returns False for a key that its section doesn't have; raises ValueError for a bad value."""
        if key == b"allowed_ip" and self.peer is not None:
            self.prefixes.append(PrefixChange(*values.allowed_ip(value)))
            self.items += 1
        elif key == b"public_key":
            opened = PeerChange(values.key(value), number)
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
                self.change = replace(self.change, private_key=values.private_key(value))
            case b"listen_port":
                self.change = replace(self.change, listen_port=values.whole(value, values.MAX_U16))
            case b"fwmark":
                self.change = replace(self.change, fwmark=values.fwmark(value))
            case b"replace_peers":
                self.change = replace(self.change, replace_peers=values.true(value))
            case _:
                return False
        return True

    def _take_peer(self, peer: PeerChange, key: bytes, value: bytes) -> bool:
        match key:
            case b"preshared_key":
                self.peer = replace(peer, preshared_key=values.key(value))
            case b"endpoint":
                self.peer = replace(peer, endpoint=values.endpoint(value, self.index_of))
            case b"persistent_keepalive_interval":
                self.peer = replace(peer, persistent_keepalive=values.whole(value, values.MAX_U16))
            case b"replace_allowed_ips":
                self.peer = replace(peer, replace_allowed_ips=values.true(value))
                # Lines take effect in order: this one empties all before it.
                self.prefixes.clear()
            case b"update_only":
                self.peer = replace(peer, update_only=values.true(value))
            case b"remove":
                self.peer = replace(peer, remove=values.true(value))
            case b"protocol_version":
                values.protocol_version(value)
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
    """Finds the operations in one client's bytes, however they are cut.

    Keeps the meaning of a set's lines, not their text. A large set takes seconds, so a busy caller feeds it in pieces
    of 64 KiB. hot
    """

    __slots__ = ("_bad", "_bounded", "_closed", "_index_of", "_lines", "_of", "_partial", "_set", "_size")

    def __init__(self, index_of: values.IndexOf = lambda _name: 0, *, bounded: bool = True) -> None:
        """Begins a connection.

        `index_of` finds interfaces by name, for zones of link-local endpoints; without it only by number. What is not
        `bounded` is our own: an operation that sums up many may be greater than each of them.
        """
        self._index_of = index_of
        self._bounded = bounded
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
        """Returns the operations that end in `data`, in order.

        Never raises; finds nothing more after a fatal BadOperation. Returns a bad operation once, with its first
        mistake, when its empty line has come. An operation that exceeds a limit, or begins neither with `get=1` nor
        with `set=1`, comes at once and is fatal.
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
        """Ends the connection. Returns the unfinished operation, of which nothing is applied, or None."""
        if self._closed or not (self._lines or self._partial):
            return None
        reason = "the connection ended before the operation's empty line"
        return self._close(self._bad or BadOperation(EPROTO, 0, reason, of=self._of))

    def _take(self, line: bytes) -> Operation | BadOperation | None:
        self._lines += 1
        self._size += len(line) + 1
        if len(line) > MAX_LINE:
            return self._too_much(_LONG_LINE)
        if self._bounded and (self._size > MAX_OPERATION or self._lines > MAX_LINES):
            return self._too_much(f"more than {MAX_OPERATION} bytes or {MAX_LINES} lines")
        if self._lines == 1:
            return self._take_first(line)
        if not line:
            return self._finish()
        if self._bad is None:
            self._bad = self._take_further(line)
            if self._bounded and self._set.items > MAX_ITEMS:
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
            return self._mistake(EINVAL, f"no key {section}: {values.shown_name(key)}")
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
