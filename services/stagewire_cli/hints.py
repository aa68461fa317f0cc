"""Adds to click's word of an argument too many what the operator may have meant."""

from typing import Final

import click

_QUOTED: Final = {
    "--allow": "--allow '10.0.0.0/24 tcp 443'",
    "--forward": "--forward 'tcp 8080 80'",
    "--dns": "--dns '10.8.0.1 example.org'",
    "--quota": "--quota '50G monthly'",
    "--allowed-ips": "--allowed-ips '10.8.0.2, fd00::2'",
}
"""Options whose value may have spaces, each with an example."""


class Command(click.Command):
    """Names the quotes or the -i that an operator left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the words behind the command's name. Raises UsageError."""
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" in error.message and (hint := _hint(typed, self)):
                raise click.UsageError(f"{error.message.rstrip('.')}: {hint}", ctx) from None
            raise


def _hint(typed: list[str], command: click.Command) -> str:
    for option, example in _QUOTED.items():
        if option in typed and any(not word.startswith("-") for word in typed[typed.index(option) + 2 :][:1]):
            return f"put the value of {option} into quotes, as in {example}"
    name = next((word for word in typed if _is_gateway(word)), None)
    if name:
        return f"-i {name} names the gateway"
    takes_a_name = any(isinstance(param, click.Argument) for param in command.params)
    return "put a name with spaces into quotes" if takes_a_name else ""


def _is_gateway(word: str) -> bool:
    from stagewire.environment import valid_interface_name
    from stagewire_cli import operands

    return valid_interface_name(word) and (word in operands.interfaces() or operands.has_file(word))
