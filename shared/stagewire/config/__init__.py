"""wg-quick configuration files: read into frozen dataclasses, every mistake reported at once.

`model` says what a configuration is, `known` which keys there are, `values` what may stand after a `=`,
`keys` what a Curve25519 key is, `parse` how lines make a configuration, `load` which files may be trusted,
`write` how a configuration gets back into its file.

The format is that of wg(8) and wg-quick(8). What only Stagewire knows stands in comment lines
(`# stagewire: Key = value`), so that the same file stays valid for `wg` and wg-quick.
"""

from stagewire.config.keys import decode_key, encode_key, generate_private_key, public_key
from stagewire.config.load import interface_name, load
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
from stagewire.config.write import merge, render, save

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
    "encode_key",
    "generate_private_key",
    "interface_name",
    "load",
    "merge",
    "parse",
    "public_key",
    "render",
    "save",
]
