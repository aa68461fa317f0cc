"""Reads and writes wg-quick configuration files: frozen dataclasses in memory, every mistake reported at once.

- model: the dataclasses
- known, keys, values, gateway, tolerant: names, and texts after a `=`
- parse, drafts, peers, claims, marks, findings: lines into a configuration
- load, lookups, published: which files may be trusted, names of this host, keys that everybody knows
- peer_names: names from comments, fit to show; which peer a text means
- write, text, tidy: a configuration back into its file
- accepted, difference: the text in force, and changes for the operator to read
- operations, peer_checks, roster, free, guard: operations on peers, and what root may write of them
- uapi: the configuration socket

The format is that of wg(8) and wg-quick(8). Settings that only Stagewire knows stand in comment lines (`# stagewire:
Key = value`), so that the same file stays valid for `wg` and wg-quick.
"""

from stagewire.config.difference import lines as difference
from stagewire.config.keys import decode_key, encode_key, generate_private_key, public_key
from stagewire.config.load import interface_name, load, load_text, parse_text
from stagewire.config.model import (
    ConfigError,
    HostPort,
    Interface,
    InterfaceConfig,
    Mistake,
    Network,
    PeerConfig,
    Table,
)
from stagewire.config.parse import parse
from stagewire.config.write import merge, save

__all__ = [
    "ConfigError",
    "HostPort",
    "Interface",
    "InterfaceConfig",
    "Mistake",
    "Network",
    "PeerConfig",
    "Table",
    "decode_key",
    "difference",
    "encode_key",
    "generate_private_key",
    "interface_name",
    "load",
    "load_text",
    "merge",
    "parse",
    "parse_text",
    "public_key",
    "save",
]
