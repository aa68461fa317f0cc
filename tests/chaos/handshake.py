"""Measures the time until a new handshake is served, as a peer that only shakes hands."""

import base64
import contextlib
import os
import select
import time
from typing import Final

from lab.hub import Spoke
from lab.namespaces import Namespace
from stagewire.proto import cookie, tai64n
from stagewire.proto.handshake import Identity, Remote, SentInitiation, initiate, read_response_untrusted
from stagewire.proto.messages import BadMessage, Response, parse_handshake_untrusted

EVERY: Final = 0.025
"""s between initiations: a gateway answers a peer at most 50 times a second, and timestamps are this coarse."""


class Prober:
    """Initiates handshakes from a port of its own."""

    def __init__(
        self, namespace: Namespace, address: str, spoke: Spoke, gateway_key: str, gateway: tuple[str, int]
    ) -> None:
        self._identity = Identity.from_private_bytes(base64.b64decode(spoke.keys.private))
        self._remote = Remote.of(self._identity, base64.b64decode(gateway_key))
        self._mac1_key = cookie.mac1_key(self._remote.public_key)
        self._socket = namespace.udp_socket(address, spoke.port)
        self._gateway = gateway
        self.place = (address, spoke.port)

    def served(self, within: float) -> float | None:
        """Initiates until a response comes. Returns the s from the first initiation to it, or None without one."""
        self._forget()
        sent: dict[int, SentInitiation] = {}
        begun = due = time.monotonic()
        while (now := time.monotonic()) < begun + within:
            if now >= due:
                number = int.from_bytes(os.urandom(4), "little")
                sent[number] = self._initiate(number)
                due = now + EVERY
            if select.select([self._socket], [], [], max(0.0, due - time.monotonic()))[0] and self._answered(sent):
                return time.monotonic() - begun
        return None

    def _forget(self) -> None:
        while select.select([self._socket], [], [], 0)[0]:
            self._socket.recv(2048)

    def _initiate(self, number: int) -> SentInitiation:
        stamp = tai64n.encode(time.time_ns())
        message, sent = initiate(self._identity, self._remote, number, os.urandom(32), stamp)
        with contextlib.suppress(OSError):  # the kernel reports ICMP for an earlier one
            self._socket.sendto(message + cookie.mac1(self._mac1_key, message) + bytes(16), self._gateway)
        return sent

    def _answered(self, sent: dict[int, SentInitiation]) -> bool:
        try:
            message = parse_handshake_untrusted(self._socket.recv(2048))
            if not isinstance(message, Response) or message.receiver not in sent:
                return False
            read_response_untrusted(self._identity, self._remote, sent[message.receiver], message, stamped=False)
        except (BadMessage, OSError):
            return False
        return True
