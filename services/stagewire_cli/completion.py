"""Completes what an operator types: commands and options by click's scripts, peers by asking the gateway."""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from stagewire.stages import STAGES

PROGRAM: Final = "stagewire"
_VARIABLE: Final = "_STAGEWIRE_COMPLETE"
PLACES: Final = {
    "bash": "usr/local/share/bash-completion/completions/stagewire",
    "zsh": "usr/local/share/zsh/site-functions/_stagewire",
    "fish": "usr/local/share/fish/vendor_completions.d/stagewire.fish",
}
"""Where each shell looks for a program's script."""
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@+:/=")
"""Letters that no shell takes for anything else."""
_KEY: Final = 10
"""Letters of a key that stand for a peer without a plain name."""


def scripts(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yields each shell's place and its script."""
    for shell, place in PLACES.items():
        kind = get_completion_class(shell)
        if kind is not None:
            made = kind(command, {}, PROGRAM, _VARIABLE)
            yield place, ShellComplete.source(made)  # bash's own looks for a bash, which may not be installed


def peers(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a peer of a gateway that is up, or of its file. A name that a shell would split becomes a key."""
    from stagewire_cli import operands

    if os.geteuid() != 0:
        return []
    if ctx.params.get("stage") is True:  # `history --stage`
        return [CompletionItem(name) for name in STAGES if name.startswith(incomplete)]
    chosen = ctx.params.get("interface")
    by_file = ctx.parent is not None and ctx.parent.info_name == "peer"
    known = _in_file if by_file else _in_force
    found = []
    for gateway in [chosen] if chosen else operands.interfaces():
        for name, key in known(gateway):
            value = name if name and _PLAIN.issuperset(name) else key[:_KEY]
            if value.startswith(incomplete) or (incomplete and name.startswith(incomplete)):
                found.append(CompletionItem(value, help=name or None))
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


def interfaces(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes an interface that is up, or a file."""
    from stagewire_cli import operands

    names = [CompletionItem(name) for name in operands.interfaces() if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *names]
