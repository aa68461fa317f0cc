"""Runs Debian's wireguard-go, an independent implementation at the other end of the tunnel."""

import base64
import itertools
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lab.namespaces import Namespace, add_addresses, stop
from lab.wait import until

SOCKETS: Final = Path("/var/run/wireguard")
"""All network namespaces share it, so interfaces' names must differ across the whole machine."""


_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Holds a long-term key pair in the base64 of configuration files."""

    private: str = field(repr=False)
    public: str


def new_key_pair() -> KeyPair:
    key = X25519PrivateKey.generate()
    private, public = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    return KeyPair(base64.b64encode(private).decode(), base64.b64encode(public).decode())


def new_preshared_key() -> str:
    """Returns 32 random bytes in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class Peer:
    """Describes a [Peer] section."""

    public_key: str
    allowed_ips: Sequence[str]
    endpoint: str | None = None
    preshared_key: str | None = field(default=None, repr=False)
    persistent_keepalive: int | None = None
    response_timestamp: bool = False
    """Stagewire's own setting; other implementations read a comment."""
    name: str = ""

    def section(self) -> str:
        """Returns the section as `wg setconf` and Stagewire read it."""
        lines = [f"# Name = {self.name}"] if self.name else []
        lines += ["[Peer]", f"PublicKey = {self.public_key}", f"AllowedIPs = {', '.join(self.allowed_ips)}"]
        if self.endpoint:
            lines.append(f"Endpoint = {self.endpoint}")
        if self.preshared_key:
            lines.append(f"PresharedKey = {self.preshared_key}")
        if self.persistent_keepalive:
            lines.append(f"PersistentKeepalive = {self.persistent_keepalive}")
        if self.response_timestamp:
            lines.append("# stagewire: ResponseTimestamp = on")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class PeerState:
    """Holds a peer's line of `wg show dump`. `latest_handshake` is in seconds since 1970, 0 for never."""

    public_key: str
    preshared_key: str | None = field(repr=False)
    endpoint: str | None
    allowed_ips: tuple[str, ...]
    latest_handshake: int
    received: int
    sent: int
    persistent_keepalive: int | None


@dataclass(frozen=True, slots=True)
class Dump:
    """Holds the output of `wg show dump`. `peers` is by public key."""

    public_key: str
    listen_port: int
    peers: dict[str, PeerState]


def parse_dump(text: str) -> Dump:
    """Reads the output of `wg show <interface> dump`, of any implementation."""
    interface, *lines = (line.split("\t") for line in text.splitlines())
    peers = {}
    for public, preshared, endpoint, allowed, handshake, received, sent, keepalive in lines:
        peers[public] = PeerState(
            public_key=public,
            preshared_key=None if preshared == "(none)" else preshared,
            endpoint=None if endpoint == "(none)" else endpoint,
            allowed_ips=() if allowed == "(none)" else tuple(allowed.split(",")),
            latest_handshake=int(handshake),
            received=int(received),
            sent=int(sent),
            persistent_keepalive=None if keepalive == "off" else int(keepalive),
        )
    return Dump(public_key=interface[1], listen_port=int(interface[2]), peers=peers)


class WireguardGo:
    """Runs one wireguard-go with its interface, addresses and routes, in a namespace."""

    def __init__(
        self,
        namespace: Namespace,
        keys: KeyPair,
        addresses: Sequence[str],
        peers: Sequence[Peer] = (),
        listen_port: int | None = None,
        mtu: int = 1420,
    ) -> None:
        """Takes `addresses` with their prefix length. The peers' allowed IPs become routes."""
        self.namespace, self.keys = namespace, keys
        self.interface = f"sw{os.getpid()}g{next(_numbers)}"  # pids have 7 digits, so at most 15 characters
        self._addresses, self._peers, self._listen_port, self._mtu = addresses, peers, listen_port, mtu

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        self._process = self.namespace.popen(
            "wireguard-go", "-f", self.interface, env={"LOG_LEVEL": "verbose"}, output=self._log
        )
        try:
            until(self._answers, 5, f"wireguard-go to serve {self.interface}")
            self._configure()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process. The interface goes with it; `logs` stays readable."""
        stop(self._process)
        self._last_words = self.logs()
        self._log.close()
        (SOCKETS / f"{self.interface}.sock").unlink(missing_ok=True)  # a killed wireguard-go leaves it behind

    @property
    def pid(self) -> int:
        return self._process.pid

    def _answers(self) -> bool:
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"wireguard-go exited {status}: {self.logs()}")
        # `wg` removes a socket that is bound but doesn't listen yet: it seems dead.
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(SOCKETS / f"{self.interface}.sock"))
        except OSError:
            return False
        return self.namespace.run("wg", "show", self.interface, check=False).returncode == 0

    def _configure(self) -> None:
        port = [f"ListenPort = {self._listen_port}"] if self._listen_port else []
        lines = ["[Interface]", f"PrivateKey = {self.keys.private}", *port]
        text = "\n".join([*lines, *(peer.section() for peer in self._peers), ""])
        self.namespace.run("wg", "setconf", self.interface, "/dev/stdin", input=text)
        add_addresses(self.namespace, self.interface, self._addresses)
        self.namespace.run("ip", "link", "set", self.interface, "mtu", str(self._mtu), "up")
        for allowed in (allowed for peer in self._peers for allowed in peer.allowed_ips):
            self.namespace.run("ip", "route", "replace", allowed, "dev", self.interface)

    def set(self, *arguments: str, input: str | None = None) -> None:  # noqa: A002 - as in Namespace.run
        """Runs `wg set <interface> <arguments>`. A key file may be /dev/stdin, which is `input` (no key: /dev/null)."""
        self.namespace.run("wg", "set", self.interface, *arguments, input=input)

    def dump(self) -> Dump:
        """Returns the current state as `wg show` knows it."""
        return parse_dump(self.namespace.run("wg", "show", self.interface, "dump").stdout)

    def logs(self) -> str:
        """Returns the whole output of the process."""
        if self._log.closed:
            return self._last_words
        # The process shares the file's position, so this reads without it.
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")
