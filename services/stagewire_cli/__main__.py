"""Defines every command that an operator types after `stagewire`."""

import errno
import io
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click

from stagewire import config
from stagewire.environment import Environment, search_path, valid_interface_name
from stagewire.limits import MAX_WORKERS
from stagewire.stages import RESTART_ORDER, STAGES
from stagewire_cli import completion, file_commands, later, mistyped, operands, record_commands, see_commands
from stagewire_cli.failures import Failed

_STATUSES: Final = """\b
Exit status:
  0  done; for `status`: everything works
  1  failed, and stderr says why
  2  the command line makes no sense
  3  the interface is not up
  4  for `status`, `why`, `doctor`, `ready`: up, but not everything works"""

_UNWRITABLE: Final = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
"""Errors of a standard output that takes no more."""


class _Stage(click.Choice[str]):
    """Takes a stage's name, also as `status` writes it: `conn-service`."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(value.removesuffix("-service"), param, ctx)


class _Commands(click.Group):
    """Holds our commands, and takes an interface's name for a command, as `wireguard-go` does."""

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
            return "bare", self.commands["bare"], args
        if name not in self.commands and (refused := mistyped.no_name(name)):
            ctx.fail(refused)
        if name in self.commands or not is_name:
            return super().resolve_command(ctx, args)
        if refused := mistyped.refusal(name, self.commands):
            ctx.fail(refused)
        if len(words) > 1 and words[1] in self.commands:
            ctx.fail(f"no such command {name!r}; did you mean `stagewire {words[1]} {name}`?")
        return "bare", self.commands["bare"], args

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a command, and reports an output that can't be written."""
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="replace")  # a locale may lack letters of ours
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


@main.command(epilog=operands.OPERAND)
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
            bring_up.up(environment, interface, lambda text: operands.complain(f"note: {text}"))
    except Failed as failed:
        operands.fail_with(failed, environment.interface)
    operands.done(f"{environment.interface} is up, with {operands.counted(len(interface.peers), 'peer')}")


for _command in (later.peer, *file_commands.COMMANDS, *record_commands.COMMANDS, *see_commands.COMMANDS):
    main.add_command(_command)


@main.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
def run(file_or_name: str) -> None:
    """Runs an interface in the foreground.

    Does what `up` does, hooks included, and stays until SIGTERM takes the interface down. SIGHUP reloads the file. The
    services log to standard output. The systemd unit and the container use this command.
    """
    from stagewire_cli import foreground, output, reload

    output.open_standard()
    operands.need_root()
    environment = operands.environment_of(file_or_name)

    def say(text: str) -> None:
        operands.complain(f"{environment.interface}: {text}")

    def apply() -> None:
        try:
            reload.reload(environment, say, say)
        except config.ConfigError as error:
            raise Failed(f"nothing is changed: {error}") from None

    try:
        if not foreground.Foreground(environment, say, apply).run(lambda: operands.load(environment)):
            sys.exit(operands.FAILED)
    except Failed as failed:
        operands.fail_with(failed, environment.interface)


@main.command()
@click.option("--keep", is_flag=True, help="Leave the gateways running afterwards.")
@click.option("--stop", is_flag=True, help="Remove the gateways that --keep left running.")
def demo(keep: bool, stop: bool) -> None:
    """Shows two gateways at work, in network namespaces."""
    from stagewire_cli import install

    options = [name for name, wanted in {"--keep": keep, "--stop": stop}.items() if wanted]
    os.environ["PYTHONPATH"] = str(install.folder())
    os.execv(sys.executable, [sys.executable, "-m", "lab.demo", *options])  # noqa: S606 - the lab is no package of ours


@main.command("install-service")
@click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), default=Path("/"), help="Write below this folder."
)
@click.option("--remove", is_flag=True, help="Remove the installed files; configurations stay.")
def install_service(root: Path, remove: bool) -> None:
    """Installs the systemd unit and examples.

    Prints each file that it writes or removes.
    """
    from stagewire_cli import install

    if root == Path("/"):
        operands.need_root()
    try:
        (install.remove if remove else install.install)(root.absolute(), operands.tell)
    except Failed as failed:
        operands.fail(str(failed))


@main.command()
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
        daemon.run(environment, lambda text: operands.complain(f"note: {text}"), foreground=foreground)
    except Failed as failed:
        operands.fail_with(failed, environment.interface)
    if not foreground:
        operands.done(f"made interface {name}, without a configuration; `ip link del {name}` ends it")


@main.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
@click.option("--force", is_flag=True, help="Overwrite an edited file, and keep a copy of it beside it.")
def save(file_or_name: str, force: bool) -> None:
    """Writes the configuration in force back to the file.

    Comments in the file stay. If the file was edited since it was read, the command refuses and shows what differs.
    """
    from stagewire_cli import saving

    operands.upon_its_file(file_or_name, lambda environment: saving.save(environment, operands.done, force=force))


@main.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
def reload(file_or_name: str | None, dry_run: bool) -> None:
    """Applies an edited file while traffic flows.

    Prints the changes, and applies all of them or none. PreUp and PostUp don't run.
    """
    from stagewire_cli import reload

    def apply(environment: Environment) -> None:
        tell = operands.tell if dry_run else operands.done
        reload.reload(environment, tell, lambda text: operands.complain(f"note: {text}"), dry_run=dry_run)

    operands.upon_its_file(file_or_name, apply)


@main.command(epilog=operands.OPTIONAL)
@click.argument("peer", metavar="PEER|ADDRESS", shell_complete=completion.peers)
@click.argument("file_or_name", metavar="", required=False, shell_complete=completion.interfaces)
@operands.INTERFACE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--no-try", is_flag=True, help="Try no handshake and send no packet; answer at once.")
def why(peer: str, file_or_name: str | None, interface: str | None, as_json: bool, no_try: bool) -> None:
    """Says why a peer has no traffic, and what to do first.

    PEER is a peer's name or public key, or the beginning of either. ADDRESS is a peer's endpoint, or an address behind
    it. The command tries a handshake and packets through the tunnel, for 10 s at most. Exit status 4 says that something
    is wrong.
    """
    from stagewire_cli import why

    def tell(environment: Environment) -> None:
        found = why.answer(environment, peer, trying=not no_try)
        _print(found, why.lines(found, operands.width()), as_json=as_json)
        if not found["healthy"]:
            sys.exit(operands.DEGRADED)

    operands.upon(operands.either(file_or_name, interface), tell)


@main.command(epilog=operands.OPTIONAL)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--fix", is_flag=True, help="Run the commands that mend what is wrong, and show each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(file_or_name: str | None, fix: bool, as_json: bool) -> None:
    """Examines an interface and its host.

    Each trouble comes with the exact commands that mend it. What --fix changes lasts until the next boot. Exit status 4
    says that something is wrong; a hint is not.
    """
    from stagewire_cli import doctor

    def tell(environment: Environment) -> None:
        facts = doctor.gather(environment)
        troubles = doctor.examine(facts)
        if fix and any(trouble.wrong and trouble.commands for trouble in troubles):
            mended = doctor.mend(troubles, operands.complain if as_json else operands.tell)
            facts = doctor.gather(environment)
            troubles = doctor.examine(facts)
            if not mended:
                operands.complain("not every command could be run")
        found = doctor.answer(facts, troubles)
        _print(found, doctor.lines(facts, troubles, operands.width()), as_json=as_json)
        if not found["healthy"]:
            sys.exit(operands.DEGRADED)

    operands.upon(file_or_name, tell)


@main.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="FILE|NAME", shell_complete=completion.interfaces)
def down(file_or_name: str) -> None:
    """Takes an interface down and undoes what `up` did."""
    from stagewire_cli import bring_up

    operands.need_root()
    environment = operands.environment_of(file_or_name)
    try:
        if not bring_up.down(environment, operands.complain):
            sys.exit(operands.FAILED)
    except Failed as failed:
        operands.fail_with(failed, environment.interface)
    operands.done(f"{environment.interface} is down")


@main.command(epilog=operands.OPERAND)
@click.argument("file_or_name", metavar="[FILE|NAME]", required=False, shell_complete=completion.interfaces)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; without NAME, a list of them.")
def status(file_or_name: str | None, as_json: bool) -> None:
    """Shows services, peers, handshakes and transfer.

    Shows one interface, or all that are up. Exits with 0 when everything works, 3 when no interface is up, and 4 when
    an interface is up but not everything works.
    """
    from stagewire.control import query
    from stagewire_cli import layout, show

    name = None if file_or_name is None else operands.environment_of(file_or_name).interface
    names = [name] if name else operands.interfaces()
    for each in names:
        operands.expect_access(operands.environment_of(each))
    try:
        found = [answer for each in names if (answer := show.gather(operands.environment_of(each))) is not None]
    except query.OtherVersion as other:
        operands.fail(str(other))
    if as_json and (found or not name):
        click.echo(json.dumps(found[0] if name else found, indent=2))
    if not found:
        if not as_json or name:
            operands.complain(operands.not_up(name) if name else operands.NONE_UP)
        sys.exit(operands.NOT_RUNNING)
    if not as_json:
        click.echo("\n\n".join("\n".join(layout.lines(answer, operands.width())) for answer in found))
    if not all(answer["healthy"] for answer in found):
        sys.exit(operands.DEGRADED)


@main.command(epilog=operands.OPTIONAL)
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


@main.command(epilog=operands.OPTIONAL)
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


@main.command(epilog=operands.OPERAND)
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


def _print(found: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """Prints an answer as JSON, which is ASCII and of any length, or as clean lines."""
    if as_json:
        click.echo(json.dumps(found))
        return
    for line in lines:
        operands.tell(line)


def _print_key(key: bytes) -> None:
    try:
        # Bypasses Python's buffer: Python would write that again at exit, and fail with a traceback.
        os.write(1, f"{config.encode_key(key)}\n".encode())
    except OSError as error:
        operands.fail(f"standard output: {error.strerror}")


@main.command()
def genkey() -> None:
    """Prints a new private key."""
    _print_key(config.generate_private_key(os.urandom(32)))


@main.command()
def pubkey() -> None:
    """Prints the public key of a private key on stdin."""
    try:
        private_key = config.decode_key(sys.stdin.read().strip())
    except ValueError as error:
        operands.fail(f"standard input {error}")
    _print_key(config.public_key(private_key))


if __name__ == "__main__":
    main()
