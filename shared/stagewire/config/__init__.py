"""Reads and writes wg-quick configuration files: frozen dataclasses in memory, every mistake reported at once.

- model: the dataclasses
- mistakes: what refuses a configuration
- known, keys, values, gateway, tolerant: names, and texts after a `=`
- parser, drafts, peers, claims, marks, findings: lines into a configuration
- loader, lookups, published: which files may be trusted, names of this host, keys that everybody knows
- peer_names: names from comments, fit to show; which peer a text means
- write, text, tidy: a configuration back into its file
- accepted, differences: the text in force, and changes for the operator to read
- operations, peer_checks, roster, free, guard: operations on peers, and what root may write of them
- uapi: the configuration socket

The format is that of wg(8) and wg-quick(8). Settings that only Stagewire knows stand in comment lines (`# stagewire:
Key = value`), so that the same file stays valid for `wg` and wg-quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from stagewire.config.differences import difference
    from stagewire.config.keys import decode_key, encode_key, generate_private_key, public_key
    from stagewire.config.loader import interface_name, load, load_text, parse_text
    from stagewire.config.mistakes import ConfigError, Mistake
    from stagewire.config.model import (
        HostPort,
        Interface,
        InterfaceConfig,
        Network,
        PeerConfig,
        Table,
    )
    from stagewire.config.parser import parse
    from stagewire.config.write import merge, save

_MODULES: Final = {
    "differences": ("difference",),
    "keys": ("decode_key", "encode_key", "generate_private_key", "public_key"),
    "loader": ("interface_name", "load", "load_text", "parse_text"),
    "mistakes": ("ConfigError", "Mistake"),
    "model": ("HostPort", "Interface", "InterfaceConfig", "Network", "PeerConfig", "Table"),
    "parser": ("parse",),
    "write": ("merge", "save"),
}
_MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}

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


def __getattr__(name: str) -> Any:
    """Loads the module of a name when it is asked for: most commands need few of them."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return found
