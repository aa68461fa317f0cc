"""Describes the operations of the configuration socket, and the errors that answer them."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

from stagewire.config.uapi.replies import get_error, set_reply
from stagewire.proto.endpoint import Endpoint

# Linux's numbers, which wg(8) turns into words.
EIO: Final = 5
"""Input/output error: no other number fits."""
E2BIG: Final = 7
"""Argument list too long: an operation exceeds a limit."""
EINVAL: Final = 22
"""Invalid argument: an unknown key, a key in the wrong section, or a bad value."""
EPROTO: Final = 71
"""Protocol error: not a line of this language, or an operation without its end."""
EADDRINUSE: Final = 98
"""Address already in use: another program has the listen port."""


class BadOperation(Exception):  # noqa: N818 - it is the client's error, not ours
    """Refuses a client's operation; nothing of it is applied.

    `code` is an errno, positive. `line` counts from the operation's first, 1; 0 for no line. `reason` is one line for
    the log, and holds no key but public ones. `of` is the operation, empty when it was neither get nor set. After a
    `fatal` refusal the connection must be closed: its reader finds no further operation.
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
        """Makes the answer.

        Nothing when the operation was neither get nor set: wg(8) takes that for EPROTO, in either sign.
        """
        match self.of:
            case "get":
                return get_error(self.code)
            case "set":
                return set_reply(self.code)
        return b""


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """Describes one `allowed_ip`: the peer gets the prefix, or loses it if it is the peer's."""

    prefix: IPv4Network | IPv6Network
    add: bool


@dataclass(frozen=True, slots=True)
class PeerChange:
    """Describes one peer section; several of one peer are applied in order. None: not mentioned.

    `line` is where the section begins, from 1. With `remove`, the rest is empty: the other lines have no effect. With
    `update_only`, an unknown peer is not made. `preshared_key` is NO_KEY (zeros) to remove it. `persistent_keepalive`
    is in seconds, 0 for none. `replace_allowed_ips` comes before `allowed_ips`, which are in order.
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
    """Describes a `set`. None: not mentioned. Its fields are applied in order, wholly or not at all.

    `private_key` is clamped, or NO_KEY (zeros) to remove it. `listen_port` 0 is any free port, `fwmark` 0 none.
    """

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    peers: tuple[PeerChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Get:
    """Describes a `get`."""


Operation = Get | Change
