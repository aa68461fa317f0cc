"""Speaks the configuration socket's language, by which `wg` reads and changes an interface: bytes in, operations out.

Source: wireguard.com/xplatform, "Configuration Protocol", and, where that is silent, the behaviour of wireguard-go. An
operation is lines of `key=value` up to an empty line; the first is `get=1` or `set=1`.

    get=1      nothing else                     -> the interface, then `errno=0`
    set=1      device lines, then peer sections -> `errno=0`, or one number that isn't 0
      device   private_key listen_port fwmark replace_peers
      peer     public_key opens the section; update_only remove preshared_key endpoint persistent_keepalive_interval
               replace_allowed_ips allowed_ip protocol_version

Stagewire is stricter than wireguard-go in two ways:

- An operation without its empty line is not applied. wireguard-go applies the half operation of a client that dies. wg(8)
  always sends the line.
- A set is read to its end before any of it is applied, so a mistake in its last line changes nothing.

wg(8) wants an errno negative in answer to a set, and takes no sign in answer to a get.

    operations   what a client asks for, and BadOperation
    reader       bytes -> operations
    values       what follows each `=`
    replies      the answers, as bytes
"""

from stagewire.config.uapi.operations import (
    E2BIG,
    EADDRINUSE,
    EINVAL,
    EIO,
    EPROTO,
    BadOperation,
    Change,
    Get,
    Operation,
    PeerChange,
    PrefixChange,
)
from stagewire.config.uapi.reader import MAX_ITEMS, MAX_LINE, MAX_LINES, MAX_OPERATION, OperationReader
from stagewire.config.uapi.replies import InterfaceState, PeerState, get_error, get_reply, set_reply

__all__ = [
    "E2BIG",
    "EADDRINUSE",
    "EINVAL",
    "EIO",
    "EPROTO",
    "MAX_ITEMS",
    "MAX_LINE",
    "MAX_LINES",
    "MAX_OPERATION",
    "BadOperation",
    "Change",
    "Get",
    "InterfaceState",
    "Operation",
    "OperationReader",
    "PeerChange",
    "PeerState",
    "PrefixChange",
    "get_error",
    "get_reply",
    "set_reply",
]
