"""Defines every command that an operator types after `stagewire`."""

import errno
import io
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from stagewire.environment import search_path, valid_interface_name
from stagewire_cli import completion, mistyped, operands

_MODULES: Final = {
    "gateway_commands": ("up", "run", "bare", "down", "restart", "scale", "demo", "install-service"),
    "file_commands": ("init", "import", "plan", "apply", "confirm", "backup", "restore", "check", "reload", "save"),
    "see_commands": ("metrics", "top", "capture", "status", "why", "doctor"),
    "record_commands": ("events", "history", "ready", "usage"),
    "key_commands": ("genkey", "pubkey"),
    "later": ("peer",),
}
"""Each module with the commands in its COMMANDS: it loads only when an operator asks for one of them."""
MODULE_OF: Final = {name: module for module, names in _MODULES.items() for name in names}

_STATUSES: Final = """\b
Exit status:
  0  done; for `status`: everything works
  1  failed, and stderr says why
  2  the command line makes no sense
  3  the interface is not up
  4  for `status`, `why`, `doctor`, `ready`: up, but not everything works"""

_UNWRITABLE: Final = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
"""Errors of a standard output that takes no more."""


class _Commands(click.Group):
    """Loads our commands, and takes an interface's name for a command, as `wireguard-go` does."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *MODULE_OF})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) if cmd_name in MODULE_OF else super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Reads `stagewire [-f] wg0` as `stagewire bare [-f] wg0`, because wg-quick calls it so."""
        if ctx.resilient_parsing:  # a shell completes a line, and nobody has typed it to its end
            return super().resolve_command(ctx, args)
        words = [argument for argument in args if argument not in {"-f", "--foreground"}]
        name = words[0] if words else ""
        is_name = valid_interface_name(name) and not name.startswith("-")
        if is_name and len(words) == 1 and mistyped.asked_by_wg_quick(name, os.getpid()):
            return "bare", _command("bare"), args
        names = self.list_commands(ctx)
        if name not in names and (refused := mistyped.no_name(name)):
            ctx.fail(refused)
        if name in names or not is_name:
            return super().resolve_command(ctx, args)
        if refused := mistyped.refusal(name, names):
            ctx.fail(refused)
        if len(words) > 1 and words[1] in names:
            ctx.fail(f"no such command {name!r}; did you mean `stagewire {words[1]} {name}`?")
        return "bare", _command("bare"), args

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a command, and reports an output that can't be written."""
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="replace")  # a locale may lack letters of ours
        if completion.VARIABLE in os.environ:
            from stagewire.linux import privileges
            from stagewire_cli import shells

            privileges.hide_memory()  # names of peers stand beside keys, and click calls no group for a completion
            shells.register()
        os.environ["PATH"] = search_path(os.environ.get("PATH"))
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignores it would hide how hooks end
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.filename is not None or error.errno not in _UNWRITABLE:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try again at exit
            operands.fail(f"standard output: {error.strerror}")


def _command(name: str) -> click.Command:
    commands: tuple[click.Command, ...] = import_module(f"stagewire_cli.{MODULE_OF[name]}").COMMANDS
    return next(each for each in commands if each.name == name)


@click.group(
    cls=_Commands,
    epilog=_STATUSES,
    context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True},
)
@click.version_option(package_name="stagewire")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Runs WireGuard-compatible VPN gateways made of small processes.

    FILE is a configuration file in wg-quick's format. The file wg0.conf makes the interface wg0. NAME stands for
    /etc/stagewire/NAME.conf, or for the file that the interface was brought up with.

    `stagewire NAME` means `stagewire bare NAME`. So wg-quick can call stagewire as it calls wireguard-go.
    """
    if ctx.invoked_subcommand != "bare":  # it reads no keys, and its keeper must be found by other commands
        from stagewire.linux import privileges

        privileges.hide_memory()


if __name__ == "__main__":
    main()
