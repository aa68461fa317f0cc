"""Defines groups of commands that load only when an operator asks for one of them: `status` needs nothing of `peer`."""

from importlib import import_module
from typing import Final

import click

from stagewire_cli import hints


class _Later(click.Group):
    """Gets its commands from a module, which adds them to the group."""

    module = "stagewire_cli.peer_commands"
    command_class = hints.Command

    @property  # type: ignore[override]  # click has a field of this name
    def commands(self) -> dict[str, click.Command]:
        import_module(self.module)
        return self._commands

    @commands.setter
    def commands(self, commands: dict[str, click.Command]) -> None:
        self._commands = dict(commands)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        self._commands[name or cmd.name or ""] = cmd


@click.group(cls=_Later)
def peer() -> None:
    """Adds, shows and changes peers.

    A change is in the file and in force, or neither, once the command ends; no other peer loses a packet. PEER is a
    name, a public key, or the beginning of either.
    """


COMMANDS: Final = (peer,)
