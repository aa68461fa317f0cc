"""Completes what an operator types: commands and options by click's scripts, peers by asking the gateway."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from stagewire.stages import STAGES

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PROGRAM: Final = "stagewire"
VARIABLE: Final = "_STAGEWIRE_COMPLETE"
"""Has the kind of completion that a shell asks for."""
PLACES: Final = {
    "bash": "usr/local/share/bash-completion/completions/stagewire",
    "zsh": "usr/local/share/zsh/site-functions/_stagewire",
    "fish": "usr/local/share/fish/vendor_completions.d/stagewire.fish",
}
"""Where each shell looks for a program's script."""
_KEY: Final = 10
"""Letters of a key that stand for a peer without a name of its own."""


def scripts(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yields each shell's place and its script."""
    from stagewire_cli import shells

    for shell in shells.SHELLS:
        yield PLACES[shell.name], shell(command, {}, PROGRAM, VARIABLE).source()


def peers(ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Completes a peer of a gateway that is up, or of its file, by name. A name that several have becomes a key."""
    from click.shell_completion import CompletionItem

    from stagewire.config.peer_names import folded
    from stagewire_cli import operands

    if os.geteuid() != 0:
        return []
    if ctx.params.get("stage") is True:  # `history --stage`
        return [CompletionItem(name) for name in STAGES if name.startswith(incomplete)]
    chosen = ctx.params.get("interface")
    by_file = ctx.parent is not None and ctx.parent.info_name == "peer"
    known = _in_file if by_file else _in_force
    all_of_them = [each for gateway in ([chosen] if chosen else operands.interfaces()) for each in known(gateway)]
    having = Counter(folded(name) for name, _ in all_of_them)
    as_typed = any(name.startswith(incomplete) for name, _ in all_of_them)
    found = []
    for name, key in all_of_them:
        short = key[:_KEY]
        own = bool(name) and not name.startswith("-") and having[folded(name)] == 1
        fits = name.startswith(incomplete) if as_typed else name.casefold().startswith(incomplete.casefold())
        if name and fits:
            found.append(CompletionItem(name if own else short, help=short if own else name))
        elif (incomplete or not name) and key.startswith(incomplete):
            found.append(CompletionItem(short, help=name or None))
    return found


def _in_force(gateway: str) -> Iterator[tuple[str, str]]:
    """Yields name and key of each peer of a gateway that is up."""
    from stagewire.control import query
    from stagewire_cli import operands

    with suppress(SystemExit, OSError, query.OtherVersion):  # a completion has nothing to complain to
        status = query.key_service(operands.environment_of(gateway))
        yield from ((peer.name, peer.public_key) for peer in (status.peers if status is not None else ()))


def _in_file(gateway: str) -> Iterator[tuple[str, str]]:
    """Yields name and key of each peer of a file, also of those out of use, for the commands that change them."""
    from stagewire.config import ConfigError, encode_key
    from stagewire_cli import operands, peers
    from stagewire_cli.failures import Failed

    with suppress(SystemExit, OSError, Failed, ConfigError):
        found = peers.read(operands.environment_of(gateway)).whole.peers
        yield from ((peer.name, encode_key(peer.public_key)) for peer in found)


def interfaces(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Completes an interface that is up, or a file."""
    from click.shell_completion import CompletionItem

    from stagewire_cli import operands

    names = [CompletionItem(name) for name in operands.interfaces() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *names]
