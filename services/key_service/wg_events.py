"""Tells of changes through the `wg` socket as events and in the audit: who made them, and what they concern.

A program may make a thousand changes a second. Those of one process become one event and one line a second, of bounded size.
"""

from collections.abc import Callable, Iterator
from typing import Final

from stagewire.audit import Asker, Audit
from stagewire.config import uapi
from stagewire.config.keys import NO_KEY
from stagewire.config.uapi import PeerChange
from stagewire.control.event import MAX_CHANGES, Event, abridged
from stagewire.linux.peer_credentials import Credentials
from stagewire.logs import Log

MOST_LINES: Final = 1000
"""Differences in a line of the audit."""
MOST_PROCESSES: Final = 16
"""Processes whose changes wait for the next event; the oldest go first."""


class WgEvents:
    """Collects changes until `tell`. `label` names a peer in a line for people."""

    def __init__(
        self, label: Callable[[bytes], str], happened: Callable[[Event], None], audit: Audit, log: Log
    ) -> None:
        self._label, self._happened, self._audit, self._log = label, happened, audit, log
        self._differences: dict[Credentials, tuple[list[str], int]] = {}
        """The first differences of each process, and how many more there are."""
        self._waiting: dict[Credentials, tuple[list[str], int]] = {}
        """The first lines, and how many there are in all."""

    def note(self, asker: Credentials, change: uapi.Change, differences: list[str]) -> None:
        """Takes a change that is in force, with a line for each difference."""
        self._note_differences(asker, differences)
        lines, count = self._waiting.pop(asker, ([], 0))
        for line in self._lines(change):
            count += 1
            if len(lines) < MAX_CHANGES and line not in lines:
                lines.append(line)
        if count:
            self._waiting[asker] = lines, count
        while len(self._waiting) > MOST_PROCESSES:
            del self._waiting[next(iter(self._waiting))]

    def _note_differences(self, asker: Credentials, differences: list[str]) -> None:
        if not differences:
            return
        if asker not in self._differences and len(self._differences) == MOST_PROCESSES:
            self._tell_audit()
        known, more = self._differences.get(asker, ([], 0))
        room = MOST_LINES - len(known)
        self._differences[asker] = known + differences[:room], more + len(differences[room:])

    def _tell_audit(self) -> None:
        for asker, (lines, more) in self._differences.items():
            try:
                self._audit.write(
                    Asker(asker.uid, asker.pid), "wg set", [*lines, f"and {more} more"] if more else lines
                )
            except OSError as error:
                self._log.warning("the audit has no line about changes by `wg`", reason=str(error))
        self._differences.clear()

    def tell(self, _now: float) -> None:
        """Makes an event of each process's changes, and a line of the audit."""
        self._tell_audit()
        for asker, (lines, count) in self._waiting.items():
            more = (f"and {count - len(lines)} more",) if count > len(lines) else ()
            what = f"wg set, by uid {asker.uid} (pid {asker.pid})"
            self._happened(Event("reloaded", what=what, changes=(*abridged(lines), *more)))
        self._waiting.clear()

    def _lines(self, change: uapi.Change) -> Iterator[str]:
        if change.private_key is not None:
            yield "no private key" if change.private_key == NO_KEY else "another private key"
        if change.listen_port is not None:
            yield f"ListenPort {change.listen_port or 'any'}"
        if change.fwmark is not None:
            yield f"FwMark {change.fwmark or 'off'}"
        if change.replace_peers:
            yield "these peers and no others"
        for peer in change.peers:
            yield f"peer {self._label(peer.public_key)}  {_of_peer(peer)}".rstrip()


def _of_peer(peer: PeerChange) -> str:
    """Says what changes of a peer; its pre-shared key is only mentioned."""
    if peer.remove:
        return "removed"
    said = []
    if peer.preshared_key is not None:
        said.append("no PresharedKey" if peer.preshared_key == NO_KEY else "PresharedKey")
    if peer.endpoint is not None:
        said.append(f"Endpoint {peer.endpoint}")
    if peer.persistent_keepalive is not None:
        said.append(f"PersistentKeepalive {peer.persistent_keepalive or 'off'}")
    if peer.replace_allowed_ips or peer.allowed_ips:
        prefixes = ", ".join(f"{'' if each.add else '-'}{each.prefix}" for each in peer.allowed_ips[:MAX_CHANGES])
        said.append(f"AllowedIPs {prefixes or 'none'}")
    return "  ".join(said)
