"""Defines the commands about whole configuration files."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from stagewire import config, logs
from stagewire.environment import Environment
from stagewire.limits import MAX_PORT, MAX_TRIAL
from stagewire_cli import completion, operands
from stagewire_cli.failures import Failed


@click.command()
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
@click.option("--endpoint", metavar="HOST[:PORT]", help="Where clients find the gateway.")
@click.option("--network", metavar="NETS", help="The tunnel's networks, at most one of each family.")
@click.option("--dns", metavar="ADDRESSES", help="DNS servers and search domains of the clients.")
@click.option(
    "--port",
    type=operands.Whole(1, MAX_PORT),
    metavar="PORT",
    help="UDP port; else the first free one from 51820 on.",
)
@click.option("--exit/--no-exit", "exits", default=None, help="Clients reach the internet through the gateway; or not.")
def init(
    file_or_name: str, endpoint: str | None, network: str | None, dns: str | None, port: int | None, exits: bool | None
) -> None:
    """Makes the file of a new gateway, with a new key.

    Asks for what no option gives; without a terminal, it takes what it suggests, and no --exit. Changes nothing else.
    """
    from stagewire_cli import init as making

    operands.need_root()
    environment = operands.environment_of(file_or_name)
    ask = _ask if sys.stdin.isatty() else None
    said = exits is not None
    if exits is None:
        exits = ask is not None and click.confirm(
            "Shall clients reach the internet through this gateway?", default=True
        )
    try:
        port, place = making.make(environment.config, endpoint, network, dns, port, ask, exits=exits)
    except Failed as failed:
        operands.fail_with(failed, environment.interface)
    operands.tell(f"wrote {environment.config}; clients find the gateway at {place}")
    for oddity in making.oddities(network, environment.config, place):
        operands.complain(f"warning: {oddity}")
    if not exits and not said and ask is None:
        operands.tell(
            "exit: off, as nobody could be asked: clients reach the tunnel alone; --exit lets them everywhere"
        )
    for hint in making.firewall_hints(port) or [f"open UDP port {port} in each firewall before this host"]:
        operands.tell(f"firewall: {hint}")
    operands.tell(f"next: stagewire up {file_or_name}, then stagewire peer add NAME")


def _ask(question: str, check: Callable[[str], object], **how: Any) -> str:
    """Asks until `check` takes the answer."""

    def checked(said: str) -> str:
        try:
            check(said)
        except Failed as failed:
            raise click.UsageError(logs.cleaned(_OPTION.sub("", str(failed)))) from None
        return said

    return str(click.prompt(question, value_proc=checked, **how))


_OPTION: Final = re.compile(r"^--\w+ ")


@click.command("import")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "-i", "--interface", "interface", metavar="FILE|NAME", shell_complete=completion.interfaces,
    help="The gateway; a new one if its file does not exist. Without it, the only one that is up.",
)  # fmt: skip
@click.option("--only", default="", metavar="NAME", help="Of several interfaces in FILE take NAME.")
@click.option("--endpoint", default="", metavar="HOST:PORT", help="Where clients find a new gateway.")
@click.option("--port", type=operands.Whole(1, MAX_PORT), metavar="PORT", help="UDP port of a new gateway.")
@click.option("--dry-run", is_flag=True, help="Only show what would be taken.")
def import_(
    paths: tuple[Path, ...], interface: str | None, only: str, endpoint: str, port: int | None, dry_run: bool
) -> None:
    """Takes peers or a gateway over from another program.

    FILE is wg-easy 14's wg0.json, wg-easy 15's database, a database or a JSON export of WireGuard Portal, or any wg-quick
    file, also one of pivpn or wireguard-install. The command says what it doesn't take, and changes nothing in FILE.
    All that can be taken is taken in one step.
    """
    from stagewire_cli import importing

    chosen = importing.Chosen(only, endpoint, port, dry_run)
    operands.upon_a_file(
        interface or operands.the_only_gateway(),
        lambda environment: importing.take_over(paths, environment, chosen, operands.tell),
    )


_PASSPHRASE: Final = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the passphrase from FILE's first line; without it, the command asks.",
)


@click.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The new file.")
@click.option("--history", is_flag=True, help="Take the history as well.")
@_PASSPHRASE
def backup(file_or_name: str, output: Path, history: bool, passphrase_file: Path | None) -> None:
    """Puts all of an interface into one sealed file.

    A passphrase opens it. The file has the configuration with its keys, and the state that outlives a boot. The
    interface may be up. Changes by `wg` that were not saved aren't in it.
    """
    from stagewire_cli import backup as sealing
    from stagewire_cli import noting

    def action(environment: Environment) -> None:
        found = sealing.read(environment, with_history=history)
        sealing.write(found, operands.passphrase(passphrase_file, twice=True), output)
        operands.tell(f"wrote {output}; it opens with the passphrase alone")
        if silent := noting.backed_up(environment, str(output.absolute())):
            operands.note(silent)

    operands.upon_a_file(file_or_name, action)


@click.command(epilog=operands.OPERAND)
@click.argument("file", type=click.Path(path_type=Path), metavar="BACKUP")
@click.option(
    "--as",
    "file_or_name",
    metavar="FILE|NAME",
    shell_complete=completion.interfaces,
    help="Restore it as this interface.",
)
@click.option("--force", is_flag=True, help="Replace a file that differs, and keep a copy of it beside it.")
@_PASSPHRASE
def restore(file: Path, file_or_name: str | None, force: bool, passphrase_file: Path | None) -> None:
    """Restores an interface from a backup.

    Says what differs on this host. The interface must be down. Never let two machines run with one key at the same time.
    """
    from stagewire_cli import backup as sealing

    operands.need_root()
    try:
        found = sealing.opened(file, operands.passphrase(passphrase_file))
    except Failed as failed:
        operands.fail(str(failed))
    operands.upon_a_file(
        file_or_name or found.interface,
        lambda environment: sealing.restore(found, environment, operands.tell, force=force),
    )


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
def plan(file_or_name: str | None) -> None:
    """Shows what applying an edited file would change.

    Changes nothing.
    """
    from stagewire_cli import reload

    operands.upon_its_file(
        file_or_name, lambda environment: reload.reload(environment, operands.tell, operands.note, dry_run=True)
    )


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option(
    "--confirm", type=operands.Whole(1, MAX_TRIAL), metavar="SECONDS", help="Go back unless confirmed in time."
)
def apply(file_or_name: str | None, confirm: int | None) -> None:
    """Applies an edited file while traffic flows.

    Does what `reload` does. With --confirm all goes back to what was in force before, unless you confirm it in time, here
    or by `stagewire confirm`: also if the change has cut you off, or this command ends. Exit status 0 says that the change
    holds, or that nothing differs.
    """
    from stagewire_cli import confirming, reload

    def action(environment: Environment) -> None:
        def confirmed(trial: str) -> None:
            confirming.wait(environment, trial, confirm or 0, operands.done)

        reload.reload(environment, operands.done, operands.note, confirm=confirm or 0, confirmed=confirmed)

    operands.upon_its_file(file_or_name, action)


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
def confirm(file_or_name: str | None) -> None:
    """Keeps what `apply --confirm` has applied."""
    from stagewire_cli import reload

    def action(environment: Environment) -> None:
        reload.confirm(environment, operands.note)
        operands.tell("confirmed: what was applied stays in force")

    operands.upon_its_file(file_or_name, action)


@click.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
@click.option("--strict", is_flag=True, help="Treat every warning as a mistake.")
def check(file_or_name: str, strict: bool) -> None:
    """Checks a configuration file.

    Prints every mistake and every warning with its line. Changes nothing.
    """
    file = operands.file_of(file_or_name)
    try:
        interface = config.load(file, strict=strict)
    except config.ConfigError as error:
        for mistake in operands.mistakes(error):
            click.echo(mistake, err=True)
        sys.exit(operands.FAILED)
    for warning in interface.warnings:
        click.echo(f"warning: {warning}", err=True)
    try:
        config.interface_name(file)
    except config.ConfigError as error:
        click.echo(f"note: {error}", err=True)  # `up` would refuse the file's name; a copy may have any
    prefixes = sum(len(peer.allowed_ips) for peer in interface.peers)
    peers, ips = operands.counted(len(interface.peers), "peer"), operands.counted(prefixes, "allowed IP")
    click.echo(f"{file}: no mistakes; {peers}, {ips}")


@click.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
def reload(file_or_name: str | None, dry_run: bool) -> None:
    """Applies an edited file while traffic flows.

    Prints the changes, and applies all of them or none. PreUp and PostUp don't run.
    """
    from stagewire_cli import reload

    def apply(environment: Environment) -> None:
        tell = operands.tell if dry_run else operands.done
        reload.reload(environment, tell, operands.note, dry_run=dry_run)

    operands.upon_its_file(file_or_name, apply)


@click.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
@click.option("--force", is_flag=True, help="Overwrite an edited file, and keep a copy of it beside it.")
def save(file_or_name: str, force: bool) -> None:
    """Writes the configuration in force back to the file.

    Comments in the file stay. If the file was edited since it was read, the command refuses and shows what differs.
    """
    from stagewire_cli import saving

    operands.upon_its_file(file_or_name, lambda environment: saving.save(environment, operands.done, force=force))


COMMANDS: Final = (init, import_, plan, apply, confirm, backup, restore, check, reload, save)
