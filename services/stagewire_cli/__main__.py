"""`stagewire`: what an operator types."""

import difflib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from stagewire import config
from stagewire.environment import MAX_WORKERS, Environment, EnvironmentMistake, valid_interface_name

CONFIG_FOLDER = Path("/etc/stagewire")


def _complain(text: str) -> None:
    click.echo(f"stagewire: {text}", err=True)


def _fail(text: str) -> NoReturn:
    _complain(text)
    sys.exit(1)


def _environment(file_or_name: str) -> Environment:
    """A path has a slash or ends in .conf; anything else is the name of an interface."""
    if not file_or_name:
        _fail("an empty name names no interface")
    try:
        if "/" in file_or_name or file_or_name.endswith(".conf"):
            path = Path(file_or_name).absolute()
            return Environment.read(os.environ | {"STAGEWIRE_CONFIG": str(path)}, config.interface_name(path))
        variables = {name: value for name, value in os.environ.items() if name != "STAGEWIRE_CONFIG"}
        return Environment.read(variables, file_or_name)
    except (EnvironmentMistake, config.ConfigError) as mistake:
        _fail(str(mistake))


def _load(environment: Environment) -> config.InterfaceConfig:
    try:
        return config.load(environment.config)
    except config.ConfigError as error:
        for mistake in error.mistakes:
            _complain(str(mistake))
        sys.exit(1)


def _need_root() -> None:
    if os.geteuid() != 0:
        _fail("this needs root: it makes a network interface and starts services under uids of their own")


class _Commands(click.Group):
    """Our commands; and, as `wireguard-go` is called, the name of an interface for a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """`stagewire [-f] wg0` is the daemon that wg-quick and others start."""
        name = next((argument for argument in args if argument not in {"-f", "--foreground"}), "")
        close = difflib.get_close_matches(name, self.commands, n=1)
        if close and name not in self.commands:
            ctx.fail(f"no such command {name!r}; did you mean {close[0]!r}?")
        if name not in self.commands and valid_interface_name(name) and not name.startswith("-"):
            return "daemon", self.commands["daemon"], args
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.version_option(package_name="stagewire")
def main() -> None:
    """A WireGuard-compatible VPN gateway made of small processes.

    `stagewire INTERFACE` makes an interface without a configuration and serves `wg`, as `wireguard-go INTERFACE` does.
    """


@main.command()
@click.argument("file_or_name", metavar="FILE|NAME")
def up(file_or_name: str) -> None:
    """Bring an interface up; returns when traffic can flow.

    FILE is a wg-quick configuration file, whose name without .conf names the interface. NAME stands for
    /etc/stagewire/NAME.conf.
    """
    from stagewire_cli import bring_up

    _need_root()
    environment = _environment(file_or_name)
    interface = _load(environment)
    try:
        bring_up.up(environment, interface, lambda text: _complain(f"note: {text}"))
    except bring_up.Failed as failed:
        _fail(f"{environment.interface}: {failed}")


@main.command(hidden=True)
@click.option("-f", "--foreground", is_flag=True)
@click.argument("interface")
def daemon(interface: str, foreground: bool) -> None:
    """What `wireguard-go INTERFACE` does."""
    from stagewire_cli import bring_up, daemon

    _need_root()
    environment = _environment(interface)
    try:
        daemon.run(environment, foreground=foreground)
    except bring_up.Failed as failed:
        _fail(f"{interface}: {failed}")


@main.command()
@click.argument("name")
def save(name: str) -> None:
    """Write what is in force back to NAME's configuration file; its comments stay."""
    from stagewire_cli import bring_up

    _need_root()
    try:
        bring_up.save(_environment(name))
    except bring_up.Failed as failed:
        _fail(str(failed))
    except config.ConfigError as error:
        _fail(str(error))


@main.command()
@click.argument("file_or_name", metavar="FILE|NAME")
def down(file_or_name: str) -> None:
    """Take an interface down, and remove all that it made."""
    from stagewire_cli import bring_up

    _need_root()
    environment = _environment(file_or_name)
    remembered = bring_up.remembered_configuration(environment)
    try:
        interface = config.load(remembered if remembered.exists() else environment.config)
    except config.ConfigError:
        interface = None  # what is up must come down, whatever became of its file
    try:
        bring_up.down(environment, interface)
    except bring_up.Failed as failed:
        _fail(str(failed))


@main.command()
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object; without NAME, a list of them.")
def status(file_or_name: str | None, as_json: bool) -> None:
    """Show services, peers, last handshakes and transfer; of all interfaces, or of one."""
    from stagewire_cli import query, show

    name = None if file_or_name is None else _environment(file_or_name).interface
    names = [name] if name else _interfaces()
    for each in names:
        run = _environment(each).run
        if run.exists() and not os.access(run, os.X_OK):
            _fail(f"{run}: only root and the services' group may look inside")
    try:
        found = [answer for each in names if (answer := show.gather(_environment(each))) is not None]
    except query.OtherVersion as other:
        _fail(str(other))
    if as_json:
        if name and not found:
            _fail(f"{name} is not up")
        click.echo(json.dumps(found[0] if name else found, indent=2))
        return
    if not found:
        _fail(f"{name} is not up" if name else "no interface is up")
    # Piped, a table is as wide as it needs to be.
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=200)
    for answer in found:
        show.render(answer, console)


@main.command()
@click.argument("stage", type=click.Choice(["tun", "device", "conn", "key", "status", "all"]))
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False)
def restart(stage: str, file_or_name: str | None) -> None:
    """Replace the processes of a stage, or of all, one after another while traffic flows.

    NAME may be left out when one interface is up. After an upgrade this is what brings the new version to work.
    """
    from stagewire_cli import rolling

    stages = rolling.STAGES if stage == "all" else (stage,)
    _change(file_or_name, lambda environment: rolling.restart(environment, stages, click.echo))


@main.command()
@click.argument("workers", type=click.IntRange(1, MAX_WORKERS))
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False)
def scale(workers: int, file_or_name: str | None) -> None:
    """Change the number of crypto workers while traffic flows; returns when every peer has moved.

    NAME may be left out when one interface is up. STAGEWIRE_WORKERS is what the next start has.
    """
    from stagewire_cli import rolling

    _change(file_or_name, lambda environment: rolling.scale(environment, workers))


def _change(file_or_name: str | None, change: Callable[[Environment], None]) -> None:
    from stagewire_cli import bring_up, query

    _need_root()
    environment = _environment(_the_one_that_is_up() if file_or_name is None else file_or_name)
    try:
        change(environment)
    except (bring_up.Failed, query.OtherVersion) as failed:
        _fail(f"{environment.interface}: {failed}")


def _the_one_that_is_up() -> str:
    names = _interfaces()
    if len(names) != 1:
        _fail(f"{len(names)} interfaces are up ({', '.join(names)}); name one" if names else "no interface is up")
    return names[0]


def _interfaces() -> list[str]:
    folder = Path(os.environ.get("STAGEWIRE_RUN_DIR") or "/run/stagewire")
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError:
        return []


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a configuration file; every mistake is named with its line."""
    try:
        interface = config.load(file)
    except config.ConfigError as error:
        for mistake in error.mistakes:
            click.echo(str(mistake), err=True)
        sys.exit(1)
    prefixes = sum(len(peer.allowed_ips) for peer in interface.peers)
    click.echo(f"{file}: no mistakes; {len(interface.peers)} peers, {prefixes} allowed IPs")


def _print_key(key: bytes) -> None:
    try:
        # Past Python's buffer, which would be tried again at exit, with a traceback.
        os.write(1, f"{config.encode_key(key)}\n".encode())
    except OSError as error:
        _fail(f"standard output: {error.strerror}")


@main.command()
def genkey() -> None:
    """Print a new private key."""
    _print_key(config.generate_private_key(os.urandom(32)))


@main.command()
def pubkey() -> None:
    """Read a private key from standard input; print its public key."""
    try:
        private_key = config.decode_key(sys.stdin.read().strip())
    except ValueError as error:
        _fail(f"standard input {error}")
    _print_key(config.public_key(private_key))


if __name__ == "__main__":
    main()
