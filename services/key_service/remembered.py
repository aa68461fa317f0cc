"""Remembers which peers have sessions, for a key-service that starts as workers die: it initiates in their stead.

A worker's hello lists its sessions. What dies with the worker and key-service at once, no hello lists. Without this file a
peer that only sends would wait for its own timers, 15 s. The file lies in the run folder, and counts while it is fresh.

    record: public key 32 | endpoint 44 | digest of the configured endpoint 8 | check 8
"""

import os
import time
from contextlib import suppress
from hashlib import blake2s
from pathlib import Path
from typing import Final

from key_service.registry import Registry
from stagewire import files
from stagewire.config import HostPort
from stagewire.proto import constants as c
from stagewire.proto import endpoint as places
from stagewire.proto.handshaker import Handshaker

NAME: Final = "remembered"
INTERVAL: Final = 1.0
"""s between two looks at all peers."""
MAX_SIZE: Final = 64 * 2**20
_DIGEST: Final = 8
_PLACE_ENDS: Final = c.KEY_LENGTH + places.LENGTH
_BODY: Final = _PLACE_ENDS + _DIGEST
_RECORD: Final = _BODY + _DIGEST


class Remembered:
    """Reads the file once, and writes it whenever it would say something else."""

    def __init__(self, folder: Path, registry: Registry, handshaker: Handshaker) -> None:
        self._path = folder / NAME
        self._registry = registry
        self._handshaker = handshaker
        self._written = b""
        self._records: dict[bytes, tuple[bytes, HostPort | None, bytes]] = {}
        """The record of each peer with a session, after the two endpoints that it was made of."""

    def recall(self) -> list[bytes]:
        """Tells the Handshaker of the peers that had sessions. Their workers' hellos then take back what lives on.

        Returns the public keys of all peers that had sessions, removed peers' too.
        """
        data, recalled = b"", []
        with suppress(OSError):
            if abs(time.time() - self._path.lstat().st_mtime) < c.REJECT_AFTER_TIME:
                data = files.read(self._path, MAX_SIZE)
        for offset in range(0, len(data) - _RECORD + 1, _RECORD):
            body, check = data[offset : offset + _BODY], data[offset + _BODY : offset + _RECORD]
            public_key, place = body[: c.KEY_LENGTH], body[c.KEY_LENGTH : _PLACE_ENDS]
            if check != _digest(body):
                continue
            recalled.append(public_key)
            if public_key in self._registry.peers:
                # What the operator set since the last look precedes.
                moved = body[_PLACE_ENDS:] == self._configured(public_key)
                self._handshaker.session_missing(public_key, place if moved else None)
        return recalled

    def look(self) -> None:
        """Writes which peers have sessions, and where they are."""
        known, self._records = self._records, {}
        for key, peer in self._handshaker.peers.items():
            if peer.endpoint is not None and (peer.session_lost or peer.has_session(peer.worker)):
                there, configured = peer.endpoint, self._endpoint(key)
                record = known.get(key)
                if record is None or record[0] != there or record[1] is not configured:
                    body = key + there + self._configured(key)
                    record = there, configured, body + _digest(body)
                self._records[key] = record
        data = b"".join(record for _, _, record in self._records.values())
        with suppress(OSError):  # a full disk: the peers' own timers must do
            if data != self._written:
                files.write(self._path, data)
                self._written = data
            elif data:
                os.utime(self._path)

    def _configured(self, public_key: bytes) -> bytes:
        return _digest(repr(self._endpoint(public_key)).encode())

    def _endpoint(self, public_key: bytes) -> HostPort | None:
        peer = self._registry.peers.get(public_key)
        return None if peer is None else peer.endpoint


def _digest(body: bytes) -> bytes:
    return blake2s(body, digest_size=_DIGEST).digest()
