"""Tells which process sent a message, by the kernel's word that libzmq attaches to each frame.

libzmq asks the kernel (SO_PEERCRED) as a connection begins, and gives it as `Peer-Address`: `localhost:<uid>:<gid>:<pid>`.
"""

import os
from dataclasses import dataclass
from typing import Final

import zmq

from stagewire.limits import MAX_WORKERS
from stagewire.linux import uids
from stagewire.linux.peer_credentials import Credentials
from stagewire.linux.uids import ROOT, Place
from stagewire.stages import STAGES, WORKER

_ADDRESS: Final = "Peer-Address"
_MOST: Final = 1024
"""Speakers that are remembered; with one more, all are asked for anew."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """Describes the process at the other end of a connection, which may speak for `places`."""

    credentials: Credentials
    places: frozenset[Place]
    is_command: bool
    """Whether it may be the command, which runs as root."""

    def may_be(self, stage: str, number: int) -> bool:
        """Tells whether it may speak for a stage, and for a worker's number."""
        return Place(stage, number) in self.places


class Speakers:
    """Remembers the speakers on one pipe."""

    def __init__(self) -> None:
        self._places: dict[int, set[Place]] = {}
        for stage in STAGES:
            for number in range(MAX_WORKERS if stage == WORKER else 1):
                self._places.setdefault(uids.uid_of(stage, number), set()).add(Place(stage, number))
        self._commands = {ROOT, os.geteuid()} if uids.uid_of(STAGES[0]) == os.geteuid() else {ROOT}
        self._known: dict[str, Speaker] = {}

    def of(self, frame: "zmq.Frame") -> Speaker:
        """Returns the speaker of a frame. Hot."""
        address = str(frame.get(_ADDRESS))
        return self._known.get(address) or self._meet(address)

    def _meet(self, address: str) -> Speaker:
        _, uid, gid, pid = address.rsplit(":", 3)
        theirs = Credentials(int(pid), int(uid), int(gid))
        if len(self._known) >= _MOST:
            self._known.clear()
        places = frozenset(self._places.get(theirs.uid, ()))
        speaker = self._known[address] = Speaker(theirs, places, theirs.uid in self._commands)
        return speaker
