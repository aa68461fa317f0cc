"""Resolves FILE and NAME for all commands, and ends a failed command with one line."""

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import click

from stagewire import config, logs
from stagewire.environment import Environment, EnvironmentMistake, valid_interface_name
from stagewire_cli import completion
from stagewire_cli.failures import Failed, NotUp

FAILED: Final = 1
NOT_RUNNING: Final = 3
DEGRADED: Final = 4
OPERAND: Final = """FILE is a configuration file. NAME stands for /etc/stagewire/NAME.conf, or for the file that the
interface was brought up with."""
OPTIONAL: Final = f"{OPERAND} Without either, the command takes the only interface that is up."
INTERFACE: Final = click.option(
    "-i",
    "--interface",
    "interface",
    metavar="FILE|NAME",
    shell_complete=completion.interfaces,
    help="The gateway; without it, the only one that is up.",
)
"""Names the gateway for a command whose first operand is something else."""


class Whole(click.IntRange):
    """Takes a whole number within bounds, and says so in plain words."""

    name = "whole number"

    def _describe_range(self) -> str:
        return f"{self.min} to {self.max}"


class Number(click.FloatRange):
    """Takes a number within bounds, and says so in plain words."""

    name = "number"

    def _describe_range(self) -> str:
        return f"{self.min:g} to {self.max:g}"


NONE_UP: Final = "no interface is up: `stagewire up NAME` brings one up"
_LISTED: Final = 5
_OUR_FILES: Final = Path("/etc/stagewire")
_WG_QUICK_FILES: Final = Path("/etc/wireguard")


def complain(text: str) -> None:
    """Writes a line to stderr."""
    click.echo(logs.cleaned_lines(f"stagewire: {text}"), err=True)


def note(text: str) -> None:
    """Writes a line of less weight to stderr. A warning says so itself."""
    complain(text if text.startswith("warning: ") else f"note: {text}")


def tell(text: str, *, beside: bool = False) -> None:
    """Writes a line to stdout, or with `beside` to stderr."""
    click.echo(logs.cleaned_lines(text), err=beside)


def done(text: str) -> None:
    """Writes to stdout what holds now. A command that has done its work does not fail for want of an output."""
    with suppress(OSError):
        # Bypasses Python's buffer: to flush that at exit could fail.
        os.write(1, f"{logs.cleaned_lines(text)}\n".encode(errors="replace"))


def width() -> int | None:
    """Returns the terminal's columns, by which output is wrapped; None for a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def counted(count: int, what: str) -> str:
    """Writes a number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def fail(text: str, status: int = FAILED) -> NoReturn:
    """Writes a line to stderr and ends the command."""
    complain(text)
    sys.exit(status)


def fail_with(failed: Failed, interface: str) -> NoReturn:
    """Ends the command with the failure's text, which names the interface once."""
    if isinstance(failed, NotUp):
        fail(not_up(interface), NOT_RUNNING)
    text = str(failed)
    fail(text if text.startswith((f"{interface} ", f"{interface}:")) else f"{interface}: {text}")


def not_up(interface: str) -> str:
    """Says that an interface is not up, and which are."""
    others = [name for name in interfaces() if name != interface]
    are = f", but {', '.join(others)} {'is' if len(others) == 1 else 'are'}" if others else ""
    return f"{interface} is not up{are}"


def environment_of(file_or_name: str) -> Environment:
    """Returns the environment of an interface; ends the command when the operand names none."""
    if not file_or_name:
        fail("FILE|NAME is empty: give a configuration file or an interface's name")
    try:
        if not is_name(file_or_name):
            path = Path(file_or_name).absolute()
            return Environment.read(os.environ | {"STAGEWIRE_CONFIG": str(path)}, config.interface_name(path))
        if not valid_interface_name(file_or_name):
            fail(f"{file_or_name!r} is no interface's name, which has 1 to 15 of a-z A-Z 0-9 _ = + . -")
        variables = {name: value for name, value in os.environ.items() if name != "STAGEWIRE_CONFIG"}
        return Environment.read(variables, file_or_name)
    except (EnvironmentMistake, config.ConfigError) as mistake:
        fail(str(mistake))


def is_name(file_or_name: str) -> bool:
    """Says whether an operand is a name; a path has a slash or ends in .conf."""
    return "/" not in file_or_name and not file_or_name.endswith(".conf")


def load(environment: Environment) -> "config.InterfaceConfig":
    """Reads the file and prints its warnings; ends the command with every mistake in the file."""
    try:
        interface = config.load(environment.config)
    except config.ConfigError as error:
        for mistake in mistakes(error):
            complain(mistake)
        sys.exit(FAILED)
    for warning in interface.warnings:
        complain(f"warning: {warning}")
    return interface


def mistakes(error: "config.ConfigError") -> list[str]:
    """Returns a line for each mistake in a file. Of a file that is not there, it says which are."""
    path = Path(error.mistakes[0].path)
    if os.path.lexists(path):
        return [str(mistake) for mistake in error.mistakes]
    places = (_OUR_FILES / path.name, _WG_QUICK_FILES / path.name)
    if found := [place for place in places if place.exists()]:
        return [f"{path}: does not exist, but {found[0]} does: give that path"]
    if path.parent != _OUR_FILES:
        return [str(mistake) for mistake in error.mistakes]
    names = sorted(file.name.removesuffix(".conf") for file in _OUR_FILES.glob("*.conf"))[:_LISTED]
    there = f"; {', '.join(names)} {'exists' if len(names) == 1 else 'exist'}" if names else ""
    return [f"{path}: does not exist: `stagewire init {path.stem}` makes it{there}"]


def need_root() -> None:
    """Ends the command for every user but root."""
    if os.geteuid() != 0:
        fail("this needs root: try it with sudo")


def upon_its_file(file_or_name: str | None, action: Callable[[Environment], None]) -> None:
    """Calls `action` for an interface that was brought up with a file; ends the command if that fails."""
    need_root()
    file_or_name = the_one_that_is_up() if file_or_name is None else file_or_name
    environment = environment_of(file_or_name)
    try:
        _expect_up(environment, None if is_name(file_or_name) else environment.config)
        action(environment)
    except Failed as failed:
        fail_with(failed, environment.interface)
    except config.ConfigError as error:
        for mistake in mistakes(error):
            complain(mistake)
        sys.exit(FAILED)


def upon_a_file(file_or_name: str, action: Callable[[Environment], None]) -> None:
    """Calls `action` for an interface that may be down; ends the command if that fails."""
    need_root()
    environment = environment_of(file_or_name)
    try:
        if not is_name(file_or_name):
            expect_that_file(environment, Path(file_or_name))
        action(environment)
    except Failed as failed:
        fail_with(failed, environment.interface)
    except config.ConfigError as error:
        for mistake in mistakes(error):
            complain(mistake)
        sys.exit(FAILED)


def passphrase(file: Path | None, *, twice: bool = False) -> str:
    """Reads a passphrase from a file's first line, or asks for it. Raises Failed."""
    if file is None:
        if not sys.stdin.isatty():
            raise Failed("there is no terminal to ask for the passphrase: give --passphrase-file")
        return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True))
    try:
        with file.open(encoding="utf-8", errors="surrogateescape") as opened:
            return opened.readline(4096).rstrip("\r\n")
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from None


def _expect_up(environment: Environment, file: Path | None) -> None:
    """Raises Failed unless the interface is up, with `file` if that is not None."""
    from stagewire_cli import bring_up, the_file

    if not bring_up.is_up(environment):
        raise NotUp(environment.interface)
    if the_file.what_was_read(environment) is None:
        raise Failed(
            f"{environment.interface} was brought up without a configuration file; use `wg` to see or change it"
        )
    brought_up_with = the_file.of(environment)
    if file is not None and file.resolve() != brought_up_with.resolve():
        raise Failed(f"{environment.interface} was brought up with {brought_up_with}, not with {file}")


def upon(file_or_name: str | None, change: Callable[[Environment], None]) -> None:
    """Calls `change` for an interface that is up; ends the command if that fails."""
    from stagewire.control import query

    need_root()
    environment = environment_of(the_one_that_is_up() if file_or_name is None else file_or_name)
    try:
        change(environment)
    except Failed as failed:
        fail_with(failed, environment.interface)
    except query.OtherVersion as other:
        fail(f"{environment.interface}: {other}")


def either(operand: str | None, option: str | None) -> str | None:
    """Returns the gateway that -i names, or an operand at the end as earlier versions had it."""
    if operand is not None and option is not None and operand != option:
        fail(f"{operand} and -i {option} name two gateways")
    return operand if option is None else option


def the_one_that_is_up() -> str:
    """Returns the only interface that is up; ends the command when none or several are."""
    names = interfaces()
    if not names:
        fail(NONE_UP, NOT_RUNNING)
    if len(names) > 1:
        context = click.get_current_context(silent=True)
        by_option = context is not None and any(param.name == "interface" for param in context.command.params)
        how = "name one with -i" if by_option else "name one of them"
        fail(f"{len(names)} interfaces are up ({', '.join(names)}): {how}")
    return names[0]


def the_only_gateway() -> str:
    """Returns the only interface that is up, or without any the only one with a file in /etc/stagewire."""
    if not interfaces():
        files = sorted(_OUR_FILES.glob("*.conf"))
        if len(files) != 1:
            if not files:
                fail(f"there is no gateway in {_OUR_FILES} yet: `stagewire init wg0` makes one; -i names one elsewhere")
            names = ", ".join(file.name.removesuffix(".conf") for file in files)
            fail(f"no interface is up, and {_OUR_FILES} has several ({names}): name one with -i")
        return files[0].name.removesuffix(".conf")
    return the_one_that_is_up()


def expect_that_file(environment: Environment, file: Path) -> None:
    """Raises Failed if the interface is up with another file."""
    from stagewire_cli import bring_up

    if bring_up.is_up(environment):
        _expect_up(environment, file.absolute())


def has_file(name: str) -> bool:
    """Tells whether an interface has a file in our folder."""
    return (_OUR_FILES / f"{name}.conf").is_file()


def interfaces() -> list[str]:
    """Lists the interfaces that have a run folder of ours."""
    folder = Path(os.environ.get("STAGEWIRE_RUN_DIR") or "/run/stagewire")
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and _is_run_folder(entry))
    except OSError:
        return []


def _is_run_folder(folder: Path) -> bool:
    from stagewire_cli import processes

    try:
        return any((folder / name).exists() for name in (processes.CONFIGURATION, "slot.key.0"))
    except PermissionError:
        return True  # only ours is closed to other users


def file_of(file_or_name: str) -> Path:
    from stagewire_cli import the_file

    if not is_name(file_or_name) or Path(file_or_name).exists():
        return Path(file_or_name)
    environment = environment_of(file_or_name)
    expect_access(environment, "; give the file's path, or run this as root")
    return the_file.of(environment)


def expect_access(environment: Environment, instead: str = "") -> None:
    """Ends the command if its user may not look into an interface's run folder."""
    run = environment.run
    if run.exists() and not os.access(run, os.X_OK):
        fail(f"{run}: only root and the services' group may look inside{instead or ': try it with sudo'}")
