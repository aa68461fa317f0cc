"""Defines the commands that begin and end a gateway, and replace its processes."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from stagewire import config
from stagewire.environment import Environment
from stagewire.limits import MAX_WORKERS
from stagewire.proto.constants import KEY_LENGTH
from stagewire.stages import RESTART_ORDER, STAGES
from stagewire_cli import completion, operands
from stagewire_cli.failures import Failed


class _Stage(click.Choice[str]):
    """Takes a stage's name, also as `status` writes it: `conn-service`."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(value.removesuffix("-service"), param, ctx)


@click.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
def up(file_or_name: str) -> None:
    """Brings an interface up.

    Returns when traffic can flow, or says in one line why it can't. The gateway works on in the background.
    """
    from stagewire_cli import bring_up, interruption

    operands.need_root()
    environment = operands.environment_of(file_or_name)
    interface = operands.load(environment)
    try:
        with interruption.undone():
            bring_up.up(environment, interface, operands.note)
    except Failed as failed:
        operands.fail_with(failed, environment.interface)
    operands.done(f"{environment.interface} is up, with {operands.counted(len(interface.peers), 'peer')}")


@click.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
def run(file_or_name: str) -> None:
    """Runs an interface in the foreground.

    Does what `up` does, hooks included, and stays until SIGTERM takes the interface down. SIGHUP reloads the file. The
    services log to standard output. The systemd unit and the container use this command.
    """
    from stagewire_cli import apart, foreground, output, reload

    output.open_standard()
    operands.need_root()
    environment = operands.environment_of(file_or_name)

    def say(text: str) -> None:
        operands.complain(f"{environment.interface}: {text}")

    # This process runs for as long as the gateway, so it reads the file in others: no key may outlive its use.
    def apply() -> None:
        try:
            reload.reload(environment, say, say)
        except config.ConfigError as error:
            raise Failed(f"nothing is changed: {error}") from None

    def load() -> config.InterfaceConfig:
        read = operands.load(environment)
        peers = tuple(replace(peer, preshared_key=bytes(KEY_LENGTH)) for peer in read.peers)
        return replace(read, private_key=None, peers=peers)

    try:
        running = foreground.Foreground(environment, say, lambda: apart.call(apply))
        if not running.run(lambda: apart.call(load)):
            sys.exit(operands.FAILED)
    except Failed as failed:
        operands.fail_with(failed, environment.interface)


@click.command()
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; SIGTERM ends it.")
@click.argument("name")
def bare(name: str, foreground: bool) -> None:
    """Makes an interface that other programs configure.

    Does what `wireguard-go NAME` does. The interface has no configuration file; `wg` and `ip` set it up. It ends when
    its link or its `wg` socket is deleted.
    """
    from stagewire_cli import daemon

    operands.need_root()
    environment = operands.environment_of(name)
    try:
        daemon.run(environment, operands.note, foreground=foreground)
    except Failed as failed:
        operands.fail_with(failed, environment.interface)
    if not foreground:
        operands.done(f"made interface {name}, without a configuration; `ip link del {name}` ends it")


@click.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
def down(file_or_name: str) -> None:
    """Takes an interface down and undoes what `up` did."""
    from stagewire_cli import bring_up

    operands.need_root()
    environment = operands.environment_of(file_or_name)
    try:
        if not bring_up.down(environment, operands.complain):
            operands.done(f"{environment.interface} is down, but a step failed")
            sys.exit(operands.FAILED)
    except Failed as failed:
        operands.fail_with(failed, environment.interface)
    operands.done(f"{environment.interface} is down")


@click.command(epilog=operands.OPTIONAL)
@click.argument("stage", type=_Stage([*STAGES, "all"]))
@click.argument("file_or_name", metavar="", required=False, shell_complete=completion.interfaces)
@operands.INTERFACE
def restart(stage: str, file_or_name: str | None, interface: str | None) -> None:
    """Replaces processes while traffic flows.

    Takes the processes of one stage, or of all stages, one after another. `stagewire status` lists the stages. After an
    upgrade, `stagewire restart all` brings the new version to work.
    """
    from stagewire_cli import rolling

    stages = RESTART_ORDER if stage == "all" else (stage,)
    gateway = operands.either(file_or_name, interface)
    operands.upon(gateway, lambda environment: rolling.restart(environment, stages, operands.tell))


@click.command(epilog=operands.OPTIONAL)
@click.argument("workers", type=operands.Whole(1, MAX_WORKERS))
@click.argument("file_or_name", metavar="", required=False, shell_complete=completion.interfaces)
@operands.INTERFACE
def scale(workers: int, file_or_name: str | None, interface: str | None) -> None:
    """Changes the number of crypto workers.

    Traffic flows meanwhile. Returns when all peers have moved to their workers. The variable STAGEWIRE_WORKERS sets
    the number for the next start.
    """
    from stagewire_cli import rolling

    def change(environment: Environment) -> None:
        rolling.scale(environment, workers)
        at_work = f"{operands.counted(workers, 'worker')} {'is' if workers == 1 else 'are'} at work"
        operands.done(f"{environment.interface}: {at_work}, and each peer is at its worker")

    operands.upon(operands.either(file_or_name, interface), change)


@click.command()
@click.option("--keep", is_flag=True, help="Leave the gateways running afterwards.")
@click.option("--stop", is_flag=True, help="Remove the gateways that --keep left running.")
def demo(keep: bool, stop: bool) -> None:
    """Shows two gateways at work, in network namespaces."""
    from stagewire_cli import install

    options = [name for name, wanted in {"--keep": keep, "--stop": stop}.items() if wanted]
    os.environ["PYTHONPATH"] = str(install.folder())
    os.execv(sys.executable, [sys.executable, "-m", "lab.demo", *options])  # noqa: S606 - the lab is no package of ours


@click.command("install-service")
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), default=Path("/"), help="Write below this folder."
)
@click.option("--remove", is_flag=True, help="Remove the installed files; configurations stay.")
def install_service(root: Path, remove: bool) -> None:
    """Installs units, examples, manual pages and completions.

    Prints each file that it writes or removes.
    """
    from stagewire_cli import install

    if root == Path("/"):
        operands.need_root()
    try:
        (install.remove if remove else install.install)(root.absolute(), operands.tell)
    except Failed as failed:
        operands.fail(str(failed))


COMMANDS: Final = (up, run, bare, down, restart, scale, demo, install_service)
